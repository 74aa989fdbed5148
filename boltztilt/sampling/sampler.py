"""A trained field as a sampler: structures with exact log-densities."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from boltztilt.checkpoint import load_weights, save_weights
from boltztilt.energy import in_parts
from boltztilt.geometry import remove_mean
from boltztilt.hardware import structures_at_once
from boltztilt.networks.build import build_network
from boltztilt.sampling.batches import Progress, in_batches
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.flow import FlowResult
from boltztilt.sampling.pace import measured_pace
from boltztilt.sampling.solvers import (
    STOCHASTIC_ROUNDS,
    check_stochastic,
    checked_solver,
    default_steps,
    starts_at_rest,
    time_grid,
)
from boltztilt.sampling.transport import FieldRates, Way, carried, carried_with_noise
from boltztilt.sampling.weights_files import check_system, find_weights, with_kept_name
from boltztilt.systems.system import System, available_systems, load_system
from boltztilt.whole_numbers import seeded, whole_number

WORTH_COMPILING = {"cpu": 1.5e7, "cuda": 2e9}
"""Solver steps times pairs of atoms times layers from which on compilation pays.

That of a GPU is an estimate: uncompiled, a structure of LJ-55 takes 30 GFLOP and moves 19 GB, a
hundredth of a second there, so that a minute of compilation is paid back by ten thousand of them.
"""


class Sampler:
    """A velocity field trained for a system, with a record of how it was trained.

    Attributes:
        system: what is sampled.
        field: velocity network with `forward` and `velocity_and_divergence`, and, where its
            `has_jacobian` is true, `velocity_and_jacobian`.
        metadata: recipe, seed, energy evaluations, wall time (s), hardware and versions.
        compile: compile the field with torch.compile; None does so when there is enough work for
            the gain to exceed the minute that compilation takes.
    """

    def __init__(self, system: System, field: nn.Module, metadata: dict[str, Any]) -> None:
        self.system = system
        self.field = field.eval().requires_grad_(False)
        self.metadata = metadata
        self.compile: bool | None = None
        self._compiled: dict[bool, FieldRates] = {}

    @property
    def device(self) -> torch.device:
        """Where the field lives, and so where sampling runs."""
        return next(self.field.parameters()).device

    @property
    def _has_jacobian(self) -> bool:
        return getattr(self.field, "has_jacobian", False)

    @property
    def _paced(self) -> bool:
        return "pace" in self.metadata

    def sample(
        self,
        n: int,
        seed: int = 0,
        n_steps: int | None = None,
        batch_size: int | None = None,
        with_density: bool = True,
        solver: str | None = None,
        progress: Progress | None = None,
        stochastic: bool = False,
    ) -> Ensemble:
        """An ensemble of `n` independent structures.

        Args:
            n_steps: steps on the grid of times (ignored by the adaptive solver), by default those
                of `default_steps`. With `stochastic` the rounds of noise, by default
                `STOCHASTIC_ROUNDS`.
            batch_size: structures integrated at once, by default as many as a processor's caches
                or half of the free GPU memory hold; changes results by rounding only, but for
                "dopri5", whose steps suit a whole batch.
            with_density: compute the exact log-density, hence weights and ESS.
            solver: "rk4" or "dopri5" follow the flow, with densities up to their error; the map
                of "multistep" has an exact density of its own, for fields that have a Jacobian.
                None chooses multistep where it can be.
            progress: called with the numbers of structures done and wanted.
            stochastic: draw better structures, without densities, by `stochastic_flow`.

        Raises:
            ValueError: the field cannot be used with the solver, or with `stochastic`.
        """
        n, seed = whole_number("n", n), seeded(seed)
        started = time.monotonic()
        generator = torch.Generator().manual_seed(seed)
        starts = self.system.base.sample(n, generator)
        if stochastic:
            check_stochastic(solver, self.metadata, self.system.name)
            with_density = False
            n_steps = STOCHASTIC_ROUNDS if n_steps is None else n_steps
            ends = self._stochastic(starts, generator, n_steps, batch_size, progress)
        else:
            solver = checked_solver(solver, self._has_jacobian)
            if n_steps is None:
                n_steps = default_steps(solver, with_density, self._paced)
            times = self.time_grid(n_steps, solver)
            ends = self._transport(starts, times, batch_size, with_density, solver, progress)
        positions, log_density = ends[0], self.system.base.log_density(starts) + ends[1]
        energies = in_parts(self.system.potential.energy, positions)
        info = {
            "seed": seed,
            "solver": solver,
            "stochastic": stochastic,
            "n_steps": n_steps if solver != "dopri5" else None,
            "device": str(self.device),
            "n_energy": n,
            "n_energy_training": self.metadata.get("n_energy"),
            "wall_time": time.monotonic() - started,
        }
        if with_density and solver == "multistep":
            info["folded"] = int(torch.isposinf(ends[1]).sum())
        density = log_density if with_density else None
        return Ensemble(positions, energies, density, self.system, info).unmirrored()

    def log_density(
        self,
        positions: Float[Tensor, "batch atoms dims"],
        n_steps: int | None = None,
        batch_size: int | None = None,
        solver: str | None = None,
        progress: Progress | None = None,
    ) -> Float64[Tensor, "batch"]:
        """log q of given structures, by following the flow or the map backwards to the base.

        That is the law of `sample` with the same solver and steps: where molecules are given in one
        handedness, -inf for others. NaN, with a warning, where no origin under the map of the
        multistep solver is found, or only one beyond a fold of it.

        Raises:
            ValueError: positions of another shape, or a solver that cannot be used.
        """
        expected = (self.system.n_atoms, self.system.n_dims)
        if tuple(positions.shape[1:]) != expected:
            raise ValueError(
                f"positions of shape {tuple(positions.shape)} given; {self.system.name} needs "
                f"(batch, {expected[0]}, {expected[1]})"
            )
        positions = positions.to(torch.float32)
        if self.system.base.centered:
            positions = remove_mean(positions)
        solver = checked_solver(solver, self._has_jacobian)
        steps = default_steps(solver, True, self._paced) if n_steps is None else n_steps
        times = self.time_grid(steps, solver)
        starts, change = self._transport(
            positions, times, batch_size, True, solver, progress, backwards=True
        )
        lost = int(change.isnan().sum())
        if lost > 0:
            warnings.warn(
                f"the origin of {lost} of {len(positions)} structures was not found, their "
                "log-density is NaN; solver 'rk4' follows the flow instead",
                stacklevel=2,
            )
        log_density = self.system.base.log_density(starts) + change
        if not self.system.one_handed:
            return log_density
        assert self.system.molecule is not None
        mirrored = self.system.molecule.unmirrored(positions.cpu())[1]
        return torch.where(mirrored, -math.inf, log_density + math.log(2))

    def integration_error(
        self, ensemble: Ensemble, n: int = 256, n_steps: int | None = None
    ) -> float:
        """Root-mean-square change of log q - log p when RK4's steps are halved, on `n` base draws.

        The ensemble tells the seed and the steps; its first `n` structures are drawn again with
        twice as many steps and their log-weights compared. The mean is weighted: a structure with
        overlapping atoms, whose huge energy changes with every digit, weighs nothing.

        Raises:
            ValueError: the ensemble was drawn by another solver, since the density of a multistep
                map has no such error, or it was not drawn at once from one seed.
        """
        known, seed = ensemble.info, ensemble.info.get("seed")
        solver = known.get("solver", known.get("method", "rk4"))
        if solver != "rk4":
            raise ValueError(f"errors of integration are those of solver 'rk4', not {solver!r}")
        if not isinstance(seed, int):
            raise ValueError(
                f"structures of one seed can be drawn again, this ensemble tells {seed!r}: give "
                "one as `sample` returns it"
            )
        steps = n_steps or ensemble.info.get("n_steps") or default_steps("rk4", True, self._paced)
        n = min(n, len(ensemble))
        finer = self._same_start(ensemble, n, 2 * steps)
        weights = ensemble.log_weights[:n]
        difference = finer.log_weights - weights
        finite = torch.isfinite(difference)
        squares = weights[finite].softmax(0) * difference[finite].square()
        return float(squares.sum().sqrt()) if finite.any() else math.nan

    def _same_start(self, ensemble: Ensemble, n: int, n_steps: int) -> Ensemble:
        """The first `n` structures of an ensemble, integrated again with other steps."""
        generator = torch.Generator().manual_seed(ensemble.info["seed"])
        starts = self.system.base.sample(len(ensemble), generator)[:n]
        times = self.time_grid(n_steps, "rk4")
        ends = self._transport(starts, times, None, True, "rk4", None)
        return self._ensemble(starts, *ends).unmirrored()

    def _ensemble(self, starts: Tensor, positions: Tensor, change: Tensor) -> Ensemble:
        """The ends of the flow from draws of the base, with their densities."""
        energies = in_parts(self.system.potential.energy, positions)
        log_density = self.system.base.log_density(starts) + change
        return Ensemble(positions, energies, log_density, self.system)

    def check(self, solver: str | None, stochastic: bool, n_steps: int | None = None) -> None:
        """Raises ValueError where structures cannot be drawn like this."""
        if solver == "dopri5" and n_steps is not None:
            raise ValueError(f"solver 'dopri5' chooses its own steps: leave out --steps {n_steps}")
        if stochastic:
            check_stochastic(solver, self.metadata, self.system.name)
        else:
            checked_solver(solver, self._has_jacobian)

    def time_grid(self, n_steps: int, solver: str) -> Float64[Tensor, "times"]:
        """Times of the solver's steps, at the pace that was measured for the field if one was."""
        return time_grid(n_steps, solver, self.metadata.get("pace"))

    def paced(self, n: int = 16, seed: int = 0, progress: Progress | None = None) -> Sampler:
        """The same sampler with the solver's steps where they are needed, see `measured_pace`.

        Args:
            n: draws of the base with which errors are measured, each at the cost of about 300 steps
                with a density.
            progress: called with the numbers of parts of the flow done and wanted.
        """
        starts = self.system.base.sample(n, torch.Generator().manual_seed(seed))

        def carry(positions: Tensor, times: Tensor) -> FlowResult:
            work = 300 * n
            ends = self._transport(positions, times, None, True, "rk4", None, work)
            return FlowResult(*ends)

        def log_weights(starts: Tensor, end: FlowResult) -> Tensor:
            return self._ensemble(starts, *end).log_weights

        pace = measured_pace(carry, log_weights, starts, progress).tolist()
        return self._like(self.system, self.field, {**self.metadata, "pace": pace})

    def _like(self, system: System, field: nn.Module, metadata: dict[str, Any]) -> Sampler:
        """Another sampler, compiled as this one is."""
        other = Sampler(system, field, metadata)
        other.compile = self.compile
        return other

    def _transport(
        self,
        starts: Tensor,
        times: Float64[Tensor, "times"],
        batch_size: int | None,
        with_density: bool,
        solver: str,
        progress: Progress | None,
        n_steps: int | None = None,
        backwards: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """End points and changes of log q, those forwards in time, in batches, on the CPU.

        `n_steps` is the number of steps of all structures, more than these where others follow.
        """
        rates = self._rates(n_steps or len(starts) * (len(times) - 1), solver)
        fill = rates.fill if with_density else 1
        known = (starts_at_rest(self.metadata), self.system.base_std)
        way = Way(times, with_density, fill > 1, solver, backwards, *known)
        carry = partial(carried, rates, way, self.device)
        size = self._batch_size(batch_size, fill)
        return in_batches(carry, (starts,), size, rates.compiled, self.device, progress)

    def _stochastic(
        self,
        starts: Tensor,
        generator: torch.Generator,
        n_rounds: int,
        batch_size: int | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """End points of `stochastic_flow`, and zeros in place of changes of log q."""
        seeds = torch.randint(2**62, (len(starts),), generator=generator)
        rates = self._rates(len(starts) * n_rounds, "rk4")
        carry = partial(carried_with_noise, rates, self.system.base, n_rounds, self.device)
        size = self._batch_size(batch_size)
        return in_batches(carry, (starts, seeds), size, rates.compiled, self.device, progress)

    def _batch_size(self, wanted: int | None, fill: int = 1) -> int:
        """Structures of a batch, by default fewer where each fills `fill` times as much memory."""
        if wanted is None:
            return max(1, structures_at_once(self.system.n_atoms, self.device) // fill)
        return whole_number("batch_size", wanted)

    def _rates(self, n_steps: int, solver: str) -> FieldRates:
        """The field as the solver calls it, compiled where that pays for the work ahead."""
        n_pairs = self.system.n_atoms * (self.system.n_atoms - 1) / 2
        work = n_pairs * n_steps * getattr(self.field, "n_layers", 1)
        enough = work > WORTH_COMPILING.get(self.device.type, math.inf)
        wanted = enough if self.compile is None else self.compile
        wanted = wanted and solver != "dopri5"
        if wanted not in self._compiled:
            self._compiled[wanted] = FieldRates.of(self.field, wanted)
        return self._compiled[wanted]

    def transferred(self, system: System | str | Path, **network: Any) -> Sampler:
        """The same weights for another system, such as a cluster of another size.

        Densities stay exact, so that the effective sample size tells how far the transfer carries.
        A measured pace of the solver is that of the system it was measured on, and left out.

        Args:
            network: settings of the network that change, such as `cutoff=3.0`.

        Raises:
            ValueError: the weights do not fit the network that these settings describe.
        """
        system = load_system(system)
        settings = {**self.metadata.get("recipe", {}).get("network", {}), **network}
        field = build_network(settings, system).to(self.device)
        try:
            field.load_state_dict(self.field.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the weights trained for {self.system.name!r} do not fit {system.name!r}: {error}"
            ) from error
        recipe = {**self.metadata.get("recipe", {}), "network": settings}
        changed = {
            "system": system.name,
            "n_atoms": system.n_atoms,
            "transferred_from": self.system.name,
            "recipe": recipe,
        }
        of_this_system = ("pace", "examples")
        kept = {key: value for key, value in self.metadata.items() if key not in of_this_system}
        return self._like(system, field, {**kept, **changed})

    def save(self, path: str | Path) -> None:
        """Writes weights and metadata as safetensors."""
        save_weights(path, self.field.state_dict(), self.metadata)

    @classmethod
    def load(
        cls, target: str | Path | System, system: System | str | Path | None = None
    ) -> Sampler:
        """The sampler of a shipped system, a run folder or a weights file.

        Args:
            target: a system with shipped weights or its name, or a path.
            system: what the weights were trained for; needed only when it is neither shipped nor
                kept in the run folder.

        Raises:
            FileNotFoundError: there are no weights at the target.
            ValueError: the file is damaged or foreign, or belongs to another system, also one of
                the same name with another energy.
        """
        system = None if system is None else load_system(system)
        path, kept = find_weights(target)
        weights, metadata = load_weights(path)
        try:
            trained_for, network = metadata["system"], metadata["recipe"]["network"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not tell its system and network: no {error}") from error
        if system is None and kept is None and trained_for not in available_systems():
            raise ValueError(
                f"{path} was trained for {trained_for!r}, which no file describes: "
                "Sampler.load(..., system=...) takes the system itself"
            )
        kept = None if kept is None else with_kept_name(kept, trained_for)
        system = system or kept or load_system(trained_for)
        check_system(path, metadata, system)
        field = build_network(network, system)
        try:
            field.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its own network: {error}") from error
        return cls(system, field, metadata)


def sample(target: str | Path | System, n: int, seed: int = 0, **settings: Any) -> Ensemble:
    """An ensemble of `n` structures from shipped weights, a run folder or a weights file.

    Further settings are those of `Sampler.sample`.
    """
    return Sampler.load(target).sample(n, seed=seed, **settings)
