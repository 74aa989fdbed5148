"""Help with mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question such as ` Did you mean 'cess'?` with the nearest known name; empty without one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
