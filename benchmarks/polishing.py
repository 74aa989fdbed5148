"""Which polishing raises the ESS: one trained field, continued in several ways for equal CPU time.

python benchmarks/polishing.py lj13 --start 10 --minutes 10 --reference lj13_reference.npz --out DIR

The field is trained by the system's recipe for --start minutes, up the ladder and on by flow
matching. Every row continues from there for --minutes of CPU time, with a learning rate that falls
to zero in the second half:

  flow matching, chains    on the particles of the ladder, moved on by Markov chains
  flow matching, rollouts  the same, replaced by new rollouts of the field every 500 updates
  exact weights            on 1,024 rollouts of the field, resampled by exp(-U)/q every 100 updates
  likelihood               of the particles of the ladder, through the flow and its divergence
  likelihood along paths   the same with the gradient of `path_loss`
  independent coupling     flow matching on the particles, from a start without alignment
  target score             the same with targets informed by forces, where they vary less

The last two have a start of their own, because the identity between forces and velocities holds
for independent pairs alone. ESS, bounds and W2 are those of benchmarks/ablation.py. Starts and rows
are kept in --out and not made again.

Reference: V. De Bortoli et al. (2024), Target score matching, https://arxiv.org/abs/2402.08667
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from ablation import UNTIL_TIME_IS_UP, figures, judge, load_results
from conditions import arguments, begin, row
from measurement import Table
from torch import Tensor

import boltztilt
from boltztilt.analysis.reference import Reference
from boltztilt.checkpoint import load_state
from boltztilt.report import write_report
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.annealing import anneal
from boltztilt.tilt.interpolant import Bridge, Pairs, draw_times, interpolate
from boltztilt.tilt.losses import Losses, Share
from boltztilt.tilt.population import resample, rollouts
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.regression import matching_loss
from boltztilt.tilt.run import TrainingRun, state_path

CALIBRATION = 50
"""Updates that tell what one costs."""

N_ROLLOUTS = 1024

EARLIEST = 0.1
"""Times before which forces tell nothing: their share there would be negligible."""

HEADINGS = ("row", "updates", "CPU s", "ESS", "KL(q|p)", "KL(p|q)", "W2 raw", "W2 rew.")


class ExactWeightRun(TrainingRun):
    """Flow matching on rollouts of the field itself, resampled by their exact weights."""

    def _refresh_particles(self, refreshment: int) -> None:
        self.old_field.load_state_dict(self.average.state_dict())
        base, generator = self.system.base, self.generator
        drawn, log_density = rollouts(
            self.old_rates,
            base,
            N_ROLLOUTS,
            self.recipe.rollout_steps,
            generator,
            True,
            self.device,
        )
        log_weights = -self.potential.energy(drawn).double() - log_density
        log_weights = torch.where(torch.isfinite(log_weights), log_weights, -math.inf)
        self.particles = drawn[resample(log_weights.softmax(0), generator)]


class TargetScoreLosses(Losses):
    """Flow matching of independent pairs with targets that know the force at the end point."""

    def matching(self, particles: Tensor) -> list[Share]:
        recipe, base = self.recipe, self.system.base
        n_pairs = recipe.batch_size // recipe.times_per_pair
        chosen = torch.randint(len(particles), (n_pairs,), generator=self.generator)
        pairs = Pairs(base.sample(n_pairs, self.generator), particles[chosen], torch.ones(n_pairs))
        times = draw_times(n_pairs, recipe.times_per_pair, recipe.smallest_noise, self.generator)
        forces = self.system.potential.energy_and_force(pairs.ends)[1]
        bridge = force_informed(interpolate(pairs, times), forces, base.std)
        return [Share(1.0, partial(matching_loss, self.velocity, bridge, base))]


class TargetScoreRun(TrainingRun):
    """A run with the losses above."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        given = [each.name for each in dataclasses.fields(Losses) if each.init]
        self.losses = TargetScoreLosses(*(getattr(self.losses, name) for name in given))


