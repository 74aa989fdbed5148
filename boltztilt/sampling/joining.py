"""The parts of several ensembles made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from boltztilt.sampling.estimate import Estimate


def joined(name: str, parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts in one tensor; None where every part is."""
    present = [part for part in parts if part is not None]
    if len(present) not in (0, len(parts)):
        raise ValueError(f"cannot join ensembles with and without {name.replace('_', '-')}")
    return torch.cat(present) if present else None


def numbered_apart(groups: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same groups, numbered so that no two ensembles share a number."""
    apart: list[Tensor | None] = []
    first = 0
    for each in groups:
        apart.append(None if each is None else each + first)
        first += 0 if each is None else int(each.max()) + 1
    return apart


def joined_info(infos: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Settings that all share, sums of costs, the list of seeds, and the share of mirror images.

    Raises:
        ValueError: two ensembles were drawn with the same seed, so that one holds copies of the
            structures of the other, or they are in different hands of a molecule.
    """
    seeds = [seed for info in infos for seed in _seeds(info)]
    if repeated := {seed for seed in seeds if seeds.count(seed) > 1}:
        raise ValueError(
            f"cannot join ensembles drawn with the same seed {min(repeated)}: their structures are "
            "the same or depend on each other, and errors would be too small; draw each with a "
            "seed of its own"
        )
    joined = {
        key: value for key, value in infos[0].items() if all(i.get(key) == value for i in infos)
    }
    for cost in ("n_energy", "wall_time", "n_ancestors", "folded"):
        if any(cost in info for info in infos):
            joined[cost] = sum(info.get(cost, 0) for info in infos)
    for number in ("resampled_from", "n_distinct"):
        joined.pop(number, None)
        if all(number in info for info in infos):
            joined[number] = sum(info[number] for info in infos)
    if any("seed" in info for info in infos):
        joined["seed"] = [info.get("seed") for info in infos]
    if any("mirrored" in info for info in infos):
        joined["mirrored"] = _joined_share([info.get("mirrored") for info in infos], sizes)
    return joined


def _seeds(info: dict[str, Any]) -> list[int]:
    """The seeds of an ensemble, or of the parts that it was joined from."""
    seed = info.get("seed")
    seeds = seed if isinstance(seed, list) else [seed]
    return [each for each in seeds if isinstance(each, int)]


def _joined_share(shares: Sequence[Any], sizes: Sequence[int]) -> Estimate:
    """A share of all structures from those of the parts."""
    if any(share is None for share in shares):
        raise ValueError(
            "cannot join ensembles in one hand of a molecule with others in both: take the "
            "`unmirrored()` of each first"
        )
    values, errors = torch.tensor(shares, dtype=torch.float64).T
    of_all = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return Estimate(float(of_all @ values), float((of_all * errors).square().sum().sqrt()))
