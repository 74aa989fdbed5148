"""Distances between an ensemble and a reference, effective sample sizes, likelihood bounds.

Every distance comes with its noise floor: the same distance between two independent draws of the
reference. A sampler cannot be told from the target once it stands at the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from boltztilt.geometry import align, pair_indices, remove_mean
from boltztilt.sampling.estimate import Estimate, weighted_fraction, weighted_mean

GRID_CELLS = 2**20
CONFIGURATIONS_AT_ONCE = 1000


def kish_ess(log_weights: Float[Tensor, "batch"]) -> float:
    """Kish's effective sample size of samples of q, as a fraction: (sum w)² / (N sum w²).

    Blind to what q misses altogether; see `forward_ess`.

    Reference: Kish (1965), Survey Sampling.
    """
    log_weights = log_weights.double()
    log_ess = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return float(log_ess.exp()) / len(log_weights)


def forward_ess(reference_log_weights: Float[Tensor, "batch"]) -> float:
    """The effective sample size of q as a fraction, from samples of the target p.

    With w = p/q up to a constant, ESS = 1 / (E_p[w] E_p[1/w]): small where q misses what p has.

    Reference: Midgley et al. (2023), Flow annealed importance sampling bootstrap, appendix on the
        forward ESS, https://arxiv.org/abs/2208.01893
    """
    log_weights = reference_log_weights.double()
    n = torch.tensor(float(len(log_weights)), dtype=torch.float64)
    log_product = log_weights.logsumexp(0) + (-log_weights).logsumexp(0) - 2 * n.log()
    return float((-log_product).exp())


def eubo(
    reference_log_weights: Float64[Tensor, "batch"], groups: Int64[Tensor, "batch"] | None = None
) -> Estimate:
    """E_p[log w] >= log Z, from samples of the target p; the error is that over groups, if given.

    `Ensemble.elbo` is the lower bound.
    """
    return weighted_mean(reference_log_weights, groups=groups)


def energy_wasserstein(
    first: Float[Tensor, "first"],
    second: Float[Tensor, "second"],
    first_weights: Float[Tensor, "first"] | None = None,
    second_weights: Float[Tensor, "second"] | None = None,
    order: int = 2,
) -> float:
    """The Wasserstein distance of two sets of numbers, such as energies in kT.

    W_p = (∫ |F⁻¹(u) - G⁻¹(u)|^p du)^(1/p), exact for weighted samples. Infinite where a value of
    positive weight is.

    Raises:
        ValueError: no value has a positive weight.
    """
    first, first_levels = _quantiles(first, first_weights)
    second, second_levels = _quantiles(second, second_weights)
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        return float("inf")
    levels = torch.cat([first_levels, second_levels]).sort().values
    masses = levels.diff(prepend=levels.new_zeros(1))
    middles = levels - 0.5 * masses
    gaps = _value_at(first, first_levels, middles) - _value_at(second, second_levels, middles)
    return float((masses * gaps.abs() ** order).sum() ** (1 / order))


def pair_distances(
    positions: Float[Tensor, "batch atoms dims"],
) -> Float[Tensor, "batch pairs"]:
    """Distances of all pairs i < j."""
    first, second = pair_indices(positions.shape[1], positions.device)
    return (positions[:, first] - positions[:, second]).norm(dim=-1)


def pair_distance_wasserstein(
    first: Float[Tensor, "first atoms dims"],
    second: Float[Tensor, "second atoms dims"],
    first_weights: Float[Tensor, "first"] | None = None,
    second_weights: Float[Tensor, "second"] | None = None,
) -> float:
    """W_1 of the distributions of all pair distances, in length units: ∫ |F - G| dr.

    There are many millions of distances: their distribution functions F and G are compared in 2^20
    cells up to the largest size of a configuration, whatever its weight. Infinite where a
    position of positive weight is.

    Raises:
        ValueError: there is no pair, or no configuration of positive weight.
    """
    sides = [_configurations(first, first_weights), _configurations(second, second_weights)]
    largest = max(float(2 * positions.norm(dim=-1).max()) for positions, _ in sides)
    if not math.isfinite(largest):
        return math.inf
    if largest == 0:
        return 0.0
    one, other = (_distribution(*side, largest) for side in sides)
    return float((one - other).abs().sum()) * largest / GRID_CELLS


def radial_distribution(
    positions: Float[Tensor, "batch atoms dims"],
    edges: Float[Tensor, "edges"],
    weights: Float[Tensor, "batch"] | None = None,
) -> Float64[Tensor, "bins"]:
    """The probability density of the pair distance in each bin, per unit of length.

    A finite cluster has no bulk density to divide by: the density integrates to one.
    """
    distances = pair_distances(positions).double().cpu().flatten()
    mass = _per_pair(weights, positions)
    mass = torch.ones_like(distances) if mass is None else mass.double()
    counts = torch.histogram(distances, edges.double(), weight=mass).hist
    return counts / (mass.sum() * edges.double().diff())


def short_pairs(
    positions: Float[Tensor, "batch atoms dims"], cutoff: float = 4.0
) -> Int64[Tensor, "batch"]:
    """The number of pairs nearer than the cutoff."""
    return (pair_distances(positions) < cutoff).sum(dim=1)


def short_pair_occupancy(
    positions: Float[Tensor, "batch atoms dims"],
    weights: Float64[Tensor, "batch"] | None = None,
    counts: Sequence[int] = (2, 3, 4, 5),
    cutoff: float = 4.0,
    groups: Int64[Tensor, "batch"] | None = None,
) -> dict[int, Estimate]:
    """The fraction of configurations with each number of short pairs (the modes of DW-4)."""
    found = short_pairs(positions, cutoff)
    return {count: weighted_fraction(found == count, weights, groups) for count in counts}


def geometric_wasserstein(
    first: Float[Tensor, "first atoms dims"],
    second: Float[Tensor, "second atoms dims"],
    species: Sequence[int],
    n: int = 64,
    seed: int = 0,
    allow_reflection: bool = True,
) -> float:
    """The W2 distance of configurations, each pair rotated and permuted onto each other first.

    Of `n` configurations of each set. A sanity check: clusters differ so much from each other
    that even a poor sampler stands near the noise floor. Infinite where a configuration drawn is
    not finite.

    Reference: optimal transport is solved exactly by POT, Flamary et al. (2021),
        https://www.jmlr.org/papers/v22/20-451.html
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "the geometric Wasserstein distance needs POT: pip install 'boltztilt[analysis]'"
        ) from error
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        remove_mean(x[torch.randperm(len(x), generator=generator)[:n]]) for x in (first, second)
    )
    if not all(torch.isfinite(each).all() for each in (rows, columns)):
        return math.inf
    mobile = rows.repeat_interleave(len(columns), dim=0)
    target = columns.repeat(len(rows), 1, 1)
    kinds = torch.as_tensor(tuple(species))
    moved = align(mobile, target, kinds, allow_reflection)
    cost = (moved - target).double().square().sum(dim=(1, 2)).reshape(len(rows), len(columns))
    return float(ot.emd2([], [], cost.numpy())) ** 0.5


