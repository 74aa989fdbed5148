"""How the command line answers bad input and Ctrl-C: in one line, without a traceback."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from boltztilt.error_words import first_line

BAD_INPUT = 2
INTERRUPTED = 130
"""Exit codes, the second as shells report Ctrl-C."""


class OneLineErrors(TyperGroup):
    """A command group that answers bad input with one line on stderr and exit code 2.

    The package raises ValueError, TypeError, ImportError and OSError for what a user can put
    right; anything else is a defect and keeps its traceback. `--debug` keeps every traceback.
    """

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        debug = "--debug" in words
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main([word for word in words if word != "--debug"], *rest, **extra))
        except (ValueError, TypeError, ImportError, OSError) as error:
            if debug:
                raise
            fail(str(error).split("Exception raised from")[0] or type(error).__name__)
        except Exception as error:
            if debug:
                raise
            if lacks_memory(error):
                how = "ask for less at once, such as fewer structures or particles"
                fail(f"not enough memory ({first_line(error)}): {how}")
            if not hasattr(error, "format_message"):
                raise
            fail(error.format_message())


def lacks_memory(error: Exception) -> bool:
    """Whether what failed was to get memory, of the processor or of a GPU."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def fail(message: str) -> None:
    """Ends the program with the message on one line and the exit code for bad input."""
    print(f"boltztilt: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def stopped(how_to_go_on: str) -> typer.Exit:
    """What ends an interrupted program, once it is said how to go on."""
    print(f"stopped; {how_to_go_on}", file=sys.stderr)
    return typer.Exit(INTERRUPTED)
