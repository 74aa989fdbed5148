"""A trained sampler against Markov chains at the same cost: what does a second buy?

python benchmarks/mcmc_budget.py lj13 --reference lj13_reference.npz
python benchmarks/mcmc_budget.py dw4 --reference dw4_reference.npz --quick

Compared are the errors of <U> (root mean square over seeds) and of the distribution of pair
distances (W1 to the reference, mean over seeds) after budgets of CPU time that double. Beside each
error stands what it would be after one second and after a million energy calls if it fell with the
square root of the cost; a method is better where these are smaller.

The sampler (shipped weights, a run folder or a weights file) draws independent structures and
reweights them by their exact density, at one energy call each. Its training, with the runs that
it started from, is left out of the table and counted at the end, as the weights record it. MALA
and HMC start from the base Gaussian, as few long chains and as many short ones. Each of their
budgets is a run of its own: the first half tunes the step size (to an acceptance of 0.6 and 0.8)
and is discarded, the second half runs with the step size frozen. HMC makes 20 leapfrog steps a
trajectory, and MALA is read every 20 steps; a step of either costs one energy with its force.
Comparing with the reference is not timed.

No error can be told from the reference's own, which is printed first (-n is its size where it has
to be made), and with few seeds an error
is known to about 1 / sqrt(2 seeds) of itself.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch
from conditions import arguments, begin, row
from measurement import Table
from torch import Tensor

from boltztilt.analysis.metrics import pair_distance_wasserstein
from boltztilt.analysis.reference import Reference, make_reference
from boltztilt.checkpoint import runs_before
from boltztilt.energy import CountedPotential
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.estimate import weighted_mean
from boltztilt.sampling.mcmc import ChainState, hmc, mala
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System

STRIDE = 20
"""Energy calls of a chain between two recorded structures."""

TUNING_BLOCK = 5
"""Recorded structures between two looks at the clock while the step size adapts."""


@dataclass(frozen=True)
class Drawn:
    """What one run of a method drew, and what that cost."""

    positions: Tensor
    energies: Tensor
    weights: Tensor | None
    seconds: float
    n_energy: int


@dataclass(frozen=True)
class Result:
    """Costs and errors of a method at one budget, over seeds."""

    seconds: float
    n_energy: float
    energy_error: float
    distance: float


def sampler_runs(sampler: Sampler, budgets: list[float], batch: int, seed: int) -> list[Drawn]:
    """One run, as it stands when each budget is spent."""
    batches: list[Ensemble] = []
    runs: list[Drawn] = []
    seconds = 0.0
    for budget in budgets:
        while seconds < budget:
            start = process_time()
            batch_seed = 10_000 * (seed + 1) + len(batches)
            batches.append(sampler.sample(batch, batch_seed, batch_size=batch))
            seconds += process_time() - start
        all_drawn = Ensemble.join(batches)
        runs.append(
            Drawn(
                all_drawn.positions,
                all_drawn.energies,
                all_drawn.weights,
                seconds,
                len(all_drawn),
            )
        )
    return runs


def chain_run(system: System, kernel: str, n_chains: int, budget: float, seed: int) -> Drawn:
    """Chains from the base: half of the budget to tune and forget, half to record."""
    start = process_time()
    potential = CountedPotential(system.potential)
    generator = torch.Generator().manual_seed(seed)
    advance = partial(_advance, kernel, potential, generator)
    positions, step_size = system.base.sample(n_chains, generator), system.base.std / 10
    while process_time() - start < budget / 2:
        state = advance(positions, step_size, TUNING_BLOCK, True)
        positions, step_size = state.positions, state.step_size
    recorded: list[ChainState] = []
    while not recorded or process_time() - start < budget:
        recorded.append(advance(positions, step_size, 1, False))
        positions = recorded[-1].positions
    seconds = process_time() - start
    structures = torch.cat([state.positions for state in recorded])
    energies = torch.cat([state.energies for state in recorded])
    return Drawn(structures, energies, None, seconds, potential.n_energy)


def _advance(
    kernel: str,
    potential: CountedPotential,
    generator: torch.Generator,
    positions: Tensor,
    step_size: float,
    n_records: int,
    adapt: bool,
) -> ChainState:
    """Chains that moved on by a number of records."""
    if kernel == "mala":
        n_steps = n_records * STRIDE
        return mala(potential, positions, n_steps, step_size, generator, adapt)
    return hmc(potential, positions, n_records, step_size, STRIDE, generator, adapt)


def judge(runs: list[Drawn], reference: Reference, n_structures: int) -> Result:
    """Mean costs and errors of runs with different seeds."""
    squares = [(mean_energy(run) - float(reference.energies.mean())) ** 2 for run in runs]
    distances = [distance(run, reference, n_structures) for run in runs]
    n = len(runs)
    return Result(
        sum(run.seconds for run in runs) / n,
        sum(run.n_energy for run in runs) / n,
        math.sqrt(sum(squares) / n),
        sum(distances) / n,
    )


def mean_energy(run: Drawn) -> float:
    """<U>, weighted where there are weights."""
    if run.weights is None:
        return float(run.energies.mean())
    positive = run.weights > 0
    return float(run.energies[positive] @ run.weights[positive])


def distance(run: Drawn, reference: Reference, n_structures: int) -> float:
    """W1 of pair distances, from structures drawn at random where chains left too many."""
    positions = run.positions
    if run.weights is None:  # evenly spaced ones could be those of a few chains
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
        positions = positions[order[:n_structures]]
    return pair_distance_wasserstein(positions, reference.positions, run.weights)


def crossing(results: list[Result], target: float, error: Callable[[Result], float]) -> str:
    """CPU seconds at which the error reaches the target, interpolated on logarithms."""
    errors, seconds = [error(result) for result in results], [each.seconds for each in results]
    if errors[0] <= target:
        return f"within {seconds[0]:.2g} s"
    for index in range(1, len(errors)):
        if errors[index] <= target:
            above, below = math.log(errors[index - 1] / target), math.log(errors[index] / target)
            share = above / (above - below)
            return f"{seconds[index - 1] ** (1 - share) * seconds[index] ** share:.2g} s"
    return f"not within {seconds[-1]:.2g} s"


def payback(chains: Result, sampler: Result, training: float, error: Callable) -> str:
    """When a sampler that has to be trained first overtakes chains, at errors ~ 1/sqrt(cost).

    c²/(t - T) = k²/t with constants c of the sampler and k of the chains; training costs T.
    """
    speed = error(chains) ** 2 * chains.seconds / (error(sampler) ** 2 * sampler.seconds)
    if speed <= 1:
        return f"a second of them is worth {1 / speed:.1f} of the sampler: training never pays"
    ahead = training * speed / (speed - 1)
    return f"a second of the sampler is worth {speed:.1f} of them: it is ahead after {ahead:.0f} s"


def print_results(results: dict[str, list[Result]]) -> None:
    """The table of all methods and budgets."""
    table = Table(
        "method",
        "CPU s",
        "energy calls",
        "<U> error",
        "at 1 s",
        "at 1e6",
        "W1 error",
        "at 1 s",
        "at 1e6",
        first_width=20,
    )
    for name, budgets in results.items():
        for result in budgets:
            figures = []
            for error in (result.energy_error, result.distance):
                per_second = error * math.sqrt(result.seconds)
                per_call = error * math.sqrt(result.n_energy / 1e6)
                figures += [f"{error:.2g}", f"{per_second:.2g}", f"{per_call:.2g}"]
            table.add(name, f"{result.seconds:.1f}", f"{result.n_energy:,.0f}", *figures)


def print_verdict(results: dict[str, list[Result]], sampler: Sampler) -> None:
    """Who reaches the sampler's error when, without and with its training."""
    seconds, calls = (training_cost(sampler.metadata, key) for key in ("wall_time", "n_energy"))
    print()
    where = sampler.metadata.get("hardware", "unknown hardware")
    row("training of the sampler", f"{seconds:.0f} s, {calls:,.0f} calls", f"wall time, {where}")
    own, *others = results.items()
    last = own[1][-1]
    for label, error in (
        ("<U> error", lambda result: result.energy_error),
        ("W1 error", lambda result: result.distance),
    ):
        print(f"\n{label} of the sampler after {last.seconds:.3g} s: {error(last):.2g}")
        for name, budgets in others:
            reached = crossing(budgets, error(last), error)
            row(f"  {name} reach it", reached, payback(budgets[-1], last, seconds, error))


