"""Reference samples by long Markov chains, with the checks of `equilibration`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltztilt.analysis.equilibration import check_equilibration, slow_observables
from boltztilt.energy import CountedPotential, check_same_energies, in_parts
from boltztilt.files import atomic_path, check_writable, read_arrays
from boltztilt.report import plain
from boltztilt.sampling.estimate import Estimate, weighted_mean
from boltztilt.sampling.mcmc import ChainState, hmc
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.annealing import ChainGroups, find_ladder
from boltztilt.whole_numbers import seeded, whole_number

N_LEAPFROG = 8
N_BURN_IN = 100
BLOCK = 20
FIRST_THINNING, MOST_THINNING = 20, 640
FORGOTTEN = 0.1  # correlation at which a chain counts as independent of its past
ANNEALING_SHARE = 0.2  # of the progress shown
SUFFIXES = (".npz", ".dcd", ".xtc")


@dataclass(eq=False)
class Reference:
    """Equally weighted samples of the target.

    Attributes:
        positions: `(batch, atoms, dims)` in the units of the system.
        energies: U(x) in kT, `(batch,)`, float64.
        system: what was sampled.
        checks: tests of equilibration; empty for samples that came from elsewhere.
        info: how they were made.
        groups: the number of the chain that each sample belongs to, `(batch,)`; errors are those
            over chains. None: all samples are independent.

    Where the energy of a molecule does not tell mirror images apart, samples are reflected into the
    handedness of its own structure, as those of samplers are.
    """

    positions: Tensor
    energies: Tensor
    system: System
    checks: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.system.one_handed:
            assert self.system.molecule is not None
            self.positions, _ = self.system.molecule.unmirrored(self.positions)

    def __len__(self) -> int:
        return len(self.energies)

    def mean_energy(self) -> Estimate:
        """The average energy in kT: that of whole chains where these were checked."""
        known = self.checks.get("energy")
        return known or weighted_mean(self.energies, groups=self.groups)

    def report(self) -> dict[str, Any]:
        """How the samples were made, their mean energy, and the checks."""
        about = {"system": self.system.name, "convention": self.system.convention, "n": len(self)}
        return {**about, **self.info, **self.checks}

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the samples and returns the path of the .npz file, which `load` reads.

        A path that ends in .dcd or .xtc adds a trajectory, and its topology as .pdb.
        """
        *others, numbers = paths = reference_paths(path, overwrite)
        self.system.refuse_own_files(paths)
        groups = {} if self.groups is None else {"groups": self.groups.numpy()}
        with atomic_path(numbers) as temporary:
            np.savez(
                temporary,
                **groups,  # type: ignore[arg-type]
                positions=self.positions.numpy(),
                energies=self.energies.numpy(),
                system=np.array(self.system.name),
                checks=np.array(json.dumps(plain(self.checks))),
                info=np.array(json.dumps(plain(self.info))),
            )
        if others:
            from boltztilt.export import write_topology, write_trajectory

            write_trajectory(others[0], self.positions, self.system)
            write_topology(others[1], self.system, self.positions)
        return numbers

    @classmethod
    def load(cls, path: str | Path, system: System | None = None) -> Reference:
        """The samples in an .npz file; only `positions` is required when the system is given.

        Energies are computed anew; energies in the file that differ follow another convention and
        are refused, as are the structures of an ensemble that were not resampled by weight.
        """
        arrays = read_arrays(path, ("positions",) if system else ("positions", "system"))
        _refuse_ensemble(path, arrays)
        if system is None:
            system = load_system(str(arrays["system"]))
        positions = torch.as_tensor(arrays["positions"], dtype=torch.float32)
        if positions.shape[1:] != (system.n_atoms, system.n_dims) or not len(positions):
            raise ValueError(
                f"{path} holds positions of shape {tuple(positions.shape)}; {system.name} needs "
                f"(batch, {system.n_atoms}, {system.n_dims})"
            )
        energies = in_parts(system.potential.energy, positions).double()
        if unknown := int((~torch.isfinite(energies)).sum()):
            raise ValueError(
                f"{path}: {unknown} of {len(energies)} structures have no finite energy by "
                f"{system.name}; leave them out, reference samples are structures of the target"
            )
        if "energies" in arrays:
            stored = torch.as_tensor(arrays["energies"]).double()
            check_same_energies(path, system, stored, energies)
        checks, info = (json.loads(str(arrays.get(name, "{}"))) for name in ("checks", "info"))
        groups = arrays.get("groups")
        if groups is not None and groups.shape != energies.shape:
            raise ValueError(
                f"{path} holds groups of shape {groups.shape} for {len(energies)} structures"
            )
        chains = None if groups is None else torch.as_tensor(groups)
        return cls(positions, energies, system, _restored(checks), info, chains)


