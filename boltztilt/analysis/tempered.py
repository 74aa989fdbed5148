"""Structures of a molecule by replica exchange, from which dynamics starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.analysis.conformations import BASINS, basin_index, residue_torsions
from boltztilt.analysis.dynamics import find_source, fingerprint
from boltztilt.analysis.equilibration import chain_mean, drift, r_hat, slow_observables
from boltztilt.checkpoint import load_state, load_state_of, save_state
from boltztilt.potentials.openmm_potential import OpenMMSource
from boltztilt.sampling.estimate import Estimate
from boltztilt.sampling.refinement import first_step
from boltztilt.sampling.tempering import (
    TemperedChains,
    geometric_betas,
    replica_exchange,
    start_ladders,
)
from boltztilt.systems.system import System
from boltztilt.whole_numbers import whole_number

HOTTEST = 3.0  # of the temperature of the target
N_TEMPERATURES, N_LADDERS, N_ROUNDS = 6, 45, 8000  # 270 chains fill one compiled batch
N_ADAPTING, TEMPERING_LEAPFROG = 40, 20
BURN_IN = 0.25  # alanine dipeptide forgets its start in 1,000 rounds
STARTS_PER_LADDER = 10
OBSERVED_EVERY = 4  # rounds; even, for exchanges take turns
SAVED_EVERY = 30.0
"""Seconds after which the ladders are kept on their way."""


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


def temper(
    system: System,
    n_rounds: int = N_ROUNDS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    state_path: Path | None = None,
    resume: bool = False,
) -> Tempered:
    """Structures and averages of the target by replica exchange up to three times its temperature.

    Every ladder starts at the molecule's structure; the first quarter of the rounds is left out.

    Args:
        n_rounds: of a trajectory and an exchange each, made up to a multiple of four.
        state_path: where the ladders are kept on their way; deleting it is left to the caller.
        resume: continue the ladders in `state_path`, if there are any, to the same result but for
            the rounding of energies that are compiled later.
        progress: called with the numbers of rounds done and wanted.

    Raises:
        ValueError: the system has no OpenMM source, there are too few rounds, or the ladders in
            `state_path` are those of other forces, rounds or seeds.
    """
    source = check_source(system)
    n_rounds = whole_number("n_rounds", n_rounds, least=10)
    n_rounds += -n_rounds % OBSERVED_EVERY
    given = {"seed": seed, "n_rounds": n_rounds, "system": fingerprint(source)}
    if resume and state_path is not None and state_path.exists():
        climb = _Climb.load(state_path, given)
    else:
        climb = _Climb.started(system, seed)
    betas = geometric_betas(HOTTEST, N_TEMPERATURES)
    started, saved = time.perf_counter() - climb.seconds, time.monotonic()
    while climb.n_done < n_rounds:
        settings = (betas, OBSERVED_EVERY, TEMPERING_LEAPFROG, climb.generator)
        scale = system.base.mode_scale
        chains = replica_exchange(system.potential, climb.chains, *settings, scale)
        climb.advance(chains, kept=climb.n_done >= BURN_IN * n_rounds)
        climb.seconds = time.perf_counter() - started
        if state_path is not None and time.monotonic() - saved > SAVED_EVERY:
            climb.save(state_path, given)
            saved = time.monotonic()
        if progress is not None:
            progress(climb.n_done, n_rounds)
    return climb.found(system, given)


@dataclass
class _Climb:
    """Ladders on their way, and what they showed of the target after their burn-in."""

    chains: TemperedChains
    generator: torch.Generator
    n_done: int = 0
    seconds: float = 0.0
    seen: list[Tensor] = field(default_factory=list)
    energies: list[Tensor] = field(default_factory=list)
    exchanged: list[tuple[float, ...]] = field(default_factory=list)

    @classmethod
    def started(cls, system: System, seed: int) -> _Climb:
        """Ladders that start at the molecule's structure."""
        assert system.molecule is not None
        generator = torch.Generator().manual_seed(seed)
        structures = system.molecule.structure[None].repeat(N_LADDERS, 1, 1)
        betas = geometric_betas(HOTTEST, N_TEMPERATURES)
        settings = (N_ADAPTING, TEMPERING_LEAPFROG, generator, system.base.mode_scale)
        step_size = first_step(system)
        chains = start_ladders(system.potential, structures, betas, step_size, *settings)
        return cls(chains, generator)

    def advance(self, chains: TemperedChains, kept: bool) -> None:
        """Goes on to these chains, whose structures of the target are kept if wanted."""
        self.chains = chains
        self.n_done += OBSERVED_EVERY
        if kept:
            self.seen.append(chains.positions[:, 0].clone())
            self.energies.append(chains.energies[:, 0].clone())
            self.exchanged.append(chains.exchanged)

    def save(self, path: Path, given: dict[str, Any]) -> None:
        """Writes where the ladders stand, whole or not at all."""
        state = {
            "positions": self.chains.positions,
            "energies": self.chains.energies,
            "step_size": self.chains.step_size,
            "generator": self.generator.get_state(),
            "seconds": self.seconds,
            "seen": self.seen,
            "energies_seen": self.energies,
            "exchanged": self.exchanged,
        }
        save_state(path, {"progress": self.n_done, "settings": given, **state})

    @classmethod
    def load(cls, path: Path, given: dict[str, Any]) -> _Climb:
        """Where the ladders in a file stand, which must be those that are wanted."""
        state = load_state_of(path, given)
        chains = TemperedChains(state["positions"], state["energies"], state["step_size"])
        generator = torch.Generator()
        generator.set_state(state["generator"])
        lists = (state["seen"], state["energies_seen"], state["exchanged"])
        return cls(chains, generator, state["progress"], state["seconds"], *lists)

    def found(self, system: System, given: dict[str, Any]) -> Tempered:
        """What the ladders showed, with their checks."""
        source = check_source(system)
        seen = torch.stack(self.seen, dim=1)
        energies = torch.stack(self.energies, dim=1)
        values = molecular_observables(system, seen.flatten(0, 1), energies.flatten())
        series = {name: each.reshape(energies.shape) for name, each in values.items()}
        checks = {
            "r_hat": {name: r_hat(each) for name, each in series.items()},
            "drift": {name: drift(each) for name, each in series.items()},
        }
        info = {
            "tempering_seed": given["seed"],
            "tempering_rounds": given["n_rounds"],
            "tempering_ladders": N_LADDERS,
            "tempering_hottest": HOTTEST * source.temperature,
            "tempering_exchanged": float(torch.tensor(self.exchanged).mean(dim=0).min()),
            "tempering_time": self.seconds,
        }
        n_starts = min(STARTS_PER_LADDER, len(self.seen))
        chosen = [len(self.seen) * (k + 1) // n_starts - 1 for k in range(n_starts)]
        averages = {name: chain_mean(each) for name, each in series.items()}
        return Tempered(seen[:, chosen], averages, checks, info, given["system"])


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
