"""Help with mistyped names and settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question such as ` Did you mean 'cess'?` with the nearest known name; empty without one."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def check_settings(
    table: Mapping[str, Any], settings: Mapping[str, tuple[Any, str]], where: str = ""
) -> None:
    """Raises ValueError for a setting that is unknown or of a wrong type.

    Args:
        settings: by name the types, and what is expected in words.
        where: what messages begin with, such as "[molecule] ".
    """
    for key, value in table.items():
        if key not in settings:
            raise ValueError(
                f"{where}unknown setting {key!r}.{did_you_mean(key, settings)} Known: "
                f"{', '.join(settings)}"
            )
        kinds, meaning = settings[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{where}{key} = {value!r}: expected {meaning}")
