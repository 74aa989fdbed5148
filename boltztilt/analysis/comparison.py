"""An ensemble against reference samples: distances beside their noise floors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from boltztilt.analysis import conformations, metrics
from boltztilt.analysis.reference import Reference
from boltztilt.potentials.double_well import DoubleWell
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.estimate import Estimate, weighted_mean

Value = TypeVar("Value")

TAIL = 0.999


def compare(
    ensemble: Ensemble, reference: Reference, seed: int = 0, floors: NoiseFloors | None = None
) -> dict[str, Any]:
    """Distances of the ensemble to the reference, raw and reweighted, beside their noise floors.

    `floor` is the distance of as many reference structures as the ensemble has to the whole
    reference, both drawn anew, the reference in whole chains; `floor_effective` that of as many as
    the weights are worth, the best that reweighting can reach. Ensembles without weights are
    compared as they are. Molecules are compared in their conformations as well, systems in external
    fields in their centre of mass by axis, and not in shapes that are laid over each other. Floors
    that another comparison with the same reference has measured can be given.
    """
    floors = floors or NoiseFloors(seed, reference.groups)
    limit = reference.energies.quantile(TAIL)
    beyond = (~(ensemble.energies <= limit)).double()
    compared: dict[str, Any] = {
        "energy_reference": reference.mean_energy(),
        **{
            f"energy_w{order}": _number_distances(
                f"energy W{order}", ensemble.energies, ensemble, reference.energies, floors, order
            )
            for order in (1, 2)
        },
        "beyond_reference": {
            "energy": float(limit),
            **_by_view(
                ensemble, lambda weights: weighted_mean(beyond, weights, n_bootstrap=0).value
            ),
            "reference": 1.0 - TAIL,
        },
    }
    if ensemble.system.n_atoms > 1:
        compared["pair_distance_w1"] = _pair_distances(ensemble, reference, floors)
        if ensemble.system.potential.centered:
            compared["geometric_w2"] = _geometric_distances(ensemble, reference, seed)
    if not ensemble.system.potential.centered:
        compared["centre_w1"] = _centre_distances(ensemble, reference, floors)
    if isinstance(ensemble.system.potential, DoubleWell):
        compared["short_pair_occupancy"] = _occupancies(ensemble, reference)
    if ensemble.system.molecule is not None:
        compared |= compare_molecules(ensemble, reference, floors)
    return compared


def compare_molecules(
    ensemble: Ensemble, reference: Reference, floors: NoiseFloors | None = None
) -> dict[str, Any]:
    """Basins, intact structures, torsions, bonds and angles, raw and reweighted.

    `basins` and `basin_free_energies` (kT) tell, by residue, what an effective sample size is
    blind to: a basin that the sampler never visits. Histograms of (phi, psi) are compared by
    total variation and Jensen-Shannon divergence (nats), with as many bins as the structures can
    fill; bond lengths and angles by the deviations of their means and standard deviations.
    """
    system, molecule = ensemble.system, ensemble.system.molecule
    if molecule is None:
        raise ValueError(f"system {system.name!r} is not a molecule: it has no conformations")
    floors = floors or NoiseFloors(groups=reference.groups)
    faults = partial(
        conformations.intact,
        molecule=molecule,
        mirror_images=system.potential.mirror_symmetric,
    )
    lengths, angles = (
        partial(function, molecule=molecule)
        for function in (conformations.bond_lengths, conformations.bond_angles)
    )
    ours, theirs = faults(ensemble.positions), faults(reference.positions)
    return {
        **_torsion_comparison(ensemble, reference, floors),
        "structures": _by_name(ours.fractions, theirs.fractions, ensemble, reference),
        "bond_lengths_nm": _moment_deviations("bond lengths", lengths, ensemble, reference, floors),
        "bond_angles_degrees": _moment_deviations(
            "bond angles",
            lambda positions: angles(positions) * (180 / math.pi),
            ensemble,
            reference,
            floors,
        ),
    }


class NoiseFloors:
    """Distances between parts of one reference, each measured once for a number of structures.

    Args:
        seed: of the draws.
        groups: which structures of the reference depend on each other, see `Reference.groups`.
    """

    def __init__(self, seed: int = 0, groups: Tensor | None = None) -> None:
        self.seed = seed
        self.groups = groups
        self.known: dict[tuple[str, int], Estimate] = {}

    def beside(
        self,
        name: str,
        distance: Callable[[Tensor, Tensor], float],
        reference: Tensor,
        ensemble: Ensemble,
        n_repeats: int = 10,
    ) -> dict[str, Estimate]:
        """The floors of a distance of this name, for the structures and for their weights."""
        sizes = {"floor": len(ensemble)}
        if ensemble.any_weight:
            sizes["floor_effective"] = max(2, round(ensemble.n_effective))
        for size in sizes.values():
            if (name, size) not in self.known:
                self.known[name, size] = metrics.noise_floor(
                    distance, reference, size, n_repeats, self.seed, self.groups
                )
        return {view: self.known[name, size] for view, size in sizes.items()}


def _by_view(ensemble: Ensemble, figure: Callable[[Tensor | None], Value]) -> dict[str, Value]:
    """A figure of the ensemble for each of its views."""
    return {name: figure(weights) for name, weights in ensemble.views.items()}


def _number_distances(
    name: str, ours: Tensor, ensemble: Ensemble, theirs: Tensor, floors: NoiseFloors, order: int = 1
) -> dict[str, Any]:
    """W_p of a number of each structure, such as its energy."""
    distance = partial(metrics.energy_wasserstein, order=order)
    return {
        **_by_view(ensemble, partial(distance, ours, theirs)),
        **floors.beside(name, distance, theirs, ensemble),
    }


def _pair_distances(
    ensemble: Ensemble, reference: Reference, floors: NoiseFloors
) -> dict[str, Any]:
    distance = metrics.pair_distance_wasserstein
    return {
        **_by_view(ensemble, partial(distance, ensemble.positions, reference.positions)),
        **floors.beside("pair distances", distance, reference.positions, ensemble, n_repeats=4),
    }


def _centre_distances(
    ensemble: Ensemble, reference: Reference, floors: NoiseFloors
) -> dict[str, dict[str, Any]]:
    """W1 of the centre of the atoms, by axis."""
    compared = {}
    for axis in range(ensemble.system.n_dims):
        ours, theirs = (each.positions.mean(1)[:, axis] for each in (ensemble, reference))
        name = f"axis_{axis + 1}"
        compared[name] = _number_distances(f"centre, {name}", ours, ensemble, theirs, floors)
    return compared


def _geometric_distances(ensemble: Ensemble, reference: Reference, seed: int) -> dict[str, float]:
    """Of equally weighted draws: no weights enter, so `reweighted` is after resampling."""
    drawn = {"raw": ensemble.positions}
    if ensemble.any_weight:
        drawn["reweighted"] = ensemble.resample(seed=seed).positions
    system = ensemble.system
    first, second = reference.positions.tensor_split(2)

    def distance(positions: Tensor, target: Tensor) -> float:
        mirrored = system.potential.mirror_symmetric
        return metrics.geometric_wasserstein(
            positions, target, system.species, seed=seed, allow_reflection=mirrored
        )

    return {
        **{view: distance(positions, first) for view, positions in drawn.items()},
        "floor": distance(second, first),
    }


def _occupancies(ensemble: Ensemble, reference: Reference) -> dict[str, dict[str, Any]]:
    cutoff = ensemble.system.potential.centre
    both = (ensemble.positions, reference.positions)
    counts = torch.cat([metrics.short_pairs(each, cutoff) for each in both]).unique().tolist()
    occupancy = partial(metrics.short_pair_occupancy, counts=counts, cutoff=cutoff)
    found = _by_view(
        ensemble, lambda weights: occupancy(ensemble.positions, weights, groups=ensemble.groups)
    )
    found["reference"] = occupancy(reference.positions, groups=reference.groups)
    return {
        name: {str(count): fraction for count, fraction in occupancy.items()}
        for name, occupancy in found.items()
    }


def _torsion_comparison(
    ensemble: Ensemble, reference: Reference, floors: NoiseFloors
) -> dict[str, Any]:
    """Basins and histograms of every residue; nothing without a peptide backbone."""
    compared: dict[str, Any] = {
        name: {} for name in ("basins", "basin_free_energies", "ramachandran")
    }
    theirs = conformations.residue_torsions(reference.positions, reference.system)
    for name, ours in conformations.residue_torsions(ensemble.positions, ensemble.system).items():
        for key, function in (
            ("basins", conformations.basin_populations),
            ("basin_free_energies", conformations.basin_free_energies),
        ):
            compared[key][name] = _by_name(
                partial(function, ours), partial(function, theirs[name]), ensemble, reference
            )
        compared["ramachandran"][name] = _ramachandran_distances(
            name, ours, theirs[name], ensemble, floors
        )
    return {key: entries for key, entries in compared.items() if entries}


def _by_name(
    estimates: Callable[..., dict[str, Any]],
    expected: Callable[..., dict[str, Any]],
    ensemble: Ensemble,
    reference: Reference,
) -> dict[str, dict[str, Any]]:
    """Estimates of the ensemble, raw and reweighted, beside those of the reference, by name."""
    found = _by_view(ensemble, lambda weights: estimates(weights=weights, groups=ensemble.groups))
    found["reference"] = expected(groups=reference.groups)
    return {name: {view: found[view][name] for view in found} for name in found["reference"]}


def _ramachandran_distances(
    residue: str, ours: Tensor, theirs: Tensor, ensemble: Ensemble, floors: NoiseFloors
) -> dict[str, Any]:
    n_bins = conformations.bin_number(min(len(ours), len(theirs)))
    histogram = partial(conformations.ramachandran, n_bins=n_bins)

    def between(
        distance: Callable[[Tensor, Tensor], float],
        first: Tensor,
        second: Tensor,
        weights: Tensor | None = None,
    ) -> float:
        return distance(histogram(first, weights=weights), histogram(second))

    compared: dict[str, Any] = {"bins_per_angle": n_bins}
    for function in (conformations.total_variation, conformations.jensen_shannon):
        distance = partial(between, function)
        compared[function.__name__] = {
            **_by_view(ensemble, partial(distance, ours, theirs)),
            **floors.beside(f"{function.__name__} of {residue}", distance, theirs, ensemble),
        }
    return compared


def _moment_deviations(
    kind: str,
    variables: Callable[[Tensor], Tensor],
    ensemble: Ensemble,
    reference: Reference,
    floors: NoiseFloors,
) -> dict[str, dict[str, Any]]:
    """Deviations of means and standard deviations of some variables, with their floors."""
    ours, theirs = variables(ensemble.positions), variables(reference.positions)
    found = _by_view(
        ensemble,
        lambda weights: conformations.moment_deviations(ours, theirs, weights)._asdict(),
    )

    def deviation(name: str, first: Tensor, second: Tensor) -> float:
        return getattr(conformations.moment_deviations(first, second), name)

    return {
        name: {
            **{view: deviations[name] for view, deviations in found.items()},
            **floors.beside(
                f"{name} of {kind}", partial(deviation, name), theirs, ensemble, n_repeats=4
            ),
        }
        for name in conformations.MomentDeviations._fields
    }