def noise_floor(
    metric: Callable[[Tensor, Tensor], float],
    reference: Float[Tensor, "batch ..."],
    n: int,
    n_repeats: int = 10,
    seed: int = 0,
    groups: Int64[Tensor, "batch"] | None = None,
) -> Estimate:
    """The metric between two independent draws of the reference: `n` and as many as it holds.

    The value is the mean over repeated draws (with replacement), the error their standard
    deviation: what one comparison can show by chance. Samples of one group, such as a chain, may
    depend on each other: in place of the whole reference as many whole groups are then drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    size = len(reference)
    members = _members(torch.arange(size) if groups is None else groups)

    def drawn_anew() -> Tensor:
        chosen = torch.randint(len(members), (len(members),), generator=generator)
        return reference[torch.cat([members[number] for number in chosen.tolist()])]

    values = torch.tensor(
        [
            metric(reference[torch.randint(size, (n,), generator=generator)], drawn_anew())
            for _ in range(n_repeats)
        ],
        dtype=torch.float64,
    )
    return Estimate(float(values.mean()), float(values.std()))


def _members(groups: Int64[Tensor, "batch"]) -> tuple[Tensor, ...]:
    """The indices of the samples of each group."""
    _, sizes = groups.unique(return_counts=True)
    return groups.argsort(stable=True).split(sizes.tolist())


def _per_pair(
    weights: Tensor | None, positions: Float[Tensor, "batch atoms dims"]
) -> Tensor | None:
    """The weight of each pair distance: that of its configuration."""
    n_atoms = positions.shape[1]
    return None if weights is None else weights.repeat_interleave(n_atoms * (n_atoms - 1) // 2)


def _configurations(
    positions: Tensor, weights: Tensor | None
) -> tuple[Tensor, Float64[Tensor, "kept"]]:
    """The centred configurations of positive weight, and their weights, which sum to one."""
    if positions.shape[1] < 2:
        raise ValueError(f"{positions.shape[1]} atom has no pair distances; at least 2 are needed")
    weights = torch.ones(len(positions)) if weights is None else weights.cpu()
    kept, mass = positions.cpu()[weights > 0], weights[weights > 0].double()
    if not len(kept):
        raise ValueError(f"none of {len(positions)} configurations has a positive weight")
    return remove_mean(kept), mass / mass.sum()


def _distribution(
    positions: Tensor, mass: Float64[Tensor, "batch"], largest: float
) -> Float64[Tensor, "cells"]:
    """The distribution function of the pair distances at the upper ends of all cells."""
    counts = torch.zeros(GRID_CELLS, dtype=torch.float64)
    parts = (values.split(CONFIGURATIONS_AT_ONCE) for values in (positions, mass))
    for part, weights in zip(*parts, strict=True):
        distances = pair_distances(part)
        cells = (distances * (GRID_CELLS / largest)).long().clamp(max=GRID_CELLS - 1)
        each = (weights / distances.shape[1])[:, None].expand(distances.shape)
        counts += torch.bincount(cells.flatten(), each.flatten(), minlength=GRID_CELLS)
    return counts.cumsum(0)


def _quantiles(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sorted values of positive weight and the cumulative weight up to each, ending at 1."""
    values = values.double()
    weights = torch.ones_like(values) if weights is None else weights.double()
    values, weights = values[weights > 0], weights[weights > 0]
    if not len(values):
        raise ValueError("no value of positive weight given; a distance needs some on both sides")
    values, order = values.sort()
    levels = weights[order].cumsum(0)
    return values, levels / levels[-1]


def _value_at(values: Tensor, levels: Tensor, at: Tensor) -> Tensor:
    """The quantile function at the given levels."""
    return values[torch.searchsorted(levels, at).clamp(max=len(values) - 1)]
