"""Reference samples of a molecule: Langevin dynamics that starts from replica exchange."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from boltztilt.analysis.autocorrelation import correlated_mean, effective_number
from boltztilt.analysis.dynamics import Langevin, fingerprint, run_replicas
from boltztilt.analysis.equilibration import (
    MOST_LAPLACIANS,
    chain_mean,
    drift,
    r_hat,
    temperature_check,
    virials,
)
from boltztilt.analysis.reference import Reference
from boltztilt.analysis.tempered import Tempered, check_source, molecular_observables
from boltztilt.energy import CountedPotential
from boltztilt.sampling.estimate import Estimate
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.refinement import first_step
from boltztilt.systems.system import System
from boltztilt.whole_numbers import whole_number

N_BLOCKS = 20  # of a chain; whole blocks count as independent of each other
N_ADAPTING, N_CORRECTIONS, N_LEAPFROG = 40, 10, 10
BATCH = 4096


def make_molecular_reference(
    system: System,
    tempered: Tempered,
    n_samples: int = 10_000,
    seed: int = 0,
    settings: Langevin | None = None,
    state_path: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """`n_samples` of a molecule from independent replicas of Langevin dynamics, with checks.

    Replicas start at structures that replica exchange drew from the target, because dynamics may
    never leave a basin: alanine dipeptide that was cooled into phi > 0 stays there for
    nanoseconds. Frames therefore follow the target however slow the dynamics is. Replicas from
    the same ladder count as one chain: errors are those of independent ladders, and r_hat is far
    from 1 where replica exchange did not mix. The deviations from replica exchange tell whether
    the dynamics itself, whose replicas start there, leads away from it, and the drift of replica
    exchange whether its ladders still forgot their start.

    The frames are then moved by a few Hamiltonian trajectories with Metropolis acceptance. These
    leave the target unchanged, so that bonds and angles follow it without the error of the time
    step; which basin a frame is in remains the dynamics' business.

    Args:
        tempered: from `temper`; one replica starts at each of its structures, fewer if there are
            not two samples for each.
        state_path: where the dynamics is kept while it runs; deleting it is left to the caller.
        resume: continue the dynamics in `state_path`, if there is any, to the same result.
        progress: called with the picoseconds done and wanted.
    """
    started = time.perf_counter()
    source = check_source(system)
    if tempered.system != fingerprint(source):
        raise ValueError(
            f"replica exchange sampled other forces or another temperature than {system.name}'s: "
            "run it anew"
        )
    n_samples = whole_number("n_samples", n_samples, least=4)
    settings = settings or Langevin()
    starts = chosen_starts(tempered.starts, n_samples // 2)
    n_ladders, n_replicas = len(starts), starts.shape[0] * starts.shape[1]
    frames = run_replicas(
        source,
        starts.flatten(0, 1),
        math.ceil(n_samples / n_replicas),
        seed,
        settings,
        Path(state_path) if state_path else None,
        resume,
        progress,
    )
    generator = torch.Generator().manual_seed(seed)
    chains = frames.reshape(n_ladders, -1, *frames.shape[2:])
    positions, energies, correction = correct(system, chains, generator)
    info = {
        "method": "Langevin dynamics, corrected by Hamiltonian Monte Carlo",
        "seed": seed,
        "n_replicas": n_replicas,
        "n_frames": frames.shape[1],
        **asdict(settings),
        **correction,
        "wall_time": time.perf_counter() - started,
        **tempered.info,
    }
    checks = check_dynamics(system, positions, energies, starts.shape[1])
    checks |= compare(checks["averages"], tempered.averages)
    checks |= {f"tempering_{name}": values for name, values in tempered.checks.items()}
    order = torch.randperm(energies.numel(), generator=generator)[:n_samples]
    groups = order // energies.shape[1]
    return Reference(
        positions.flatten(0, 1)[order], energies.flatten()[order], system, checks, info, groups
    )


def chosen_starts(
    starts: Float[Tensor, "ladders starts atoms 3"], at_most: int
) -> Float[Tensor, "fewer_ladders fewer_starts atoms 3"]:
    """As many of the starts as wanted or less: the last ones of each ladder, of all if possible."""
    n_ladders = min(len(starts), at_most)
    n_starts = min(starts.shape[1], at_most // n_ladders)
    return starts[:n_ladders, -n_starts:]


def correct(
    system: System,
    frames: Float[Tensor, "chains frames atoms 3"],
    generator: torch.Generator,
) -> tuple[Tensor, Float64[Tensor, "chains frames"], dict[str, Any]]:
    """Frames after Hamiltonian trajectories at the target, their energies, and how they moved.

    The step size is adapted on copies that are thrown away: a step that follows the chains would
    not leave the target exactly unchanged.
    """
    potential = CountedPotential(system.potential)
    move = partial(
        hmc,
        potential,
        n_leapfrog=N_LEAPFROG,
        generator=generator,
        scale=system.base.mode_scale,
    )
    flat = frames.flatten(0, 1)
    chosen = torch.randint(len(flat), (min(len(flat), 256),), generator=generator)
    step_size = move(flat[chosen], N_ADAPTING, first_step(system)).step_size
    states = [move(part, N_CORRECTIONS, step_size, adapt=False) for part in flat.split(BATCH)]
    positions = torch.cat([state.positions for state in states]).reshape(frames.shape)
    energies = torch.cat([state.energies for state in states]).reshape(frames.shape[:2])
    info = {
        "correction_step": step_size,
        "correction_acceptance": states[0].acceptance,
        "n_energy": potential.n_energy,
    }
    return positions, energies, info


def check_dynamics(
    system: System,
    positions: Float[Tensor, "chains frames atoms 3"],
    energies: Float64[Tensor, "chains frames"],
    n_replicas: int = 1,
) -> dict[str, Any]:
    """The checks of `check_equilibration` for few long chains, and averages of slow observables.

    Errors are those of correlated chains. Virial and configurational temperature, which forget
    quickly, take blocks of each chain as independent. A chain holds the frames of so many replicas
    one after another; the drift is that within replicas.
    """
    flat = positions.flatten(0, 1)
    observables = molecular_observables(system, flat, energies.flatten())
    series = {name: values.reshape(energies.shape) for name, values in observables.items()}
    return {
        "energy": correlated_mean(energies),
        "energy_sd": float(energies.std()),
        "virial": chain_mean(blocks(virials(system, flat).reshape(energies.shape))),
        **temperature_check(
            system, blocks(positions[:, :: math.ceil(energies.numel() / MOST_LAPLACIANS)])
        ),
        "drift": drift(energies.reshape(len(energies), n_replicas, -1).mean(1)),
        "r_hat": {name: r_hat(values) for name, values in series.items()},
        "averages": {name: correlated_mean(values) for name, values in series.items()},
        "independent": {name: effective_number(values) for name, values in series.items()},
    }


def compare(averages: Mapping[str, Estimate], tempered: Mapping[str, Estimate]) -> dict[str, Any]:
    """Averages of replica exchange, and by how many standard errors those of dynamics differ."""
    deviations = {name: deviation(averages[name], other) for name, other in tempered.items()}
    return {"tempering": dict(tempered), "tempering_deviation": deviations}


def deviation(first: Estimate, second: Estimate) -> float:
    """first - second in standard errors; 0 where neither error is known."""
    error = math.hypot(*(each.error for each in (first, second) if each.error > 0))
    return (first.value - second.value) / error if error else 0.0


def blocks(
    values: Shaped[Tensor, "chains frames *rest"],
) -> Shaped[Tensor, "blocks rounds *rest"]:
    """The frames of every chain in up to 20 blocks of equal length; what is left over is lost."""
    n_frames = values.shape[1]
    length = math.ceil(n_frames / N_BLOCKS)
    n_blocks = n_frames // length
    return values[:, : n_blocks * length].reshape(-1, length, *values.shape[2:])
