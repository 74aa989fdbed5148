"""A battery of checks that any potential, also one of your own, should pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.geometry import random_rotation
from boltztilt.systems.system import System

Transform = Callable[[Tensor], Tensor]


def check_potential(
    target: Any,
    positions: Float[Tensor, "batch atoms dims"] | None = None,
    species: Sequence[int] | None = None,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> dict[str, float]:
    """Returns the largest relative deviation found for each property of a potential.

    Checked in float64: the force against finite differences, one batch against one by one, and
    the symmetries the potential claims: translation, rotation and permutation of equal species if
    `centered`, reflection if `mirror_symmetric`. Shapes are checked, and that float32 and float64
    positions give energies and forces of the same dtype.

    Args:
        target: the potential to check, or a system with it.
        positions: configurations of finite energy; by default the jittered structure of a system's
            molecule, or else a loose jittered lattice.
        species: one integer per atom; equal ones are permuted. By default those of the system, or
            else all equal.
        seed: seed of the random lattice, rotation and permutation.
        tolerance: largest relative deviation that passes.

    Raises:
        AssertionError: naming every property that fails and by how much.
        TypeError: the target is neither a potential nor a system.
        ValueError: the energy of the positions is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    potential = target
    if isinstance(target, System):
        potential, species = target.potential, species or target.species
        if positions is None and target.molecule is not None:
            positions = target.molecule.distorted(4, generator)
    if not isinstance(potential, Potential):
        raise TypeError(
            f"check_potential got a {type(target).__name__}: give a Potential, a System, or a "
            "function of positions as boltztilt.CallablePotential(function, n_atoms)"
        )
    if positions is None:
        positions = jittered_lattice(potential.n_atoms, potential.n_dims, generator)
    positions = positions.detach().double()
    _check_output(potential, positions)
    deviations = {
        "force (against finite differences of the energy)": _force_deviation(potential, positions),
        "batch (against one configuration at a time)": _batch_deviation(potential, positions),
    }
    for name, transform in _claimed_symmetries(potential, species, generator).items():
        deviations[name] = _symmetry_deviation(potential, positions, transform)
    failures = {name: value for name, value in deviations.items() if not value <= tolerance}
    if failures:
        lines = [f"  {name}: deviates by {value:.1e}" for name, value in failures.items()]
        raise AssertionError(
            f"{type(potential).__name__} fails {len(failures)} of {len(deviations)} checks "
            f"(tolerance {tolerance:.0e}):\n" + "\n".join(lines)
        )
    return deviations


def jittered_lattice(
    n_atoms: int, n_dims: int, generator: torch.Generator, n: int = 4, spacing: float = 1.2
) -> Float[Tensor, "batch atoms dims"]:
    """Returns n configurations without overlaps: lattice sites moved by a tenth of the spacing."""
    side = 1
    while side**n_dims < n_atoms:
        side += 1
    axis = torch.arange(side, dtype=torch.float64)
    sites = torch.cartesian_prod(*[axis] * n_dims).reshape(-1, n_dims)[:n_atoms]
    shape = (n, n_atoms, n_dims)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    positions = spacing * (sites + 0.1 * noise)
    return positions - positions.mean(1, keepdim=True)


def _check_output(potential: Potential, positions: Tensor) -> None:
    """Raises AssertionError if shapes or dtypes are wrong, ValueError if energies are infinite."""
    name = type(potential).__name__
    for dtype in (torch.float32, torch.float64):
        energy, force = potential.energy_and_force(positions.to(dtype))
        alone = potential.energy(positions.to(dtype))
        for what, value, shape in (
            ("energy", alone, positions.shape[:1]),
            ("energy of energy_and_force", energy, positions.shape[:1]),
            ("force", force, positions.shape),
        ):
            if value.shape != shape or value.dtype != dtype:
                raise AssertionError(
                    f"{name}: the {what} has shape {tuple(value.shape)} and {value.dtype} for "
                    f"positions of shape {tuple(positions.shape)} and {dtype}; expected "
                    f"{tuple(shape)} and the same dtype"
                )
    if not torch.isfinite(potential.energy(positions)).all():
        raise ValueError(f"{name}: pass `positions` at which the energy is finite")


def _force_deviation(potential: Potential, positions: Tensor, step: float = 1e-4) -> float:
    """Returns how far the force is from the fourth-order central difference of the energy."""
    force = potential.energy_and_force(positions)[1]
    size = positions[0].numel()
    offsets = torch.eye(size, dtype=positions.dtype).view(size, *positions.shape[1:])
    worst = 0.0
    for configuration, exact in zip(positions, force, strict=True):
        difference = torch.zeros(size, dtype=positions.dtype)
        for multiple, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
            moved = configuration + multiple * step * offsets
            difference += weight * potential.energy(moved).detach() / (12.0 * step)
        worst = max(worst, _relative(exact.flatten(), -difference))
    return worst


def _batch_deviation(potential: Potential, positions: Tensor) -> float:
    """Returns how far a batch, with and without forces, is from one configuration at a time."""
    energy, force = potential.energy_and_force(positions)
    single = [potential.energy_and_force(one[None]) for one in positions]
    return max(
        _relative(energy, potential.energy(positions).detach()),
        _relative(energy, torch.cat([one[0] for one in single])),
        _relative(force, torch.cat([one[1] for one in single])),
    )


def _claimed_symmetries(
    potential: Potential, species: Sequence[int] | None, generator: torch.Generator
) -> dict[str, Transform]:
    """Returns the transformations under which the potential says that it does not change.

    Each acts on positions, and on forces as on differences of positions.
    """
    symmetries: dict[str, Transform] = {}
    if potential.centered:
        rotation = random_rotation(potential.n_dims, generator)
        order = _permutation(species or [0] * potential.n_atoms, generator)
        symmetries["translation"] = lambda positions: positions + 1.7
        symmetries["rotation"] = lambda positions: positions @ rotation.T
        symmetries["permutation"] = lambda positions: positions[:, order]
    if potential.mirror_symmetric:
        mirror = torch.ones(potential.n_dims, dtype=torch.float64)
        mirror[0] = -1.0
        symmetries["reflection"] = lambda positions: positions * mirror
    return symmetries


def _permutation(species: Sequence[int], generator: torch.Generator) -> Tensor:
    """Returns a random order of the atoms that exchanges only those of equal species."""
    kinds = torch.as_tensor(species)
    order = torch.arange(len(kinds))
    for kind in kinds.unique():
        members = torch.nonzero(kinds == kind).flatten()
        order[members] = members[torch.randperm(len(members), generator=generator)]
    return order


def _symmetry_deviation(potential: Potential, positions: Tensor, transform: Transform) -> float:
    """Returns how far the energy is from invariant and the force from transforming along."""
    energy, force = potential.energy_and_force(positions)
    moved_energy, moved_force = potential.energy_and_force(transform(positions))
    expected_force = transform(force) - transform(torch.zeros_like(force))
    return max(_relative(moved_energy, energy), _relative(moved_force, expected_force))


def _relative(value: Tensor, expected: Tensor) -> float:
    """Returns the largest deviation over the largest magnitude (at least 1), infinite for NaN."""
    scale = expected.abs().amax().clamp_min(1.0)
    return ((value - expected).abs().amax() / scale).nan_to_num(nan=float("inf")).item()
