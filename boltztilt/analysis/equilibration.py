"""Tests that samples of the target pass once their Markov chains are equilibrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.analysis.metrics import short_pairs
from boltztilt.energy import Potential, in_parts
from boltztilt.geometry import remove_mean
from boltztilt.potentials.double_well import DoubleWell
from boltztilt.sampling.estimate import Estimate
from boltztilt.systems.system import System

MOST_LAPLACIANS = 2000
LARGEST_DEVIATION = 5.0  # standard errors by which a check may miss its exact value
LARGEST_R_HAT = 1.1
LARGEST_DEVIATION_OF_TEMPERING = 3.0
TEMPERING_WORDS = {
    "tempering_deviation": "differs from replica exchange by {:+.1f} standard errors",
    "tempering_drift": (
        "drifts in replica exchange by {:+.1f} standard errors, it needs more rounds"
    ),
}


def check_equilibration(
    system: System,
    positions: Float[Tensor, "chains rounds atoms dims"],
    energies: Float64[Tensor, "chains rounds"],
) -> dict[str, Any]:
    """Tests that samples of the target pass, with errors over independent chains.

    - energy: <U> and its standard deviation.
    - virial: <x·∇U> / d = 1, with d the dimensions of the space.
    - configurational_temperature: <|∇U|²> / <ΔU> = 1, on some of the chains; left out where
      autograd cannot follow the energy.
    - drift: mean energy of the later rounds less that of the earlier ones, in standard errors.
    - r_hat: the Gelman-Rubin statistic of slow observables; 1 when chains forget their start.

    References: Gelman & Rubin (1992), doi:10.1214/ss/1177011136; Rugh (1997), Dynamical approach
        to temperature, doi:10.1103/PhysRevLett.78.772.
    """
    n_chains, n_rounds = energies.shape
    flat = positions.flatten(0, 1)
    observables = slow_observables(system, flat, energies.flatten())
    return {
        "energy": chain_mean(energies),
        "energy_sd": float(energies.std()),
        "virial": chain_mean(virials(system, flat).reshape(n_chains, n_rounds)),
        **temperature_check(system, positions),
        "drift": drift(energies),
        "r_hat": {
            name: r_hat(values.reshape(n_chains, n_rounds)) for name, values in observables.items()
        },
    }


def failed_checks(checks: Mapping[str, Any]) -> list[str]:
    """What the checks of equilibration object to, in words; empty when all are passed."""
    failed = []
    for name in ("virial", "configurational_temperature"):
        found = checks.get(name)
        if found and not abs(found.value - 1) <= LARGEST_DEVIATION * found.error:
            failed.append(f"{name.replace('_', ' ')} {checks[name]} instead of 1")
    if abs(drifted := checks.get("drift", 0.0)) > LARGEST_DEVIATION:
        failed.append(f"mean energy drifts by {drifted:+.1f} standard errors")
    for name, value in checks.get("r_hat", {}).items():
        if value > LARGEST_R_HAT:
            failed.append(f"r_hat of {name.replace('_', ' ')} {value:.2f}, above {LARGEST_R_HAT}")
    for check, words in TEMPERING_WORDS.items():
        for name, value in checks.get(check, {}).items():
            if abs(value) > LARGEST_DEVIATION_OF_TEMPERING:
                failed.append(f"{name.replace('_', ' ')} {words.format(value)}")
    return failed


def slow_observables(
    system: System,
    positions: Float[Tensor, "batch atoms dims"],
    energies: Float64[Tensor, "batch"],
) -> Mapping[str, Float64[Tensor, "batch"]]:
    """What chains forget last: energy and size, in an external field also where the centre of mass
    is, and for a double well the number of short pairs."""
    squares = remove_mean(positions).double().square().sum(dim=2)
    observables = {"energy": energies, "radius_of_gyration": squares.mean(dim=1).sqrt()}
    if not system.potential.centered:
        centres = positions.double().mean(dim=1).unbind(dim=1)
        observables |= {f"centre_{axis}": centre for axis, centre in enumerate(centres, 1)}
    if isinstance(system.potential, DoubleWell):
        observables["short_pairs"] = short_pairs(positions, system.potential.centre).double()
    return observables


def temperature_check(
    system: System, positions: Float[Tensor, "chains rounds atoms dims"]
) -> dict[str, Estimate]:
    """The configurational temperature by name; nothing where autograd cannot follow the energy."""
    with torch.enable_grad():
        leaf = positions[0, :1].detach().requires_grad_(True)
        if not system.potential.energy(leaf).requires_grad:
            return {}
    return {"configurational_temperature": configurational_temperature(system, positions)}


def configurational_temperature(
    system: System, positions: Float[Tensor, "chains rounds atoms dims"]
) -> Estimate:
    """<|∇U|²> / <ΔU>, which is 1 at kT = 1, with its error over chains (delta method)."""
    n_used = max(2, min(len(positions), MOST_LAPLACIANS // positions.shape[1]))
    used = positions[:n_used]
    flat = used.flatten(0, 1).double()
    forces = _centred(system.potential, system.potential.force(flat))
    squares = forces.square().sum(dim=(1, 2)).reshape(used.shape[:2]).mean(dim=1)
    curvatures = laplacian(system.potential, flat).reshape(used.shape[:2]).mean(dim=1)
    ratio = squares.mean() / curvatures.mean()
    residuals = (squares - ratio * curvatures) / curvatures.mean()
    return Estimate(float(ratio), float(residuals.std()) / math.sqrt(n_used))


def laplacian(
    potential: Potential, positions: Float[Tensor, "batch atoms dims"]
) -> Float[Tensor, "batch"]:
    """The trace of the Hessian of U, exact by autograd, on the subspace the potential lives on."""
    leaf = positions.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(potential.energy(leaf).sum(), leaf, create_graph=True)
    total = torch.zeros(len(leaf), dtype=leaf.dtype)
    for index in range(leaf[0].numel()):
        direction = torch.zeros_like(leaf[:1]).flatten(1)
        direction[:, index] = 1.0
        direction = _centred(potential, direction.view_as(leaf[:1]))
        (column,) = torch.autograd.grad((gradient * direction).sum(), leaf, retain_graph=True)
        total += (column * direction).sum(dim=(1, 2))
    return total


def virials(
    system: System, positions: Float[Tensor, "batch atoms dims"]
) -> Float64[Tensor, "batch"]:
    """-x·F over the degrees of freedom of each structure, in kT; one on average at the target."""
    forces = _centred(system.potential, in_parts(system.potential.force, positions))
    work = (_centred(system.potential, positions) * forces).sum(dim=(1, 2), dtype=torch.float64)
    return -work / system.base.dof


def chain_mean(values: Float64[Tensor, "chains rounds"]) -> Estimate:
    """The mean, with its standard error over independent chains."""
    means = values.mean(dim=1)
    return Estimate(float(means.mean()), float(means.std()) / math.sqrt(len(means)))


def drift(values: Float64[Tensor, "chains rounds"]) -> float:
    """The mean of the later rounds less that of the earlier ones, in standard errors over chains.

    It is 0 where no chain's mean changes at all.
    """
    half = values.shape[1] // 2
    changes = values[:, -half:].mean(dim=1) - values[:, :half].mean(dim=1)
    error = float(changes.std()) / math.sqrt(len(changes))
    mean = float(changes.mean())
    return mean / error if error > 0 else 0.0 if mean == 0 else math.copysign(math.inf, mean)


def r_hat(values: Float64[Tensor, "chains rounds"]) -> float:
    """The Gelman-Rubin statistic sqrt(((n-1) W + B) / (n W)) of `n` rounds.

    W is the variance within chains, B / n that of the chain means. It is 1 for independent
    samples, and large for chains that keep to themselves.
    """
    n = values.shape[1]
    within = values.var(dim=1).mean()
    between = values.mean(dim=1).var()
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return float(((n - 1) / n + between / within).sqrt())


def _centred(potential: Potential, vectors: Tensor) -> Tensor:
    return remove_mean(vectors) if potential.centered else vectors
