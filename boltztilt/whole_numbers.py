"""Numbers of things, and seeds, as users give them."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as Python's int, also from numpy or torch.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than the least.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}; give at least {least}")
    return number


def seeded(seed: Any) -> int:
    """A seed of random numbers, from 0 on."""
    return whole_number("seed", seed, least=0)