def force_informed(bridge: Bridge, forces: Tensor, std: float) -> Bridge:
    """The bridge with rates mixed from x1 - x0 and x_t / t + std² (1-t)/t² F(x1).

    Both have the mean b(t, x_t). The share c of the second is the one of least variance near t = 1,
    where the first varies by std² / t² and the second by (std² (1-t)/t² |F|)² per coordinate.
    """
    t = bridge.times.clamp(min=EARLIEST)[:, None, None]
    late = bridge.times[:, None, None] > EARLIEST
    repeated = forces.repeat(len(bridge.times) // len(forces), 1, 1)
    informed = bridge.positions / t + std**2 * (1 - t) / t.square() * repeated
    noise = (std * (1 - t) / t).square() * forces.square().mean()
    share = late / (1 + noise)
    return bridge._replace(rates=(1 - share) * bridge.rates + share * informed)


ROWS: dict[str, tuple[type[TrainingRun], dict[str, Any]]] = {
    "flow matching, chains": (TrainingRun, {"polish_rollout_every": 0}),
    "flow matching, rollouts": (TrainingRun, {"polish_rollout_every": 5, "polish_refresh": 100}),
    "exact weights": (ExactWeightRun, {"polish_refresh": 100}),
    "likelihood": (TrainingRun, {"likelihood_forces": False}),
    "likelihood along paths": (TrainingRun, {"likelihood_forces": True}),
    "independent coupling": (TrainingRun, {"coupling": "independent", "polish_rollout_every": 0}),
    "target score": (TargetScoreRun, {"coupling": "independent", "polish_rollout_every": 0}),
}


def started(system: System, coupling: str, options: argparse.Namespace) -> dict[str, Any]:
    """The state of a run of --start minutes with this coupling, from its folder if it is there."""
    folder = options.out / f"start_{coupling}"
    if not state_path(folder).is_file():
        boltztilt.train(
            system,
            out=folder,
            seed=options.seed,
            max_minutes=options.start,
            coupling=coupling,
            **UNTIL_TIME_IS_UP,
        )
    return load_state(state_path(folder))


def continued(
    name: str, system: System, n_updates: int, options: argparse.Namespace
) -> TrainingRun:
    """A run of one row that has `n_updates` ahead of it."""
    kind, settings = ROWS[name]
    steps = {"polish_steps": n_updates, "likelihood_steps": 0}
    if name.startswith("likelihood"):
        steps = {"polish_steps": 1, "likelihood_steps": n_updates}
    recipe = Recipe.from_mapping({**system.recipe, **settings, **steps})
    run = kind(system, recipe, options.seed, "cpu")
    run.restore(started(system, recipe.coupling, options))
    if run.progress["stage"] != "polish":
        raise SystemExit(f"the start is still at a = {run.progress['a']:.2g}: give --start more")
    run.progress["stage_step"] = 0
    if name.startswith("likelihood"):
        run._start_likelihood()
    return run


def seconds_per_update(trial: TrainingRun) -> float:
    """CPU time of an update, with its share of what refreshes the particles."""
    trial.update()  # compiles, and refreshes the particles
    update = cpu_seconds(trial.update, CALIBRATION - 1)
    moved, renewed = (cpu_seconds(partial(trial._refresh_particles, k)) for k in (1, 0))
    recipe = trial.recipe
    refreshments = moved + max(renewed - moved, 0.0) / max(recipe.polish_rollout_every, 1)
    return update + refreshments / recipe.polish_refresh


def cpu_seconds(function: Callable[[], object], n_calls: int = 1) -> float:
    """Mean CPU time of a call."""
    begun = process_time()
    for _ in range(n_calls):
        function()
    return (process_time() - begun) / n_calls


def polish(name: str, system: System, options: argparse.Namespace) -> tuple[TrainingRun, float]:
    """The run of a row after --minutes of CPU time, and how long it took."""
    cost = seconds_per_update(continued(name, system, CALIBRATION, options))
    run = continued(name, system, max(1, round(60 * options.minutes / cost)), options)
    begun = process_time()
    while not run.finished:
        run.update()
    return run, process_time() - begun


def judged(name: str, reference: Reference, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one row."""
    system, updates, seconds = reference.system, 0, 0.0
    if name.startswith("start"):
        run = TrainingRun(system, Recipe.from_mapping(system.recipe), options.seed, "cpu")
        run.restore(started(system, name.split()[1], options))
    else:
        run, seconds = polish(name, system, options)
        updates = run.progress["stage_step"]
    return {"updates": updates, "cpu_seconds": seconds, **judge(run.sampler(), options, reference)}


def print_results(names: list[str], reference: Reference, options: argparse.Namespace) -> None:
    """The table, row by row as each is made or found."""
    path = options.out / "polishing.json"
    results = load_results(path, conditions(options))
    if "log_z" not in results:
        results["log_z"] = anneal(reference.system, options.chains, seed=2000).log_z.value
    row("log Z, annealed chains", f"{results['log_z']:.2f}")
    table = Table(*HEADINGS, first_width=26)
    for name in names:
        if name not in results["rows"]:
            results["rows"][name] = judged(name, reference, options)
            write_report(path, results)
        result = results["rows"][name]
        done = (str(result["updates"]), f"{result['cpu_seconds']:.0f}")
        table.add(name, *done, *figures(result, results["log_z"]))


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What starts and rows of one folder have in common."""
    names = ("system", "start", "minutes", "n", "seed", "threads")
    same = {name: getattr(options, name) for name in names}
    return {**same, "reference": str(options.reference)}


def main() -> None:
    parser = arguments(__doc__, n=2000)
    parser.add_argument("system", nargs="?", default="lj13")
    parser.add_argument("--start", type=float, default=10.0, help="minutes before the rows part")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of each row")
    parser.add_argument("--reference", type=Path, required=True, help="reference samples (.npz)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the starts and results")
    parser.add_argument("--chains", type=int, default=2000, help="annealed chains for log Z")
    names = ["start aligned", "start independent", *ROWS]
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW")
    options = begin(parser)
    options.out.mkdir(parents=True, exist_ok=True)
    reference = Reference.load(options.reference, load_system(options.system))
    print_results(options.rows, reference, options)


if __name__ == "__main__":
    main()