def training_cost(metadata: Mapping[str, Any], key: str) -> float:
    """What a run cost, with all that it started from, as far as the weights tell."""
    return sum(float(run.get(key) or 0) for run in (metadata, *runs_before(metadata)))


def load_or_make(path: Path | None, system: System, n: int, seed: int) -> Reference:
    """The reference, after printing its own errors."""
    if path is not None:
        reference = Reference.load(path, system)
    else:
        reference = make_reference(system, n, seed + 1000)
    first, second = reference.positions.tensor_split(2)
    energy = reference.checks.get("energy", weighted_mean(reference.energies))
    row("reference, structures", f"{len(reference):,}")
    row("reference, <U> and its error", str(energy))
    row("reference, W1 between its halves", f"{pair_distance_wasserstein(first, second):.2g}")
    return reference


def all_results(
    sampler: Sampler, reference: Reference, budgets: list[float], options: argparse.Namespace
) -> dict[str, list[Result]]:
    """Costs and errors of every method at every budget."""
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [sampler_runs(sampler, budgets, options.batch, seed) for seed in seeds]
    by_budget = zip(*runs, strict=True)
    n = options.structures
    results = {"sampler": [judge(list(each), reference, n) for each in by_budget]}
    for kernel, n_chains in product(options.kernels, options.chains):
        results[f"{kernel.upper()}, {n_chains} chains"] = [
            judge([chain_run(sampler.system, kernel, n_chains, t, s) for s in seeds], reference, n)
            for t in budgets
        ]
    return results


def main() -> None:
    parser = arguments(__doc__, n=20_000)
    parser.add_argument("system", nargs="?", default="lj13")
    parser.add_argument("--sampler", help="run folder or weights; the shipped ones if not given")
    parser.add_argument("--reference", type=Path, help="reference samples (.npz), else made")
    parser.add_argument("--first", type=float, default=2.0, help="smallest budget, CPU seconds")
    parser.add_argument("--budgets", type=int, default=5, help="number of budgets, each doubled")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each method")
    parser.add_argument("--kernels", nargs="+", default=["mala", "hmc"], choices=["mala", "hmc"])
    parser.add_argument("--chains", type=int, nargs="+", default=[20, 1000], help="at a time")
    parser.add_argument("--batch", type=int, default=64, help="structures sampled at a time")
    parser.add_argument("--structures", type=int, default=10_000, help="most used for W1")
    parser.add_argument("--quick", action="store_true", help="3 budgets from 0.5 s, 2 seeds")
    options = begin(parser)
    if options.quick:
        options.first, options.budgets, options.seeds = 0.5, 3, 2
    sampler = Sampler.load(options.sampler or options.system)
    reference = load_or_make(options.reference, sampler.system, options.n, options.seed)
    budgets = [options.first * 2**k for k in range(options.budgets)]
    results = all_results(sampler, reference, budgets, options)
    print_results(results)
    print_verdict(results, sampler)


if __name__ == "__main__":
    main()
