"""A set of weighted structures: averages with errors, free energy, finishing, files."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.energy import check_same_energies
from boltztilt.files import read_arrays
from boltztilt.sampling.cautions import cautions
from boltztilt.sampling.ensemble_files import PER_STRUCTURE, write_ensemble
from boltztilt.sampling.estimate import Estimate, log_mean_exp, pareto_k, weighted_mean
from boltztilt.sampling.joining import joined, joined_info, numbered_apart
from boltztilt.sampling.refinement import refined
from boltztilt.sampling.resampling import systematic_resampling
from boltztilt.systems.system import System, available_systems, load_system
from boltztilt.whole_numbers import seeded, whole_number

N_COMPARED = 4
"""Structures of a file whose energies are compared with those of the system it is read for."""


@dataclass(eq=False)
class Ensemble:
    """Structures drawn from a sampler, with their energies and exact weights.

    Weights come from the density of the law that the structures were drawn from, or, where that
    has none, from the path on which they were made.

    Attributes:
        positions: `(batch, atoms, dims)` in the units of the system, on the CPU.
        energies: U(x) in kT, `(batch,)`, float64.
        log_density: log q(x) of the law they were drawn from, `(batch,)`, float64; None if it was
            not computed.
        system: what was sampled.
        info: how they were made: seed, n_steps, solver, wall_time (s), n_energy, ...
        path_log_weights: log-weights of the paths on which the structures were made, in place of
            a log-density: their exponentials have the mean Z, `(batch,)`, float64.
        groups: the number of the group each structure belongs to, `(batch,)`; structures of one
            group depend on each other, groups do not, and errors are those over groups. None: all
            structures are independent.
    """

    positions: Tensor
    energies: Tensor
    log_density: Tensor | None
    system: System
    info: dict[str, Any] = field(default_factory=dict)
    path_log_weights: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        self.positions = self.positions.detach().cpu()
        self.energies = self.energies.detach().cpu().double()
        if self.log_density is not None:
            self.log_density = self.log_density.detach().cpu().double()
        if self.path_log_weights is not None:
            self.path_log_weights = self.path_log_weights.detach().cpu().double()
        if self.groups is not None:
            self.groups = self.groups.cpu().long()
        self._check_shapes()

    def _check_shapes(self) -> None:
        expected = (len(self.energies), self.system.n_atoms, self.system.n_dims)
        if tuple(self.positions.shape) != expected:
            raise ValueError(
                f"positions of shape {tuple(self.positions.shape)} given for {len(self)} energies "
                f"of {self.system.name}; expected {expected}"
            )
        for name in PER_STRUCTURE:
            values = getattr(self, name)
            if values is not None and values.shape != self.energies.shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; expected ({len(self)},)")
        if self.log_density is not None and self.path_log_weights is not None:
            raise ValueError("weights come from log_density or path_log_weights: give one of them")

    def __len__(self) -> int:
        return len(self.energies)

    def unmirrored(self) -> Ensemble:
        """The same structures in the handedness of the molecule's own structure.

        Where a molecule's energy does not tell mirror images apart, neither does the law that the
        structures were drawn from: reflecting those of the wrong hand doubles its density, and Z
        is that of one hand. `info["mirrored"]` is their share with its error: far from one half,
        the structures have collapsed. Other systems stay as they are, and so do ensembles that are
        unmirrored already, as samplers and `anneal` return them.
        """
        if not self.system.one_handed or "mirrored" in self.info:
            return self
        assert self.system.molecule is not None
        positions, mirrored = self.system.molecule.unmirrored(self.positions)
        density, path = self.log_density, self.path_log_weights
        return dataclasses.replace(
            self,
            positions=positions,
            log_density=None if density is None else density + math.log(2),
            path_log_weights=None if path is None else path - math.log(2),
            info={**self.info, "mirrored": weighted_mean(mirrored.double(), groups=self.groups)},
        )

    @property
    def has_weights(self) -> bool:
        """Whether the structures carry weights, by density or by path."""
        return self.log_density is not None or self.path_log_weights is not None

    @property
    def any_weight(self) -> bool:
        """Whether the structures carry weights, and one of them is positive."""
        return self.has_weights and bool(torch.isfinite(self.log_weights).any())

    @property
    def log_weights(self) -> Float64[Tensor, "batch"]:
        """log w = -U - log q or that of the path, not normalised; -inf where U is not finite."""
        if self.path_log_weights is not None:
            return torch.where(torch.isfinite(self.energies), self.path_log_weights, -math.inf)
        if self.log_density is None:
            how = "sample with the density (with_density=True)"
            if "refine_steps" in self.info:
                how = "take averages before refine(), by weight, or resample() before it"
            raise ValueError(
                f"this ensemble has no log-density, hence no weights: {how}, or ask for plain "
                "averages (weighted=False)"
            )
        log_weights = -self.energies - self.log_density
        return torch.where(torch.isfinite(log_weights), log_weights, -math.inf)

    @property
    def weights(self) -> Float64[Tensor, "batch"]:
        """Importance weights that sum to one."""
        log_weights = self.log_weights
        if not torch.isfinite(log_weights).any():
            raise ValueError(f"{self.no_weight}: there are no weighted averages")
        return log_weights.softmax(dim=0)

    @property
    def no_weight(self) -> str:
        """What is to be said where no structure has a weight."""
        return f"none of the {len(self)} structures has a finite energy and density"

    @property
    def views(self) -> dict[str, Tensor | None]:
        """Weights by which averages are reported: none ("raw") and, if any, ("reweighted")."""
        return {"raw": None, "reweighted": self.weights} if self.any_weight else {"raw": None}

    @property
    def n_effective(self) -> float:
        """Kish's effective number of samples, (sum w)² / sum w².

        It counts how even the weights are and nothing else: structures of one group may have
        common ancestors. `n_independent` sees that.
        """
        return 1.0 / float(self.weights.square().sum())

    @property
    def ess(self) -> float:
        """Kish's effective sample size as a fraction of the number of samples."""
        return self.n_effective / len(self)

    @property
    def pareto_k(self) -> float:
        """How heavy the tail of the weights is, see `estimate.pareto_k`; NaN where groups share
        theirs."""
        return math.nan if self.groups is not None else pareto_k(self.log_weights)

    @property
    def n_groups(self) -> int:
        """How many independent groups there are: all structures, where no groups are given."""
        return len(self) if self.groups is None else len(self.groups.unique())

    @property
    def n_independent(self) -> float:
        """var U / (error of <U>)²: as many independent structures would tell <U> as well.

        At most the number of structures, and of the draws they descend from. Its own relative
        error is about sqrt(2 / groups); of a single group it is NaN.
        """
        mean = self.mean_energy()
        if not mean.error > 0:  # also where it is NaN
            return math.nan
        squares = torch.where(self.weights > 0, self.energies - mean.value, 0.0).square()
        most = min(len(self), self.info.get("n_ancestors", len(self)))
        return min(float((self.weights * squares).sum()) / mean.error**2, float(most))

    @property
    def cautions(self) -> list[str]:
        """Why averages and their errors may not be trusted; empty where they may."""
        return cautions(self)

    @property
    def log_z(self) -> Estimate:
        """log of the configuration integral of exp(-U), as log mean w, with its bootstrap error."""
        return log_mean_exp(self.log_weights, groups=self.groups)

    @property
    def elbo(self) -> Estimate:
        """Mean of log w: a lower bound of log Z, short of it by KL(q | target)."""
        return weighted_mean(self.log_weights, groups=self.groups)

    def mean(
        self,
        observable: Callable[[Tensor], Any],
        weighted: bool | None = None,
        n_bootstrap: int = 200,
        seed: int = 0,
    ) -> Estimate:
        """The average of a function of positions, `(batch, atoms, dims) -> (batch,)`.

        Args:
            observable: may return a tensor or an array.
            weighted: whether by weight; None: yes, unless structures were drawn by weight already
                (`resample`).
        """
        values = torch.as_tensor(observable(self.positions))
        if values.shape != self.energies.shape:
            raise ValueError(
                f"the observable returned shape {tuple(values.shape)}; expected one number for "
                f"each of the {len(self)} structures"
            )
        weights = self._weights_of_averages(weighted)
        return weighted_mean(values.double(), weights, n_bootstrap, seed, self.groups)

    def mean_energy(self, weighted: bool | None = None) -> Estimate:
        """The average energy in kT; `weighted` as in `mean`."""
        weights = self._weights_of_averages(weighted)
        return weighted_mean(self.energies, weights, groups=self.groups)

    def _weights_of_averages(self, weighted: bool | None) -> Tensor | None:
        if weighted is None:
            weighted = self.has_weights or "resampled_from" not in self.info
        return self.weights if weighted else None

    @property
    def median_energy(self) -> float:
        """The median energy in kT, without weights: unlike the mean it bears a few overlaps."""
        lower, upper = self.energies.nanmedian(), -(-self.energies).nanmedian()
        return float(lower + upper) / 2

    def resample(self, n: int | None = None, seed: int = 0) -> Ensemble:
        """`n` structures drawn by weight: equally weighted, repeated where the weight is large.

        Systematic resampling: a structure of weight w appears floor(n w) or floor(n w) + 1 times.
        Its copies are one group, so that errors of averages are those over distinct structures,
        whatever becomes of the copies.
        """
        n, seed = whole_number("n", len(self) if n is None else n), seeded(seed)
        generator = torch.Generator().manual_seed(seed)
        chosen = systematic_resampling(self.weights[None], n, generator)[0]
        info = {**self.info, "resampled_from": len(self), "resample_seed": seed}
        info["n_distinct"] = len(chosen.unique())
        groups = chosen if self.groups is None else self.groups[chosen]
        return Ensemble(
            self.positions[chosen], self.energies[chosen], None, self.system, info, groups=groups
        )

    def refine(
        self,
        n_steps: int,
        seed: int | None = None,
        step_size: float | None = None,
        batch_size: int = 4096,
    ) -> Ensemble:
        """The structures after `n_steps` leapfrog steps of Hamiltonian Monte Carlo at the target.

        Each step costs one evaluation of energy and force, as one of MALA does, but trajectories
        of several steps carry further: short ones first, which leave overlaps and adapt the step
        size, then longer ones. The law of the result has no log-density. Steps, energy evaluations
        and seconds are added to those in `info`. The step size starts from `step_size`, a length
        (default: base_std / 50). The default seed is that of the sample: ensembles of different
        seeds, and repeated refinements, move independently of each other.
        """
        started = time.monotonic()
        n_steps = whole_number("n_steps", n_steps)
        seed = self._own_seed() if seed is None else seeded(seed)
        n_before = int(self.info.get("refine_steps", 0))
        given = (n_steps, seed, step_size, batch_size, n_before)
        end = refined(self.system, self.positions, *given)
        info = {
            **self.info,
            "refine_steps": n_before + n_steps,
            "refine_acceptance": end.acceptance,
            "refine_seed": seed,
            "n_energy": int(self.info.get("n_energy", 0)) + end.n_energy,
            "wall_time": self.info.get("wall_time", 0.0) + time.monotonic() - started,
        }
        return Ensemble(end.positions, end.energies, None, self.system, info, groups=self.groups)

    def _own_seed(self) -> int:
        """The seed of the sample, 0 where none is known; of joined samples one made of theirs."""
        seed = self.info.get("seed", 0)
        return seed if isinstance(seed, int) else zlib.crc32(json.dumps(seed).encode())

    @classmethod
    def join(cls, ensembles: Sequence[Ensemble]) -> Ensemble:
        """All structures of several ensembles of one system, such as shards of a long run."""
        if not ensembles:
            raise ValueError("no ensembles to join")
        names = {ensemble.system.name for ensemble in ensembles}
        if len(names) > 1:
            raise ValueError(f"cannot join ensembles of different systems: {sorted(names)}")
        return cls(
            torch.cat([ensemble.positions for ensemble in ensembles]),
            torch.cat([ensemble.energies for ensemble in ensembles]),
            joined("log_density", [ensemble.log_density for ensemble in ensembles]),
            ensembles[0].system,
            joined_info([each.info for each in ensembles], [len(each) for each in ensembles]),
            joined("path_log_weights", [ensemble.path_log_weights for ensemble in ensembles]),
            joined("groups", numbered_apart([ensemble.groups for ensemble in ensembles])),
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
            "energy_median_raw": self.median_energy,
        }
        if self.groups is not None:
            report["n_groups"] = self.n_groups
        if self.any_weight:
            report["energy_reweighted"] = self.mean_energy()
            report["ess"] = self.ess
            report["n_effective"] = self.n_effective
            if not math.isnan(k := self.pareto_k):
                report["pareto_k"] = k
            if self.groups is not None:
                report["n_independent"] = self.n_independent
            report["log_z"] = self.log_z
            report["elbo"] = self.elbo
        if cautions := self.cautions:
            report["cautions"] = cautions
        return report

    def save(self, path: str | Path, overwrite: bool = False) -> list[Path]:
        """Writes the ensemble and returns the paths: trajectory, topology, numbers, report.

        The suffix of `path` chooses the trajectory: .dcd, .xtc or .pdb (nm scaled from the units
        of the system), or .npz alone. NAME.npz holds positions in native units, energies,
        log-densities and log-weights; NAME.report.json the report. Both are written first.

        Raises:
            ValueError: a suffix that is not known, or positions that a trajectory cannot hold.
            FileExistsError: one of the files is there already.
        """
        return write_ensemble(self, path, overwrite)

    @classmethod
    def load(cls, path: str | Path, system: System | str | Path | None = None) -> Ensemble:
        """The ensemble in an .npz file; a system that is not built in must be given.

        Raises:
            ValueError: the system has another name than in the file, or other energies.
        """
        arrays = read_arrays(path, ("positions", "energies", "system", "info"))
        name = str(arrays["system"])
        system = None if system is None else load_system(system)
        if system is not None and system.name != name:
            raise ValueError(f"{path} holds structures of {name!r}, not of {system.name!r}")
        if system is None:
            if name not in available_systems():
                raise ValueError(
                    f"{path} holds structures of {name!r}, which does not come with boltztilt: "
                    "Ensemble.load(path, system=...) takes the system itself"
                )
            system = load_system(name)
        kept = {name: torch.as_tensor(arrays[name]) for name in PER_STRUCTURE if name in arrays}
        info = json.loads(str(arrays["info"]))
        if isinstance(info.get("mirrored"), dict):
            info["mirrored"] = Estimate.read(info["mirrored"])
        loaded = cls(
            torch.as_tensor(arrays["positions"]),
            torch.as_tensor(arrays["energies"]),
            kept.pop("log_density", None),
            system,
            info,
            **kept,
        )
        computed = system.potential.energy(loaded.positions[:N_COMPARED].float()).double()
        known = torch.isfinite(computed)
        stored = loaded.energies[:N_COMPARED]
        check_same_energies(path, system, stored[known], computed[known])
        return loaded
