"""Runs the command line: `python -m boltztilt` is `boltztilt`."""

from boltztilt.cli import main

if __name__ == "__main__":
    main()
