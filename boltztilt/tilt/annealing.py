"""Annealed transport: Markov chains carried along the tilted family, with exact path weights.

Groups of chains start at the Gaussian base and climb a ladder of tilts 0 < a_1 < ... < a_K = 1 of
rho_a ∝ rho_0 exp(a r). No field is needed and no likelihood: the weights are those of the paths.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from boltztilt.energy import CountedPotential, Potential, TiltedPotential, relative_reward
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.resampling import systematic_resampling
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.schedule import choose_step
from boltztilt.whole_numbers import seeded, whole_number

DEFAULT_PER_GROUP = 32
DEFAULT_CESS = 0.8
DEFAULT_STEPS = 4
DEFAULT_LEAPFROG = 16
PILOT_CHAINS = 128
SMOOTHING = 3  # rungs on either side over which step sizes are averaged
BATCH_ATOM_PAIRS = 2**18  # chains moved at once times n_atoms²: what fits into the cache


def anneal(
    target: str | Path | System,
    n: int,
    seed: int = 0,
    n_per_group: int = DEFAULT_PER_GROUP,
    cess: float = DEFAULT_CESS,
    n_steps: int = DEFAULT_STEPS,
    n_leapfrog: int = DEFAULT_LEAPFROG,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ensemble:
    """An ensemble of `n` structures with exact path weights, from the energy alone.

    A pilot run chooses tilts and step sizes, then groups of chains climb this ladder. Nothing
    depends on the chains themselves any more, so that each group's product of mean weights is an
    unbiased estimate of Z, and sum_g Z_g mean_g(f) / sum_g Z_g a consistent one of <f>. All
    structures of a group carry its weight and may share ancestors: errors are those over groups,
    and a single group has none.

    Args:
        target: a system, the name of one, or the path of its TOML file.
        n_per_group: chains in a group. The variance of a group's log-weight falls as 1/n_per_group;
            more groups give surer errors. Whole groups are run, and a random surplus left out.
        cess: conditional effective sample size that each rung keeps, between 0 and 1.
        n_steps, n_leapfrog: Hamiltonian trajectories at each rung, and leapfrog steps in each.
        batch_size: structures moved at once; changes memory, speed and the random numbers.
        progress: called with the numbers of structures done and wanted; the pilot counts as some.

    References:
        Jarzynski (1997), doi:10.1103/PhysRevLett.78.2690, for the weights of paths.
        Del Moral, Doucet, Jasra (2006), Sequential Monte Carlo samplers, for resampling, and for
        why the estimate of Z is unbiased, doi:10.1111/j.1467-9868.2006.00553.x.
    """
    counts = {"n": n, "n_per_group": n_per_group, "n_steps": n_steps, "n_leapfrog": n_leapfrog}
    n, n_per_group, n_steps, n_leapfrog = starmap(whole_number, counts.items())
    seed = seeded(seed)
    if not 0.0 < cess < 1.0:
        raise ValueError(f"cess is {cess}; give a fraction between 0 and 1, such as 0.8")
    started = time.monotonic()
    system = load_system(target)
    potential = CountedPotential(system.potential)
    generator = torch.Generator().manual_seed(seed)
    start = partial(
        ChainGroups,
        potential,
        system.base,
        generator=generator,
        n_steps=n_steps,
        n_leapfrog=n_leapfrog,
    )
    n_groups = -(-n // n_per_group)
    show = partial(_show, progress, n, PILOT_CHAINS + n_groups * n_per_group)
    ladder = find_ladder(start(1, PILOT_CHAINS), cess, partial(show, 0, PILOT_CHAINS))
    n_energy_pilot = potential.n_energy
    usual = max(1, BATCH_ATOM_PAIRS // system.n_atoms**2)
    batch_size = whole_number("batch_size", usual if batch_size is None else batch_size)
    runs, done = [], PILOT_CHAINS
    for each in torch.arange(n_groups).split(max(1, batch_size // n_per_group)):
        runs.append(start(len(each), n_per_group))
        follow_ladder(runs[-1], ladder, partial(show, done, len(runs[-1])))
        done += len(runs[-1])
    ensemble = _ensemble(runs, n, system, generator)
    ensemble.info |= {
        "method": "annealed transport",
        "seed": seed,
        "n_per_group": n_per_group,
        "cess": cess,
        "n_rungs": len(ladder),
        "n_steps": n_steps,
        "n_leapfrog": n_leapfrog,
        "step_size": ladder.step_sizes[-1],
        "n_energy": potential.n_energy,
        "n_energy_pilot": n_energy_pilot,
        "wall_time": time.monotonic() - started,
    }
    return ensemble.unmirrored()


@dataclass(frozen=True)
class Ladder:
    """The tilts of the rungs, rising to 1, and the step size of the chains at each."""

    tilts: list[float]
    step_sizes: list[float]

    def __len__(self) -> int:
        return len(self.tilts)


class ChainGroups:
    """Independent groups of Markov chains on their way along the tilted family.

    Attributes:
        positions: `(groups * chains, atoms, dims)`, group after group, at the law of `tilt`.
        energies: U of the positions, `(groups * chains,)`.
        log_z: log of each group's unbiased estimate of Z_a, `(groups,)`.
        ancestors: the base draw that each chain descends from, `(groups * chains,)`.
        tilt: the tilt a reached; 0 at the base.
        n_rungs, acceptance: rungs climbed, and the mean acceptance of their trajectories.
    """

    def __init__(
        self,
        potential: Potential,
        base: Gaussian,
        n_groups: int,
        n_per_group: int,
        generator: torch.Generator,
        n_steps: int = DEFAULT_STEPS,
        n_leapfrog: int = DEFAULT_LEAPFROG,
    ):
        self.potential = potential
        self.base = base
        self.generator = generator
        self.n_steps = n_steps
        self.n_leapfrog = n_leapfrog
        self.positions = base.sample(n_groups * n_per_group, generator)
        self.energies = potential.energy(self.positions)
        self.log_z = torch.zeros(n_groups, dtype=torch.float64)
        self.ancestors = torch.arange(n_groups * n_per_group)
        self.tilt = 0.0
        self.n_rungs = 0
        self.acceptance = 0.0

    @property
    def rewards(self) -> Float64[Tensor, "all"]:
        """r of every chain; -inf where it is not finite."""
        rewards = relative_reward(self.energies, self.base, self.positions)
        return torch.where(torch.isfinite(rewards), rewards, -math.inf)

    def __len__(self) -> int:
        return len(self.positions)

    def climb(self, tilt: float, step_size: float, adapt: bool = False) -> float:
        """Goes on to a higher tilt; returns the step size, which changes only if it adapts.

        Weighs the chains by exp(h r), h the difference of the tilts; multiplies each group's
        estimate of Z by its mean weight; resamples within each group; and moves the chains by
        `n_steps` Hamiltonian trajectories that leave the law of the new tilt as it is.
        """
        log_weights = ((tilt - self.tilt) * self.rewards).reshape(len(self.log_z), -1)
        self.log_z += log_weights.logsumexp(1) - math.log(log_weights.shape[1])
        chosen = resample_groups(log_weights, self.generator)
        tilted = TiltedPotential(self.potential, self.base, tilt)
        start = self.positions[chosen]
        settings = (self.n_steps, step_size, self.n_leapfrog, self.generator, adapt)
        state = hmc(tilted, start, *settings, scale=self.base.mode_scale)
        self.positions, self.ancestors = state.positions, self.ancestors[chosen]
        self.energies = self.potential.energy(self.positions)
        self.acceptance += (state.acceptance - self.acceptance) / (self.n_rungs + 1)
        self.n_rungs, self.tilt = self.n_rungs + 1, tilt
        return state.step_size


def find_ladder(
    groups: ChainGroups,
    cess: float = DEFAULT_CESS,
    progress: Callable[[float], None] | None = None,
) -> Ladder:
    """The ladder that the chains need: they climb to the target and choose it on their way.

    Each tilt is as far from the last as keeps the conditional effective sample size of all chains
    at `cess`; step sizes adapt to the acceptance. `progress` is called with the tilt, on a
    logarithmic scale from 0 to 1.

    Reference: Zhou, Johansen, Aston (2016), Toward automatic model comparison, section 3.3.2,
        doi:10.1080/10618600.2015.1060885.
    """
    tilts: list[float] = []
    step_sizes: list[float] = []
    step_size = 0.2 * groups.base.std
    while groups.tilt < 1.0:
        left = 1.0 - groups.tilt
        step = choose_step(groups.rewards, left, cess)
        tilts.append(1.0 if step >= left else groups.tilt + step)
        step_size = groups.climb(tilts[-1], step_size, adapt=True)
        step_sizes.append(step_size)
        if progress is not None:
            progress(1.0 - math.log(tilts[-1]) / math.log(tilts[0]) if tilts[0] < 1.0 else 1.0)
    return Ladder(tilts, smoothed(step_sizes))


def follow_ladder(
    groups: ChainGroups, ladder: Ladder, progress: Callable[[float], None] | None = None
) -> None:
    """Carries chains up a given ladder without any adaptation: their weights are unbiased.

    `progress` is called with the fraction of rungs done.
    """
    for rung, (tilt, step_size) in enumerate(zip(ladder.tilts, ladder.step_sizes, strict=True)):
        groups.climb(tilt, step_size)
        if progress is not None:
            progress((rung + 1) / len(ladder))


def smoothed(step_sizes: list[float]) -> list[float]:
    """Geometric means over each rung and its neighbours: adaptation alone leaves them noisy."""
    logs = [math.log(step_size) for step_size in step_sizes]
    windows = [logs[max(0, k - SMOOTHING) : k + SMOOTHING + 1] for k in range(len(logs))]
    return [math.exp(sum(window) / len(window)) for window in windows]


def resample_groups(
    log_weights: Float64[Tensor, "groups chains"], generator: torch.Generator
) -> Int64[Tensor, "all"]:
    """Indices of chains drawn by weight within each group, evenly where all weights are zero."""
    n_groups, n = log_weights.shape
    weights = log_weights.softmax(1).nan_to_num(nan=1.0 / n)
    chosen = systematic_resampling(weights, n, generator)
    return (chosen + n * torch.arange(n_groups)[:, None]).flatten()


def _ensemble(
    runs: list[ChainGroups], n: int, system: System, generator: torch.Generator
) -> Ensemble:
    """`n` chains of all runs, the surplus left out at random, each with the weight of its group."""
    log_z = torch.cat([run.log_z for run in runs])
    n_chains = sum(len(run) for run in runs)
    kept = torch.randperm(n_chains, generator=generator)[:n].sort().values
    ancestors = torch.cat([run.ancestors + i * len(runs[0]) for i, run in enumerate(runs)])[kept]
    groups = torch.arange(len(log_z)).repeat_interleave(n_chains // len(log_z))[kept]
    return Ensemble(
        torch.cat([run.positions for run in runs])[kept],
        torch.cat([run.energies for run in runs])[kept],
        None,
        system,
        {
            "acceptance": sum(run.acceptance for run in runs) / len(runs),
            "n_ancestors": len(ancestors.unique()),
        },
        path_log_weights=log_z[groups],
        groups=groups,
    )


def _show(
    progress: Callable[[int, int], None] | None,
    n: int,
    n_total: int,
    done: int,
    n_chains: int,
    fraction: float,
) -> None:
    """Reports a fraction of the work on `n_chains`, beside those done, as a number out of `n`."""
    if progress is not None:
        progress(round(n * (done + fraction * n_chains) / n_total), n)
