"""Markov chains that leave exp(-U) unchanged: random walk, MALA and HMC, vectorised over chains.

Every kernel moves a whole batch of chains at once. When the potential is `centered`, momenta and
noise are projected, so that the chains live on the zero-mean subspace. A chain that starts at a
non-finite energy (overlapping atoms) accepts the first finite proposal it sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.geometry import remove_mean


@dataclass(frozen=True)
class ChainState:
    """Where the chains stand and how they moved; `acceptance` is a mean over steps and chains."""

    positions: Float[Tensor, "batch atoms dims"]
    energies: Float64[Tensor, "batch"]
    forces: Float[Tensor, "batch atoms dims"] | None
    step_size: float
    acceptance: float


@dataclass(frozen=True)
class _Proposal:
    """A proposed move; `log_ratio` is log q(x|x') - log q(x'|x), without the energies."""

    positions: Float[Tensor, "batch atoms dims"]
    energies: Float64[Tensor, "batch"]
    forces: Float[Tensor, "batch atoms dims"] | None
    log_ratio: Float64[Tensor, "batch"]


def random_walk(
    potential: Potential,
    positions: Float[Tensor, "batch atoms dims"],
    n_steps: int,
    step_size: float,
    generator: torch.Generator,
    adapt: bool = True,
    target_acceptance: float = 0.25,
) -> ChainState:
    """Chains after `n_steps` Metropolis steps x' = x + step_size * noise."""
    _check(n_steps, step_size)

    def propose(state: ChainState, step_size: float) -> _Proposal:
        noise = _normal(state.positions, generator, potential.centered)
        moved = state.positions + step_size * noise
        energies = _finite_or_infinite(potential.energy(moved))
        return _Proposal(moved, energies, None, torch.zeros_like(energies))

    start = _start(potential, positions, step_size, with_forces=False)
    return _run(propose, start, n_steps, generator, target_acceptance if adapt else None)


def mala(
    potential: Potential,
    positions: Float[Tensor, "batch atoms dims"],
    n_steps: int,
    step_size: float,
    generator: torch.Generator,
    adapt: bool = True,
    target_acceptance: float = 0.6,
) -> ChainState:
    """Chains after `n_steps` steps of the Metropolis-adjusted Langevin algorithm.

    x' = x + (s²/2) D(x) + s * noise, with the step size s a length (the noise per coordinate) and
    D the force truncated to |D| <= 2 sqrt(d) / s: the drift never exceeds the length of the noise.
    The same truncation enters the reverse move, so detailed balance is exact.

    Reference: Roberts & Tweedie (1996), Exponential convergence of Langevin distributions and
        their discrete approximations, section 1.4.2 (MALTA), doi:10.2307/3318418.
    """
    _check(n_steps, step_size)

    def propose(state: ChainState, step_size: float) -> _Proposal:
        assert state.forces is not None
        noise = _normal(state.positions, generator, potential.centered)
        drift = truncated_drift(state.forces, step_size)
        moved = state.positions + drift + step_size * noise
        energies, forces = _energy_and_force(potential, moved)
        both = (drift + truncated_drift(forces, step_size)) / step_size
        log_ratio = -(both * (noise + 0.5 * both)).sum(dim=(1, 2), dtype=torch.float64)
        return _Proposal(moved, energies, forces, log_ratio)

    start = _start(potential, positions, step_size, with_forces=True)
    return _run(propose, start, n_steps, generator, target_acceptance if adapt else None)


def hmc(
    potential: Potential,
    positions: Float[Tensor, "batch atoms dims"],
    n_steps: int,
    step_size: float,
    n_leapfrog: int,
    generator: torch.Generator,
    adapt: bool = True,
    target_acceptance: float = 0.8,
    scale: Float[Tensor, "atoms atoms"] | None = None,
) -> ChainState:
    """Chains after `n_steps` Hamiltonian trajectories of `n_leapfrog` leapfrog steps.

    Each trajectory draws its own step within 20 % of `step_size`, so that none is periodic. Forces
    are truncated as in `mala`, so that chains leave overlaps; leapfrog with any function of the
    positions in place of the force is reversible and keeps volume, and the energies that decide on
    acceptance are the true ones.

    Masses are one, unless a symmetric matrix S is given as `scale`: coordinates S⁻¹ x then have
    unit masses, so that modes along which S stretches move further. With the square root of a
    covariance, chains move alike along all of its modes.

    Reference: Neal (2011), MCMC using Hamiltonian dynamics, sections 4.1 and 5.3, arXiv:1206.1901.
    """
    _check(n_steps, step_size)
    matrix = None if scale is None else scale.to(positions)

    def scaled(vectors: Tensor) -> Tensor:
        return vectors if matrix is None else matrix @ vectors

    if n_leapfrog < 1:
        raise ValueError(f"n_leapfrog is {n_leapfrog}; give at least 1 leapfrog step")

    def propose(state: ChainState, step_size: float) -> _Proposal:
        assert state.forces is not None
        step = step_size * (0.8 + 0.4 * float(_uniform(1, generator)))
        start = _normal(state.positions, generator, potential.centered)
        momenta, moved, forces = start, state.positions, state.forces
        for _ in range(n_leapfrog):
            momenta = momenta + truncated_drift(scaled(forces), step) / step
            moved = moved + step * scaled(momenta)
            energies, forces = _energy_and_force(potential, moved)
            momenta = momenta + truncated_drift(scaled(forces), step) / step
        return _Proposal(moved, energies, forces, _kinetic(start) - _kinetic(momenta))

    start = _start(potential, positions, step_size, with_forces=True)
    return _run(propose, start, n_steps, generator, target_acceptance if adapt else None)


