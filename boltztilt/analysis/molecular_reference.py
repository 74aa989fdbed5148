"""Reference samples of a molecule: Langevin dynamics that starts from replica exchange."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from boltztilt.analysis.autocorrelation import correlated_mean, effective_number
from boltztilt.analysis.conformations import BASINS, basin_index, residue_torsions
from boltztilt.analysis.dynamics import Langevin, find_source, fingerprint, run_replicas
from boltztilt.analysis.equilibration import (
    MOST_LAPLACIANS,
    chain_mean,
    drift,
    r_hat,
    slow_observables,
    temperature_check,
    virials,
)
from boltztilt.analysis.reference import Reference
from boltztilt.checkpoint import load_state, save_state
from boltztilt.energy import CountedPotential
from boltztilt.potentials.openmm_potential import OpenMMSource
from boltztilt.sampling.estimate import Estimate
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.refinement import first_step
from boltztilt.sampling.tempering import (
    geometric_betas,
    replica_exchange,
    start_ladders,
)
from boltztilt.systems.system import System

N_BLOCKS = 20  # of a chain; whole blocks count as independent of each other
N_ADAPTING, N_CORRECTIONS, N_LEAPFROG = 40, 10, 10
BATCH = 4096
HOTTEST = 3.0  # of the temperature of the target
N_TEMPERATURES, N_LADDERS, N_ROUNDS = 6, 45, 8000  # 270 chains fill one compiled batch
TEMPERING_LEAPFROG, BURN_IN = 20, 0.25  # alanine dipeptide forgets its start in 1,000 rounds
STARTS_PER_LADDER = 10
OBSERVED_EVERY = 4  # rounds; even, for exchanges take turns


@dataclass(frozen=True)
class Tempered:
    """What replica exchange found.

    Attributes:
        starts: structures of the target from each ladder, evenly spaced over its rounds.
        averages: of the slow observables, with errors over the independent ladders.
        checks: by observable, "r_hat" of the ladders and "drift", how far the later rounds differ
            from the earlier ones in standard errors: large where ladders keep to themselves, or
            still forget their start.
        info: how it was made.
        system: the `fingerprint` of the System that was sampled.
    """

    starts: Float[Tensor, "ladders starts atoms 3"]
    averages: dict[str, Estimate]
    checks: dict[str, dict[str, float]]
    info: dict[str, Any]
    system: str

    def save(self, path: Path) -> None:
        """Writes everything, whole or not at all."""
        averages = {name: tuple(average) for name, average in self.averages.items()}
        state = {"starts": self.starts, "averages": averages, "checks": self.checks}
        state["system"] = self.system
        progress = self.info["tempering_rounds"]
        save_state(path, {"progress": progress, "info": self.info, **state})

    @classmethod
    def load(cls, path: Path) -> Tempered:
        """What `save` wrote."""
        state = load_state(path)
        averages = {name: Estimate(*average) for name, average in state["averages"].items()}
        kept = (state["starts"], averages, state["checks"], state["info"])
        return cls(*kept, state.get("system", "unknown"))


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
    if n_samples < 4:
        raise ValueError(f"n_samples is {n_samples}; a reference needs at least 4")
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


def check_source(system: System) -> OpenMMSource:
    """The OpenMM System of a molecule.

    Raises:
        ValueError: there is none.
    """
    source = find_source(system.potential)
    if source is None or system.molecule is None:
        raise ValueError(
            f"{system.name} is not a molecule described by an OpenMM System, which dynamics needs"
        )
    return source


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


def molecular_observables(
    system: System,
    positions: Float[Tensor, "batch atoms 3"],
    energies: Float64[Tensor, "batch"],
) -> dict[str, Float64[Tensor, "batch"]]:
    """Energy, size, and indicators of the basins of the backbone."""
    indicators = {
        f"{basin} of {residue}": (basin_index(angles) == number).double()
        for residue, angles in residue_torsions(positions, system).items()
        for number, basin in enumerate(BASINS)
    }
    return {**slow_observables(system, positions, energies), **indicators}


def temper(
    system: System,
    n_rounds: int = N_ROUNDS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tempered:
    """Structures and averages of the target by replica exchange up to three times its temperature.

    Every ladder starts at the molecule's structure; the first quarter of the rounds is left out.
    """
    molecule_source = check_source(system)
    if n_rounds < 10:
        raise ValueError(f"n_rounds is {n_rounds}; replica exchange needs at least 10")
    assert system.molecule is not None
    started, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    potential, scale = system.potential, system.base.mode_scale
    betas = geometric_betas(HOTTEST, N_TEMPERATURES)
    structures = system.molecule.structure[None].repeat(N_LADDERS, 1, 1)
    settings = (TEMPERING_LEAPFROG, generator, scale)
    chains = start_ladders(potential, structures, betas, first_step(system), N_ADAPTING, *settings)
    series, exchanged, seen = [], [], []
    for done in range(0, n_rounds, OBSERVED_EVERY):
        chains = replica_exchange(potential, chains, betas, OBSERVED_EVERY, *settings)
        if done >= BURN_IN * n_rounds:
            seen.append(chains.positions[:, 0].clone())
            series.append(molecular_observables(system, seen[-1], chains.energies[:, 0]))
            exchanged.append(chains.exchanged)
        if progress is not None:
            progress(min(done + OBSERVED_EVERY, n_rounds), n_rounds)
    joined = {name: torch.stack([each[name] for each in series], dim=1) for name in series[0]}
    averages = {name: chain_mean(values) for name, values in joined.items()}
    checks = {
        "r_hat": {name: r_hat(values) for name, values in joined.items()},
        "drift": {name: drift(values) for name, values in joined.items()},
    }
    info = {
        "tempering_seed": seed,
        "tempering_rounds": done + OBSERVED_EVERY,
        "tempering_ladders": N_LADDERS,
        "tempering_hottest": HOTTEST * molecule_source.temperature,
        "tempering_exchanged": float(torch.tensor(exchanged).mean(dim=0).min()),
        "tempering_time": time.perf_counter() - started,
    }
    n_starts = min(STARTS_PER_LADDER, len(seen))
    starts = [seen[len(seen) * (k + 1) // n_starts - 1] for k in range(n_starts)]
    found = (torch.stack(starts, dim=1), averages, checks, info)
    return Tempered(*found, fingerprint(molecule_source))


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
