"""A set of weighted structures: averages with errors, free energy, finishing, files."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.energy import CountedPotential
from boltztilt.files import atomic_path, check_writable
from boltztilt.report import plain, write_report
from boltztilt.sampling.estimate import Estimate, log_mean_exp, weighted_mean
from boltztilt.sampling.mcmc import mala
from boltztilt.systems.system import System, load_system

SUFFIXES = (".npz", ".dcd", ".xtc", ".pdb")


@dataclass(eq=False)
class Ensemble:
    """Structures drawn from a sampler, with their energies and exact log-densities.

    Attributes:
        positions: `(batch, atoms, dims)` in the units of the system, on the CPU.
        energies: U(x) in kT, `(batch,)`, float64.
        log_density: log q(x) of the law they were drawn from, `(batch,)`, float64; None if it was
            not computed.
        system: what was sampled.
        info: how they were made: seed, n_steps, solver, wall_time (s), n_energy, ...
    """

    positions: Tensor
    energies: Tensor
    log_density: Tensor | None
    system: System
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = self.positions.detach().cpu()
        self.energies = self.energies.detach().cpu().double()
        if self.log_density is not None:
            self.log_density = self.log_density.detach().cpu().double()
        expected = (len(self.energies), self.system.n_atoms, self.system.n_dims)
        if tuple(self.positions.shape) != expected:
            raise ValueError(
                f"positions of shape {tuple(self.positions.shape)} given for {len(self)} energies "
                f"of {self.system.name}; expected {expected}"
            )
        if self.log_density is not None and self.log_density.shape != self.energies.shape:
            raise ValueError(
                f"log_density has shape {tuple(self.log_density.shape)}; expected ({len(self)},)"
            )

    def __len__(self) -> int:
        return len(self.energies)

    @property
    def log_weights(self) -> Float64[Tensor, "batch"]:
        """log w = -U - log q, not normalised; -inf where the energy is not finite."""
        if self.log_density is None:
            raise ValueError(
                "this ensemble has no log-density, hence no weights: sample with the density "
                "(with_density=True), or ask for plain averages (weighted=False)"
            )
        log_weights = -self.energies - self.log_density
        return torch.where(torch.isfinite(log_weights), log_weights, -math.inf)

    @property
    def weights(self) -> Float64[Tensor, "batch"]:
        """Importance weights that sum to one."""
        log_weights = self.log_weights
        if not torch.isfinite(log_weights).any():
            raise ValueError(f"none of the {len(self)} structures has a finite energy and density")
        return log_weights.softmax(dim=0)

    @property
    def n_effective(self) -> float:
        """Kish's effective number of samples, (sum w)² / sum w²."""
        return 1.0 / float(self.weights.square().sum())

    @property
    def ess(self) -> float:
        """Kish's effective sample size as a fraction of the number of samples."""
        return self.n_effective / len(self)

    @property
    def log_z(self) -> Estimate:
        """log of the configuration integral of exp(-U), as log mean w, with its bootstrap error."""
        return log_mean_exp(self.log_weights)

    @property
    def elbo(self) -> Estimate:
        """Mean of log w: a lower bound of log Z, short of it by KL(q | target)."""
        return weighted_mean(self.log_weights)

    def mean(
        self,
        observable: Callable[[Tensor], Tensor],
        weighted: bool = True,
        n_bootstrap: int = 200,
        seed: int = 0,
    ) -> Estimate:
        """The average of a function of positions, `(batch, atoms, dims) -> (batch,)`."""
        values = observable(self.positions)
        if values.shape != self.energies.shape:
            raise ValueError(
                f"the observable returned shape {tuple(values.shape)}; expected one number for "
                f"each of the {len(self)} structures"
            )
        weights = self.weights if weighted else None
        return weighted_mean(values.double(), weights, n_bootstrap, seed)

    def mean_energy(self, weighted: bool = True) -> Estimate:
        """The average energy in kT."""
        return weighted_mean(self.energies, self.weights if weighted else None)

    def resample(self, n: int | None = None, seed: int = 0) -> Ensemble:
        """`n` structures drawn by weight: equally weighted, repeated where the weight is large.

        Systematic resampling: a structure of weight w appears floor(n w) or floor(n w) + 1 times.
        Errors of averages over the result ignore the repetitions; take them before resampling.

        Reference: Kitagawa (1996), Monte Carlo filter and smoother, doi:10.2307/1390750.
        """
        n = len(self) if n is None else n
        if n < 1:
            raise ValueError(f"n is {n}; resample at least 1 structure")
        offset = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        comb = (torch.arange(n, dtype=torch.float64) + offset) / n
        cumulative = self.weights.cumsum(0)
        chosen = torch.searchsorted(cumulative / cumulative[-1], comb).clamp(max=len(self) - 1)
        info = {**self.info, "resampled_from": len(self), "resample_seed": seed}
        info["n_distinct"] = len(chosen.unique())
        return Ensemble(self.positions[chosen], self.energies[chosen], None, self.system, info)

    def refine(
        self, n_steps: int, seed: int = 0, step_size: float | None = None, batch_size: int = 4096
    ) -> Ensemble:
        """The structures after `n_steps` MALA steps at the target; the law has no log-density.

        Energy evaluations are added to `info["n_energy"]`. The step size adapts, starting from
        `step_size`, a length (default: base_std / 50).
        """
        potential = CountedPotential(self.system.potential)
        generator = torch.Generator().manual_seed(seed)
        step_size = self.system.base_std / 50 if step_size is None else step_size
        states = []
        for batch in self.positions.split(batch_size):
            states.append(mala(potential, batch, n_steps, step_size, generator))
            step_size = states[-1].step_size
        n_energy = int(self.info.get("n_energy", 0)) + potential.n_energy
        acceptance = sum(state.acceptance for state in states) / len(states)
        refined = {"mala_steps": n_steps, "mala_acceptance": acceptance, "mala_seed": seed}
        return Ensemble(
            torch.cat([state.positions for state in states]),
            torch.cat([state.energies for state in states]),
            None,
            self.system,
            {**self.info, **refined, "n_energy": n_energy},
        )

    @classmethod
    def join(cls, ensembles: Sequence[Ensemble]) -> Ensemble:
        """All structures of several ensembles of one system, such as shards of a long run."""
        if not ensembles:
            raise ValueError("no ensembles to join")
        names = {ensemble.system.name for ensemble in ensembles}
        if len(names) > 1:
            raise ValueError(f"cannot join ensembles of different systems: {sorted(names)}")
        densities = [e.log_density for e in ensembles if e.log_density is not None]
        if len(densities) not in (0, len(ensembles)):
            raise ValueError("cannot join ensembles with and without log-density")
        return cls(
            torch.cat([ensemble.positions for ensemble in ensembles]),
            torch.cat([ensemble.energies for ensemble in ensembles]),
            torch.cat(densities) if densities else None,
            ensembles[0].system,
            _joined_info([ensemble.info for ensemble in ensembles]),
        )

    def report(self) -> dict[str, Any]:
        """What the ensemble is, how it was made, and its averages."""
        report: dict[str, Any] = {
            "system": self.system.name,
            "convention": self.system.convention,
            "n": len(self),
            "n_nonfinite": int((~torch.isfinite(self.energies)).sum()),
            **self.info,
            "energy_raw": self.mean_energy(weighted=False),
        }
        if self.log_density is not None:
            report["energy_reweighted"] = self.mean_energy()
            report["ess"] = self.ess
            report["n_effective"] = self.n_effective
            report["log_z"] = self.log_z
            report["elbo"] = self.elbo
        return report

    def save(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Writes the ensemble and returns the paths: trajectory, topology, numbers, report.

        The suffix of `path` chooses the trajectory: .dcd, .xtc or .pdb (nm scaled from the units
        of the system), or .npz alone. NAME.npz holds positions in native units, energies,
        log-densities and log-weights; NAME.report.json the report.
        """
        paths = check_output(path, overwrite)
        trajectory = paths[0]
        if trajectory.suffix != ".npz":
            from boltztilt.export import write_topology, write_trajectory

            write_trajectory(trajectory, self.positions, self.system)
            if trajectory.suffix != ".pdb":
                write_topology(trajectory.with_suffix(".pdb"), self.system, self.positions)
        self._save_numbers(trajectory.with_suffix(".npz"))
        write_report(trajectory.with_suffix(".report.json"), self.report())
        return paths

    def _save_numbers(self, path: Path) -> None:
        arrays = {"positions": self.positions.numpy(), "energies": self.energies.numpy()}
        if self.log_density is not None:
            arrays["log_density"] = self.log_density.numpy()
            arrays["log_weights"] = self.log_weights.numpy()
        arrays["system"] = np.array(self.system.name)
        arrays["info"] = np.array(json.dumps(plain(self.info)))
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, system: System | None = None) -> Ensemble:
        """The ensemble in an .npz file; a system that is not built in must be given."""
        arrays = read_arrays(path, ("positions", "energies", "system", "info"))
        if system is None:
            system = load_system(str(arrays["system"]))
        density = arrays.get("log_density")
        return cls(
            torch.as_tensor(arrays["positions"]),
            torch.as_tensor(arrays["energies"]),
            None if density is None else torch.as_tensor(density),
            system,
            json.loads(str(arrays["info"])),
        )


def check_output(path: str | Path, overwrite: bool = False) -> list[Path]:
    """The paths that saving to `path` writes, after checking that each can be written."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path}: its suffix must be one of {', '.join(SUFFIXES)}")
    others = [path.with_suffix(suffix) for suffix in (".pdb", ".npz", ".report.json")]
    if path.suffix == ".npz":
        others = others[1:]
    paths = list(dict.fromkeys([path, *others]))
    return [check_writable(each, overwrite) for each in paths]


def read_arrays(path: str | Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which must hold the required ones; pickles are refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file of samples: {error}") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}: it was written by another program")
    return arrays


def _joined_info(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Settings that all share, sums of costs, and the list of seeds."""
    joined = {
        key: value for key, value in infos[0].items() if all(i.get(key) == value for i in infos)
    }
    for cost in ("n_energy", "wall_time"):
        if any(cost in info for info in infos):
            joined[cost] = sum(info.get(cost, 0) for info in infos)
    if any("seed" in info for info in infos):
        joined["seed"] = [info.get("seed") for info in infos]
    return joined
