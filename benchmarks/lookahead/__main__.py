"""The command `python -m benchmarks.lookahead`, without options."""

import argparse

from benchmarks import lookahead

argparse.ArgumentParser(description=lookahead.__doc__).parse_args()
lookahead.main()