def reference_paths(path: str | Path, overwrite: bool = False) -> list[Path]:
    """The files that saving a reference to `path` writes, the .npz last, if each can be written."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"a reference is written as .npz, or as .dcd or .xtc with an .npz beside it; the "
            f"path given is {path}"
        )
    suffixes = [] if path.suffix == ".npz" else [path.suffix, ".pdb"]
    paths = [path.with_suffix(suffix) for suffix in (*suffixes, ".npz")]
    return [check_writable(each, overwrite) for each in paths]


def make_reference(
    system: System,
    n_samples: int = 10_000,
    seed: int = 0,
    n_chains: int | None = None,
    n_between: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """`n_samples` of the target from independent Hamiltonian chains, with their checks.

    The chains start at the Gaussian base, are annealed to the target, run freely to forget their
    common ancestors, and then give one sample each every `n_between` trajectories: by default as
    many as it takes for the correlation of every slow observable to fall below 0.1.
    """
    n_samples, seed = whole_number("n_samples", n_samples, least=4), seeded(seed)
    n_chains = n_chains or min(1000, n_samples // 2)
    if not 2 <= n_chains <= n_samples // 2:
        raise ValueError(
            f"n_chains is {n_chains}; give 2 to {n_samples // 2}, so that each has two samples"
        )
    started = time.perf_counter()
    potential = CountedPotential(system.potential)
    generator = torch.Generator().manual_seed(seed)
    n_rounds = math.ceil(n_samples / n_chains)
    bar = _ProgressBar(progress, n_rounds)
    annealed = ChainGroups(potential, system.base, 1, n_chains, generator)
    ladder = find_ladder(annealed, progress=bar.annealing)
    move = partial(hmc, potential, scale=system.base.mode_scale)
    run = partial(_run, move, generator=generator, bar=bar)
    state = run(annealed.positions, N_BURN_IN, ladder.step_sizes[-1], adapt=True)
    if n_between is None:
        state, n_between = _forget(system, state, run)
    bar.set_trajectories(n_rounds * n_between)
    rounds = []
    for _ in range(n_rounds):
        state = run(state.positions, n_between, state.step_size)
        rounds.append(state)
    positions = torch.stack([each.positions for each in rounds], dim=1)
    energies = torch.stack([each.energies for each in rounds], dim=1)
    checks = check_equilibration(system, positions, energies)
    order = torch.randperm(n_chains * n_rounds, generator=generator)[:n_samples]
    groups = order // n_rounds
    info = {
        "method": "annealed Hamiltonian Monte Carlo",
        "seed": seed,
        "n_chains": n_chains,
        "n_rounds": n_rounds,
        "n_between": n_between,
        "n_leapfrog": N_LEAPFROG,
        "step_size": state.step_size,
        "acceptance": state.acceptance,
        "n_energy": potential.n_energy,
        "wall_time": time.perf_counter() - started,
    }
    return Reference(
        positions.flatten(0, 1)[order], energies.flatten()[order], system, checks, info, groups
    )


def _forget(
    system: System, state: ChainState, run: Callable[..., ChainState]
) -> tuple[ChainState, int]:
    """Chains run on until they forget, and the number of trajectories that takes."""
    n_between = FIRST_THINNING
    while True:
        later = run(state.positions, n_between, state.step_size)
        before, after = (
            slow_observables(system, each.positions, each.energies) for each in (state, later)
        )
        memory = max(
            float(torch.corrcoef(torch.stack([before[name], after[name]]))[0, 1]) for name in before
        )
        if memory < FORGOTTEN or n_between >= MOST_THINNING:
            return later, n_between
        state, n_between = later, 2 * n_between


class _ProgressBar:
    """Reports annealing, burn-in and production as one count of trajectories."""

    def __init__(self, progress: Callable[[int, int], None] | None, n_rounds: int):
        self.progress = progress
        self.done = 0
        self.ahead = N_BURN_IN + (n_rounds + 1) * FIRST_THINNING
        self.n_annealing = round(ANNEALING_SHARE * self.ahead)

    def annealing(self, fraction: float) -> None:
        self.done = round(fraction * self.n_annealing)
        if self.progress is not None:
            self.progress(self.done, self.n_annealing + self.ahead)

    def set_trajectories(self, n: int) -> None:
        self.ahead = n

    def advance(self, n: int) -> None:
        self.done += n
        self.ahead = max(self.ahead - n, 0)
        if self.progress is not None:
            self.progress(self.done, self.done + self.ahead)


def _run(
    move: Callable[..., ChainState],
    positions: Tensor,
    n_steps: int,
    step_size: float,
    generator: torch.Generator,
    bar: _ProgressBar,
    adapt: bool = False,
) -> ChainState:
    """`n_steps` trajectories, in blocks, so that progress shows."""
    for done in range(0, n_steps, BLOCK):
        block = min(BLOCK, n_steps - done)
        state = move(positions, block, step_size, N_LEAPFROG, generator, adapt)
        positions, step_size = state.positions, state.step_size
        bar.advance(block)
    return state


def _restored(check: Any) -> Any:
    """Checks as they were before they were written, with estimates and what was not finite."""
    if not isinstance(check, dict):
        return math.inf if check is None else check
    if set(check) == {"value", "error"}:
        return Estimate.read(check)
    return {name: _restored(entry) for name, entry in check.items()}


def _refuse_ensemble(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Raises ValueError where an ensemble of a sampler is taken for reference samples."""
    of_ensemble = "info" in arrays and "checks" not in arrays
    if of_ensemble and "resampled_from" not in json.loads(str(arrays["info"])):
        raise ValueError(
            f"{path} holds structures of a sampler, not reference samples; make these with "
            "`boltztilt reference NAME -o NAME_reference.npz`, or resample the structures by weight"
        )
