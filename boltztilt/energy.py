"""What a potential is, and the views of one that the method needs.

Energies are in units of kT. A non-finite energy is an allowed value (overlapping atoms): it is
counted, never raised, and such a configuration gets zero weight.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.whole_numbers import whole_number

STRUCTURES_AT_ONCE = 4096
"""Of which energies and forces are computed at a time: more need more memory and are no faster."""


@runtime_checkable
class Potential(Protocol):
    """An energy function of positions; subclasses define `energy` and inherit the rest.

    Attributes:
        n_atoms: number of atoms.
        n_dims: dimensions per atom.
        centered: the energy does not change under translation and rotation, so configurations
            live on the subspace of zero mean, and may be turned onto each other.
        mirror_symmetric: the energy does not change under reflection.
    """

    n_atoms: int
    n_dims: int
    centered: bool
    mirror_symmetric: bool

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        """Returns the energy U(x) in kT."""
        ...

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        """Returns U(x) and the force -dU/dx in kT per length, by autograd, without a graph."""
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_(True)
            energy = self.energy(leaf)
            if not energy.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}.energy cannot be differentiated: compute it from the "
                    "positions with torch operations, or define energy_and_force"
                )
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -gradient

    def force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch atoms dims"]:
        """Returns the force -dU/dx in kT per length."""
        return self.energy_and_force(positions)[1]

    def reward(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        """Returns the reward -U(x), the logarithm of the Boltzmann factor."""
        return -self.energy(positions)


@runtime_checkable
class BaseDensity(Protocol):
    """A normalised density rho_0 from which the tilt starts."""

    def log_density(self, positions: Float[Tensor, "batch atoms dims"]) -> Float64[Tensor, "batch"]:
        """Returns log rho_0(x)."""
        ...


class CallablePotential(Potential):
    """Any function of positions `(batch, atoms, dims)` that returns energies `(batch,)` in kT."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        n_atoms: int,
        n_dims: int = 3,
        centered: bool = True,
        mirror_symmetric: bool = False,
    ):
        self.function = function
        self.n_atoms = whole_number("n_atoms", n_atoms)
        self.n_dims = whole_number("n_dims", n_dims)
        self.centered = centered
        self.mirror_symmetric = mirror_symmetric

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        energy = self.function(positions)
        if not isinstance(energy, Tensor):
            raise TypeError(
                f"the potential must return a torch.Tensor, got {type(energy).__name__}"
            )
        if energy.shape != positions.shape[:1]:
            raise ValueError(
                f"the potential returned shape {tuple(energy.shape)} for positions of shape "
                f"{tuple(positions.shape)}: expected one energy per configuration, "
                f"({positions.shape[0]},)"
            )
        if not energy.dtype.is_floating_point:
            raise TypeError(
                f"the potential must return floating-point energies, not {energy.dtype}"
            )
        return energy


SAME_ENERGY = 1e-3
"""Relative difference, from 10 kT on, up to which two energies of a structure are the same."""


def check_same_energies(
    path: object, system: Any, stored: Tensor, computed: Float[Tensor, "batch"]
) -> None:
    """Raises ValueError where energies in a file are not those that a system computes."""
    if stored.shape != computed.shape:
        raise ValueError(
            f"{path} holds energies of shape {tuple(stored.shape)} for {len(computed)} structures; "
            f"expected ({len(computed)},)"
        )
    tolerance = SAME_ENERGY * computed.abs().clamp(min=10.0)
    both_failed = ~(torch.isfinite(stored) | torch.isfinite(computed))
    alike = ((stored - computed).abs() <= tolerance) | both_failed
    if differing := int((~alike).sum()):
        raise ValueError(
            f"{path}: {differing} of {len(computed)} energies differ from {system.name}'s; the "
            f"file follows another convention than {system.convention or 'this system'}, or was "
            "made for another system of that name: give that one"
        )