def truncated_drift(
    forces: Float[Tensor, "batch atoms dims"], step_size: float
) -> Float[Tensor, "batch atoms dims"]:
    """Drift (s²/2) F, shortened where it is longer than the typical noise s sqrt(d)."""
    longest = 2.0 * math.sqrt(forces[0].numel()) / step_size
    norms = torch.linalg.vector_norm(forces, dim=(1, 2), keepdim=True)
    return forces * (0.5 * step_size**2 * longest / norms.clamp(min=longest))


def _run(
    propose: Callable[[ChainState, float], _Proposal],
    state: ChainState,
    n_steps: int,
    generator: torch.Generator,
    target_acceptance: float | None,
) -> ChainState:
    """The state after `n_steps`; given a target, log step_size adapts to it by Robbins-Monro."""
    step_size, total = state.step_size, 0.0
    for step in range(n_steps):
        state, acceptance = _metropolis(state, propose(state, step_size), generator)
        total += acceptance
        if target_acceptance is not None:
            spread = math.sqrt(target_acceptance * (1.0 - target_acceptance) * (step + 1))
            step_size *= math.exp((acceptance - target_acceptance) / spread)
    mean_acceptance = total / max(n_steps, 1)
    return ChainState(state.positions, state.energies, state.forces, step_size, mean_acceptance)


def _metropolis(
    state: ChainState, proposal: _Proposal, generator: torch.Generator
) -> tuple[ChainState, float]:
    """The next state and the mean acceptance probability."""
    log_ratio = state.energies - proposal.energies + proposal.log_ratio
    log_ratio = torch.where(torch.isfinite(state.energies), log_ratio, math.inf)
    log_ratio = torch.where(torch.isfinite(proposal.energies), log_ratio, -math.inf)
    probability = log_ratio.nan_to_num(nan=-math.inf).clamp(max=0.0).exp()
    uniform = _uniform(len(probability), generator).to(probability.device)
    accept = uniform < probability
    wide = accept[:, None, None]
    forces = None
    if state.forces is not None and proposal.forces is not None:
        forces = torch.where(wide, proposal.forces, state.forces)
    positions = torch.where(wide, proposal.positions, state.positions)
    energies = torch.where(accept, proposal.energies, state.energies)
    acceptance = float(probability.mean())
    return ChainState(positions, energies, forces, state.step_size, acceptance), acceptance


def _start(
    potential: Potential, positions: Tensor, step_size: float, with_forces: bool
) -> ChainState:
    """The state before the first step, projected onto the subspace of the potential."""
    positions = positions.detach()
    if potential.centered:
        positions = remove_mean(positions)
    if with_forces:
        energies, forces = _energy_and_force(potential, positions)
        return ChainState(positions, energies, forces, step_size, 0.0)
    energies = _finite_or_infinite(potential.energy(positions))
    return ChainState(positions, energies, None, step_size, 0.0)


def _energy_and_force(potential: Potential, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (float64, NaN as inf) and forces (non-finite ones as 0, zero mean if centered)."""
    energies, forces = potential.energy_and_force(positions)
    forces = forces.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if potential.centered:
        forces = remove_mean(forces)
    return _finite_or_infinite(energies), forces


def _finite_or_infinite(energies: Tensor) -> Float64[Tensor, "batch"]:
    return energies.detach().double().nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)


def _normal(like: Tensor, generator: torch.Generator, centered: bool) -> Tensor:
    """Standard normal noise shaped like the positions, drawn where the generator lives."""
    noise = torch.randn(
        like.shape, generator=generator, device=generator.device, dtype=like.dtype
    ).to(like.device)
    return remove_mean(noise) if centered else noise


def _uniform(n: int, generator: torch.Generator) -> Float64[Tensor, "n"]:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _kinetic(momenta: Tensor) -> Float64[Tensor, "batch"]:
    return 0.5 * momenta.square().sum(dim=(1, 2), dtype=torch.float64)


def _check(n_steps: int, step_size: float) -> None:
    if n_steps < 0:
        raise ValueError(f"n_steps is {n_steps}; give 0 or more")
    if not step_size > 0:
        raise ValueError(f"step_size is {step_size}; give a positive length")
