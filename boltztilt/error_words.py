"""What errors of other packages say, in few words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that torch adds, and not endless."""
    return f"{str(error) or type(error).__name__}".splitlines()[0][:200]


@contextmanager
def failing_to_write(writer: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds, by which writers say that a file cannot grow, into OSError."""
    try:
        yield
    except kinds as error:
        reason = f"{writer} failed ({first_line(error)}), perhaps for a full disk"
        raise OSError(errno.EIO, reason) from error
