"""What to tell of an ensemble whose weights, or groups, are too few or too uneven."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boltztilt.sampling.ensemble import Ensemble

FEW = 10
"""Fewer effective structures, or groups, do not tell averages and their errors."""

LARGEST_PARETO_K = 0.7
"""With heavier tails of the weights averages do not settle at any practical number."""

LEAST_SHARE = 0.001
"""Of the weight. Fewer stereoisomers are not told of."""


def cautions(ensemble: Ensemble) -> list[str]:
    """Why averages and their errors may not be trusted; empty where they may."""
    return [*_of_weights(ensemble), *_of_stereoisomers(ensemble)]


def _of_weights(ensemble: Ensemble) -> list[str]:
    """What makes weights, or errors over groups, worth little."""
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


def _of_stereoisomers(ensemble: Ensemble) -> list[str]:
    """Structures of another molecule than the one whose structure was given."""
    molecule = ensemble.system.molecule
    if molecule is None:
        return []
    inverted = molecule.inverted_centres(ensemble.positions).any(dim=1).double()
    weights = ensemble.weights if ensemble.any_weight else None
    share = float(inverted.mean() if weights is None else inverted @ weights)
    if share < LEAST_SHARE:
        return []
    return [
        f"{share:.1%} of the ensemble are other stereoisomers than the structure of the molecule, "
        "which the energy allows as well: averages count them; "
        "`analysis.conformations.intact` tells which structures these are"
    ]
