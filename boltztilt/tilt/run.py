"""The state of a training run, advanced one update at a time and saved for exact resumption."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltztilt.analysis.metrics import kish_ess
from boltztilt.checkpoint import save_state
from boltztilt.energy import CountedPotential
from boltztilt.networks.build import build_network
from boltztilt.run_folder import STATE
from boltztilt.sampling.refinement import LONG_TRAJECTORY
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.transport import FieldRates
from boltztilt.sampling.weights_files import examples_of
from boltztilt.systems.system import System
from boltztilt.tilt.ladder import Rung, climb
from boltztilt.tilt.losses import Losses, Share, add_gradients
from boltztilt.tilt.optimiser import FieldOptimiser, update_average
from boltztilt.tilt.population import Chains, rollouts
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.record import record_of
from boltztilt.tilt.regression import refuse_explicit_on_singular_core
from boltztilt.tilt.start import Start, read_start
from boltztilt.tilt.status import LOG_COLUMNS, TrainingStatus, fraction_done, write_log

LIKELIHOOD_WARMUP = 10
"""Updates over which the learning rate of the likelihood rises."""

LOSS_MEMORY = 0.98
"""Weight of the losses of earlier updates in the running mean that is shown."""

STRAY = 10.0
"""In running means, the most that a single loss counts: points at which layers amplify each other
make losses of any size, which would hide all others for a thousand updates."""

BURN_IN = 10
"""Refreshments' worth of Markov chain steps that new rollouts make before they are learned from."""


