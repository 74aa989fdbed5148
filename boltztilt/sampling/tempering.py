"""Replica exchange: Hamiltonian chains at several temperatures that exchange their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.sampling.mcmc import hmc


@dataclass(frozen=True)
class TemperedChains:
    """Ladders of chains, one chain per temperature in each.

    Attributes:
        positions: one structure per ladder and temperature, the target's temperature first.
        energies: U of these, in kT of the target.
        step_size: of the Hamiltonian trajectories.
        exchanged: share of the exchanges accepted between neighbouring temperatures.
    """

    positions: Float[Tensor, "ladders temperatures atoms dims"]
    energies: Float64[Tensor, "ladders temperatures"]
    step_size: float
    exchanged: tuple[float, ...] = ()


class ScaledPotential(Potential):
    """beta_k U for ladders of chains in one batch, the temperature k running fastest."""

    def __init__(self, potential: Potential, betas: Float64[Tensor, "temperatures"]):
        self.potential = potential
        self.betas = betas
        self.n_atoms, self.n_dims = potential.n_atoms, potential.n_dims
        self.centered, self.mirror_symmetric = potential.centered, potential.mirror_symmetric

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        return self._scale(positions) * self.potential.energy(positions)

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms dims"]]:
        energies, forces = self.potential.energy_and_force(positions)
        scale = self._scale(positions)
        return scale * energies, scale[:, None, None] * forces

    def _scale(self, positions: Tensor) -> Float[Tensor, "batch"]:
        return self.betas.to(positions).repeat(len(positions) // len(self.betas))


def replica_exchange(
    potential: Potential,
    chains: TemperedChains,
    betas: Float64[Tensor, "temperatures"],
    n_rounds: int,
    n_leapfrog: int,
    generator: torch.Generator,
    scale: Float[Tensor, "atoms atoms"] | None = None,
) -> TemperedChains:
    """Chains after `n_rounds` of one Hamiltonian trajectory and one exchange each.

    Chain k of a ladder samples exp(-beta_k U). Neighbours i, i + 1 exchange their positions with
    probability min(1, exp((beta_i - beta_{i+1}) (U_i - U_{i+1}))), even and odd pairs in turn,
    which carries structures up and down faster than pairs drawn at random.

    Args:
        betas: target's temperature over that of each chain; the first is 1, the rest smaller.
        scale: of the momenta, see `mcmc.hmc`.

    Reference: Sugita & Okamoto (1999), doi:10.1016/S0009-2614(99)01123-9, equation 17; the order
        of exchanges: Syed et al. (2022), doi:10.1111/rssb.12464.
    """
    check_betas(betas)
    scaled = ScaledPotential(potential, betas)
    shape = chains.positions.shape
    accepted, tried = torch.zeros(2, len(betas) - 1)
    for round_ in range(n_rounds):
        flat = chains.positions.flatten(0, 1)
        settings = (1, chains.step_size, n_leapfrog, generator)
        state = hmc(scaled, flat, *settings, adapt=False, scale=scale)
        energies = state.energies.reshape(shape[:2]) / betas
        order, swapped = exchange(energies, betas, round_ % 2, generator)
        accepted += swapped.float().mean(dim=0)
        tried[round_ % 2 :: 2] += 1
        positions = state.positions.reshape(shape)
        chains = TemperedChains(
            torch.gather(positions, 1, order[:, :, None, None].expand(shape)),
            torch.gather(energies, 1, order),
            chains.step_size,
            tuple((accepted / tried.clamp(min=1)).tolist()),
        )
    return chains


def start_ladders(
    potential: Potential,
    positions: Float[Tensor, "ladders atoms dims"],
    betas: Float64[Tensor, "temperatures"],
    step_size: float,
    n_adapting: int,
    n_leapfrog: int,
    generator: torch.Generator,
    scale: Float[Tensor, "atoms atoms"] | None = None,
) -> TemperedChains:
    """Ladders whose chains start at one structure, after trajectories that adapt the step size.

    All chains share the step size, which therefore suits the lowest temperature.
    """
    check_betas(betas)
    flat = positions.repeat_interleave(len(betas), dim=0)
    scaled = ScaledPotential(potential, betas)
    state = hmc(scaled, flat, n_adapting, step_size, n_leapfrog, generator, scale=scale)
    shape = (len(positions), len(betas))
    energies = state.energies.reshape(shape) / betas
    return TemperedChains(
        state.positions.reshape(*shape, *flat.shape[1:]), energies, state.step_size
    )


def geometric_betas(largest_temperature: float, n: int) -> Float64[Tensor, "temperatures"]:
    """`n` values of beta from 1 down to 1 / largest_temperature with one ratio throughout."""
    exponents = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    return torch.as_tensor(largest_temperature, dtype=torch.float64) ** -exponents


def exchange(
    energies: Float64[Tensor, "ladders temperatures"],
    betas: Float64[Tensor, "temperatures"],
    first: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "ladders temperatures"], Bool[Tensor, "ladders pairs"]]:
    """The order of positions after exchanges of the pairs (first, first + 1), ..., and which."""
    log_ratio = (betas[:-1] - betas[1:]) * (energies[:, :-1] - energies[:, 1:])
    uniform = torch.rand(log_ratio.shape, generator=generator, dtype=torch.float64)
    swapped = uniform.log() < log_ratio
    swapped[:, 1 - first :: 2] = False
    index = torch.arange(len(betas)).expand(energies.shape).clone()
    index[:, :-1] += swapped.long()
    index[:, 1:] -= swapped.long()
    return index, swapped


def check_betas(betas: Float64[Tensor, "temperatures"]) -> None:
    """Raises unless the temperatures rise from that of the target."""
    if len(betas) < 2 or betas[0] != 1 or not bool((betas[1:] < betas[:-1]).all()):
        raise ValueError(
            f"betas are {betas.tolist()}; give 1 (the target) and then at least one smaller, "
            "positive number, in descending order"
        )
    if not betas[-1] > 0:
        raise ValueError(f"the last beta is {float(betas[-1])}: all must be positive")
