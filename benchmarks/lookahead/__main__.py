"""The command `python -m benchmarks.lookahead`."""

from benchmarks.lookahead import main

main()