class TrainingRun:
    """The state of a run, advanced one update at a time; every random draw has one generator."""

    def __init__(self, system: System, recipe: Recipe, seed: int, device: str) -> None:
        if recipe.coupling == "aligned" and not system.potential.centered:
            raise ValueError(
                "recipe: coupling = 'aligned' turns structures onto each other, but the energy of "
                f"{system.name!r} changes with their place; set coupling = 'independent'"
            )
        self.system, self.recipe, self.seed = system, recipe, seed
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.field = build_network(recipe.network, system).to(self.device)
        self.start: Start | None = None
        self.average = copy.deepcopy(self.field).requires_grad_(False)
        self.old_field = copy.deepcopy(self.average)
        self.frozen = copy.deepcopy(self.average)
        learned, old, frozen = (
            FieldRates.of(each, recipe.compile)
            for each in (self.field, self.old_field, self.frozen)
        )
        self.old_rates = old
        self.potential = CountedPotential(system.potential)
        self._set_evaluated(0)
        self.examples = examples_of(system)
        self.losses = Losses(
            system,
            self.potential,
            recipe,
            learned.velocity,
            learned.velocity_and_divergence,
            old.velocity,
            frozen.velocity,
            frozen.velocity_and_divergence,
            old.n_layers,
            self.generator,
            self.device,
        )
        self.optimiser = FieldOptimiser(self.field, recipe)
        self.chains = Chains(
            self.potential, system.base, recipe.recentring, system.base.std / 10, self.generator
        )
        self.rung: Rung | None = None
        self.particles = torch.empty(0)
        self.ancestors = torch.empty(0, dtype=torch.long)
        self.progress: dict[str, Any] = {
            "stage": "ladder",
            "rung": 0,
            "a": 0.0,
            "stage_step": 0,
            "n_updates": 0,
            "n_skipped": 0,
            "n_strays": 0,
            "loss": float("nan"),
            "log_z": 0.0,
            "acceptance": 0.0,
            "mean_energy": float("nan"),
            "n_ancestors": 0,
            "mirrored": float("nan"),
            "seconds": 0.0,
            "ladder_seconds": 0.0,
        }
        self.rows: list[list[Any]] = []
        self.clock = time.monotonic()
        self.last_checkpoint = self.clock

    def read_start(self) -> None:
        """Reads the field with which polishing begins, if the recipe names one.

        Raises:
            FileNotFoundError, ValueError: there is none, or it does not fit; see `read_start`.
        """
        if self.recipe.start_from:
            self.start = read_start(self.recipe.start_from, self.field, self.recipe.network)

    @property
    def finished(self) -> bool:
        """Whether ladder, polishing and likelihood are complete."""
        last = "likelihood" if self.recipe.likelihood_steps else "polish"
        return self.progress["stage"] == last and self._stage_done()

    def _stage_done(self) -> bool:
        """Whether the stage after the ladder has had all its updates."""
        return self.progress["stage_step"] >= self._stage_steps()

    def update(self) -> None:
        """One update with whatever has to happen before or after it, or a rung that has none."""
        if self.progress["stage"] == "ladder":
            self._ladder_update()
        else:
            self._polish_update()
        if self.progress["stage"] == "polish" and self._stage_done():
            self._start_likelihood()
        now = time.monotonic()
        self.progress["seconds"] += now - self.clock
        self.clock = now

    def _ladder_update(self) -> None:
        rung = self.rung if self.rung is not None else self._start_rung()
        if not self.recipe.steps_per_rung:
            self._finish_rung(rung)
            return
        step = self.progress["stage_step"]
        fraction = self.recipe.matching_fraction
        matching = int((step + 1) * fraction) > int(step * fraction)
        losses = self.losses.matching(rung.matching) if matching else self.losses.tilting(rung)
        self._descend(losses, self.recipe.learning_rate)
        if self._stage_done():
            self._finish_rung(rung)

    def _polish_update(self) -> None:
        """An update at a = 1, by flow matching and in the end by likelihood."""
        recipe, step = self.recipe, self.progress["stage_step"]
        if step % recipe.polish_refresh == 0:
            self._refresh_particles(step // recipe.polish_refresh)
        done = step / self._stage_steps()
        left = (1 - done) / (1 - recipe.decay_from) if recipe.decay_from < 1 else 1.0
        decayed = min(1.0, max(left, 0.01))
        if self.progress["stage"] == "likelihood":
            if recipe.likelihood_forces:
                self.frozen.load_state_dict(self.field.state_dict())
            self._descend(self.losses.likelihood(self.particles), recipe.likelihood_rate * decayed)
        else:
            losses = self.losses.matching(self.particles)
            self._descend(losses, recipe.learning_rate * decayed)

    def _start_likelihood(self) -> None:
        """Continues from the averaged field, with a new optimiser, where the recipe wants it."""
        if self.recipe.likelihood_steps:
            self.field.load_state_dict(self.average.state_dict())
            self.old_field.load_state_dict(self.average.state_dict())
            self.optimiser = FieldOptimiser(self.field, self.recipe)
            self.progress.update(stage="likelihood", stage_step=0)

    def _descend(self, losses: list[Share], learning_rate: float) -> None:
        """One update down the gradient of the sum of the losses."""
        progress = self.progress
        n_taken, n_warmup = progress["n_updates"], self.recipe.warmup_steps
        if progress["stage"] == "likelihood":
            n_taken, n_warmup = progress["stage_step"], min(n_warmup, LIKELIHOOD_WARMUP)
        warm = min(1.0, (n_taken + 1) / max(n_warmup, 1))
        value = add_gradients(losses, self.optimiser.parameters, self.device)
        if not self.optimiser.step(learning_rate * warm):
            progress["n_skipped"] += 1
        decay = self.recipe.average_decay
        update_average(self.average, self.field, decay, n_taken)
        progress["n_updates"] += 1
        progress["stage_step"] += 1
        if math.isfinite(value):
            first = n_taken == 0 or math.isnan(progress["loss"])
            before = value if first else progress["loss"]
            if value > STRAY * before > 0:
                progress["n_strays"] += 1
                value = STRAY * before
            progress["loss"] = LOSS_MEMORY * before + (1 - LOSS_MEMORY) * value

    def _stage_steps(self) -> int:
        """Updates of the current rung, or of the stage after the ladder."""
        if self.progress["stage"] == "polish":
            return self.recipe.polish_steps
        if self.progress["stage"] == "likelihood":
            return self.recipe.likelihood_steps
        first = self.recipe.first_rung_factor if self.progress["rung"] == 0 else 1.0
        return max(1, round(self.recipe.steps_per_rung * first))

    def _start_rung(self) -> Rung:
        self.old_field.load_state_dict(self.average.state_dict())
        number, every = self.progress["rung"], self.recipe.rungs_per_rollout
        fresh = number == 0 or (self.recipe.steps_per_rung > 0 and number % every == 0)
        rung = climb(
            self.old_rates,
            self.system.base,
            self.progress["a"],
            self.recipe,
            self.chains,
            self.device,
            carried=None if fresh else (self.particles, self.ancestors),
        )
        if self.recipe.objective == "etm":
            refuse_explicit_on_singular_core(rung)
        self.progress["acceptance"] = rung.acceptance
        self.progress["mean_energy"] = rung.mean_energy
        self.progress["n_ancestors"] = len(rung.ancestors.unique())
        self.progress["mirrored"] = self._share_mirrored(rung.matching)
        self.rung = rung
        return rung

    def _finish_rung(self, rung: Rung) -> None:
        progress = self.progress
        carried = 0.0 if self.recipe.exact_weights else progress["log_z"]
        progress["log_z"] = carried + rung.log_z_change
        self._log(h=rung.step, cess=rung.cess, mean_reward=rung.mean_reward)
        progress["a"] = rung.new_a
        progress["rung"] += 1
        progress["stage_step"] = 0
        self.particles, self.ancestors = rung.matching, rung.ancestors
        progress["ladder_seconds"] = progress["seconds"] + time.monotonic() - self.clock
        if progress["a"] >= 1.0:
            progress["stage"] = "polish"
            if self.start is not None:
                for field in (self.field, self.average, self.old_field):
                    field.load_state_dict(self.start.weights)
                self.start = Start({}, self.start.metadata)
        self.rung = None

    def _share_mirrored(self, particles: Tensor) -> float:
        """Share of a molecule's mirror images, one half unless the particles have collapsed."""
        if not self.system.one_handed:
            return float("nan")
        assert self.system.molecule is not None
        return float(self.system.molecule.unmirrored(particles.cpu())[1].double().mean())

    def _refresh_particles(self, refreshment: int) -> None:
        """Moves the particles along their chains, or starts them anew from rollouts."""
        recipe = self.recipe
        steps = recipe.polish_chain_steps
        matching = self.progress["stage"] == "polish"
        every = recipe.polish_rollout_every
        if matching and every > 0 and refreshment % every == 0:
            self.old_field.load_state_dict(self.average.state_dict())
            self.particles, _ = rollouts(
                self.old_rates,
                self.system.base,
                recipe.polish_particles,
                recipe.rollout_steps,
                self.generator,
                False,
                self.device,
            )
            steps *= BURN_IN
        long = LONG_TRAJECTORY[self.system.base_kind]
        self.particles, acceptance = self.chains.run(self.particles, 1.0, steps, long)
        energy = self.potential.energy(self.particles).double()
        finite = torch.isfinite(energy) & torch.isfinite(self.particles).flatten(1).all(dim=1)
        if not finite.any():
            raise ValueError(f"none of {len(energy)} polishing particles has a finite energy")
        self.particles = self.particles[finite]
        self.progress["acceptance"] = acceptance
        self.progress["mean_energy"] = float(energy[finite].mean())
        self.progress["mirrored"] = self._share_mirrored(self.particles)
        if refreshment > 0:
            self._log(h=0.0, cess=float("nan"), mean_reward=float("nan"))

    def _log(self, h: float, cess: float, mean_reward: float) -> None:
        progress = self.progress
        values = {
            **progress,
            "h": h,
            "cess": cess,
            "mean_reward": mean_reward,
            "step": progress["n_updates"],
            "n_energy": self.potential.n_energy,
        }
        self.rows.append([values[column] for column in LOG_COLUMNS])

    def status(self) -> TrainingStatus:
        """Where the run stands."""
        progress, rung = self.progress, self.rung
        return TrainingStatus(
            stage=progress["stage"],
            rung=progress["rung"],
            a=progress["a"],
            cess=rung.cess if rung else float("nan"),
            ess=kish_ess(rung.weights.log()) if rung else float("nan"),
            step=progress["stage_step"],
            n_steps=self._stage_steps(),
            loss=progress["loss"],
            n_strays=progress["n_strays"],
            acceptance=progress["acceptance"],
            mean_energy=progress["mean_energy"],
            n_ancestors=progress["n_ancestors"],
            mirrored=progress["mirrored"],
            fraction_done=fraction_done(progress, self.recipe, self.system.base.dof),
            seconds=progress["seconds"],
        )

    def checkpoint_due(self) -> bool:
        """Whether the time between checkpoints has passed."""
        return time.monotonic() - self.last_checkpoint > 60 * self.recipe.checkpoint_minutes

    def save(self, folder: Path) -> None:
        """Writes the log and everything needed to continue exactly."""
        write_log(folder / "log.csv", self.rows)
        state_path(folder).parent.mkdir(exist_ok=True)
        save_state(state_path(folder), self.state())
        self.last_checkpoint = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` continues bit for bit."""
        rung = None if self.rung is None else dataclasses.asdict(self.rung)
        return {
            "field": self.field.state_dict(),
            "average": self.average.state_dict(),
            "old_field": self.old_field.state_dict(),
            "optimiser": self.optimiser.state(),
            "generator": self.generator.get_state(),
            "progress": dict(self.progress),
            "rows": [list(row) for row in self.rows],
            "start": None if self.start is None else self.start._asdict(),
            "rung": rung,
            "particles": self.particles,
            "ancestors": self.ancestors,
            "chain_step_size": self.chains.step_size,
            "n_evaluated": getattr(self.system.potential, "n_evaluated", 0),
            "counts": [
                self.potential.n_energy,
                self.potential.n_force,
                self.potential.n_nonfinite,
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a saved state, on this run's device."""
        self.field.load_state_dict(state["field"])
        self.average.load_state_dict(state["average"])
        self.old_field.load_state_dict(state["old_field"])
        self.optimiser.restore(state["optimiser"])
        self.start = Start(**state["start"]) if state.get("start") else None
        self.generator.set_state(state["generator"])
        self.progress = {**self.progress, **state["progress"]}
        self.rows = [list(row) for row in state["rows"]]
        self.rung = None if state["rung"] is None else Rung(**_to(state["rung"], self.device))
        self.particles = state["particles"].to(self.device)
        self.ancestors = state["ancestors"].to(self.device)
        self.chains.step_size = state["chain_step_size"]
        counts = state["counts"]
        self.potential.n_energy, self.potential.n_force, self.potential.n_nonfinite = counts
        self._set_evaluated(state.get("n_evaluated", 0))
        self.clock = time.monotonic()

    def _set_evaluated(self, number: int) -> None:
        """Tells the potential how often this run has asked, where it compiles itself by that.

        Compiled energies differ by rounding: a run must not depend on what came before it.
        """
        if hasattr(self.system.potential, "n_evaluated"):
            self.system.potential.n_evaluated = number

    def sampler(self) -> Sampler:
        """The averaged field as a sampler, with the record of its training."""
        return Sampler(self.system, copy.deepcopy(self.average), record_of(self))


def state_path(folder: Path) -> Path:
    return folder / STATE


def _to(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
