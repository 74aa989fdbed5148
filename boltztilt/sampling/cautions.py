"""What to tell of an ensemble whose weights, or groups, are too few or too uneven."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boltztilt.sampling.ensemble import Ensemble

FEW = 10
"""Fewer effective structures, or groups, do not tell averages and their errors."""

LARGEST_PARETO_K = 0.7
"""With heavier tails of the weights averages do not settle at any practical number."""


def cautions(ensemble: Ensemble) -> list[str]:
    """Why weighted averages and their errors may not be trusted; empty where they may."""
    if not ensemble.has_weights:
        return []
    if not ensemble.any_weight:
        return [f"{ensemble.no_weight}: draw more structures, or train longer"]
    found = []
    if ensemble.n_effective < FEW:
        found.append(
            f"the weights rest on about {ensemble.n_effective:.1f} of {len(ensemble)} structures: "
            "averages may be off by more than their errors, draw more structures"
        )
    elif (k := ensemble.pareto_k) > LARGEST_PARETO_K:
        found.append(
            f"the weights have a heavy tail (Pareto k = {k:.1f}, above "
            f"{LARGEST_PARETO_K}): the effective sample size falls as more structures are "
            "drawn, and averages may be off by more than their errors"
        )
    if ensemble.groups is not None and ensemble.n_groups < FEW:
        found.append(
            f"errors are those over {ensemble.n_groups} groups, too few to tell them: draw more "
            "structures, or fewer to a group"
        )
    return found