def check_behaviour(potential: Potential, positions: Float[Tensor, "batch atoms dims"]) -> None:
    """Tries an energy at the given positions: it must leave them alone.

    Warns where it is `centered` and changes when all atoms are moved together: it is then sampled
    where their mean is zero. `testing.check_potential` compares forces and more.

    Raises:
        ValueError: the energy changes its argument.
    """
    given = positions.clone()
    energies = potential.energy(given).double()
    if not torch.equal(given, positions):
        raise ValueError(
            "the potential changes the positions that it is given: let it compute with a copy "
            "(positions.clone())"
        )
    if not potential.centered:
        return
    apart = positions.std() * torch.arange(1, potential.n_dims + 1, dtype=positions.dtype)
    moved = potential.energy(positions + apart).double()
    if bool(((moved - energies).abs() > 0.01 * energies.abs().clamp(min=1.0)).any()):
        warnings.warn(
            "the energy changes where all atoms are moved together, and is sampled only where "
            "their mean is zero; CallablePotential(function, n_atoms, centered=False) is sampled "
            "everywhere, and an energy that removes the mean itself does not change",
            stacklevel=4,
        )


class CountedPotential(Potential):
    """A potential that counts its evaluations, one per configuration.

    `n_energy` and `n_force` count evaluated configurations (`energy_and_force` is one of each),
    `n_nonfinite` those whose energy came out infinite or NaN.
    """

    def __init__(self, potential: Potential):
        self.potential = potential
        self.n_atoms = potential.n_atoms
        self.n_dims = potential.n_dims
        self.centered = potential.centered
        self.mirror_symmetric = potential.mirror_symmetric
        self.n_energy = 0
        self.n_force = 0
        self.n_nonfinite = 0

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        energy = self.potential.energy(positions)
        self._count(energy)
        return energy

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        energy, force = self.potential.energy_and_force(positions)
        self._count(energy)
        self.n_force += len(positions)
        return energy, force

    def _count(self, energy: Tensor) -> None:
        self.n_energy += len(energy)
        self.n_nonfinite += int((~torch.isfinite(energy)).sum())


class TiltedPotential(Potential):
    """The energy of rho_a(x) ∝ rho_0(x) exp(a r(x)) with the relative reward r.

    U_a(x) = -(1 - a) log rho_0(x) + a U(x), from the base (a = 0) to the target (a = 1). The
    potential is not evaluated at a = 0 and the base not at a = 1, so an infinite energy outside
    the target's support does no harm there.
    """

    def __init__(self, potential: Potential, base: BaseDensity, a: float):
        if not 0.0 <= a <= 1.0:
            raise ValueError(f"the tilt a must lie in [0, 1], got {a}")
        self.potential = potential
        self.base = base
        self.a = a
        self.n_atoms = potential.n_atoms
        self.n_dims = potential.n_dims
        self.centered = potential.centered
        self.mirror_symmetric = potential.mirror_symmetric

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        if self.a == 1.0:
            return self.potential.energy(positions)
        base_energy = (self.a - 1.0) * self.base.log_density(positions).to(positions.dtype)
        if self.a == 0.0:
            return base_energy
        return base_energy + self.a * self.potential.energy(positions)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        if self.a == 1.0:
            return self.potential.energy_and_force(positions)
        base_part = TiltedPotential(self.potential, self.base, 0.0)
        base_energy, base_force = Potential.energy_and_force(base_part, positions)
        energy, force = (1.0 - self.a) * base_energy, (1.0 - self.a) * base_force
        if self.a == 0.0:
            return energy, force
        target_energy, target_force = self.potential.energy_and_force(positions)
        return energy + self.a * target_energy, force + self.a * target_force


def relative_reward(
    energy: Float[Tensor, "batch"],
    base: BaseDensity,
    positions: Float[Tensor, "batch atoms dims"],
) -> Float64[Tensor, "batch"]:
    """Returns r(x) = -U(x) - log rho_0(x), the reward relative to the normalised base.

    With it Z_a = E_0[exp(a r)] and log Z_1 is the log of the configuration integral of exp(-U)
    over the subspace on which the base lives.
    """
    return -energy.double() - base.log_density(positions)


def in_parts(
    function: Callable[[Tensor], Tensor], positions: Float[Tensor, "batch atoms dims"]
) -> Tensor:
    """Returns an energy or force of many configurations, `STRUCTURES_AT_ONCE` at a time."""
    return torch.cat([function(part) for part in positions.split(STRUCTURES_AT_ONCE)])
