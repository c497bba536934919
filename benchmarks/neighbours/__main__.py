"""The command `python -m benchmarks.neighbours`, without options."""

import argparse

from benchmarks import neighbours

argparse.ArgumentParser(description=neighbours.__doc__).parse_args()
neighbours.main()
