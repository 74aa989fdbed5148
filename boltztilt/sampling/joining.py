"""The parts of several ensembles made one."""

from __future__ import annotations

import math
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
    """Settings that all share, sums of costs, the list of seeds, and the share of mirror images."""
    joined = {
        key: value for key, value in infos[0].items() if all(i.get(key) == value for i in infos)
    }
    for cost in ("n_energy", "wall_time", "n_ancestors", "folded"):
        if any(cost in info for info in infos):
            joined[cost] = sum(info.get(cost, 0) for info in infos)
    if any("seed" in info for info in infos):
        joined["seed"] = [info.get("seed") for info in infos]
    if any("mirrored" in info for info in infos):
        joined["mirrored"] = _joined_share([info.get("mirrored") for info in infos], sizes)
    return joined


def _joined_share(shares: Sequence[Any], sizes: Sequence[int]) -> Estimate:
    """A share of all structures from those of the parts, which files keep as value and error."""
    if any(share is None for share in shares):
        raise ValueError(
            "cannot join ensembles in one hand of a molecule with others in both: take the "
            "`unmirrored()` of each first"
        )
    parts = [share.values() if isinstance(share, dict) else share for share in shares]
    known = [[math.nan if number is None else number for number in part] for part in parts]
    values, errors = torch.tensor(known, dtype=torch.float64).T
    of_all = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return Estimate(float(of_all @ values), float((of_all * errors).square().sum().sqrt()))
