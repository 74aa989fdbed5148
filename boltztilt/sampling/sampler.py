"""A trained field as a sampler: structures with exact log-densities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from boltztilt.checkpoint import load_weights, save_weights
from boltztilt.geometry import remove_mean
from boltztilt.networks.build import build_network
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.flow import FlowResult, integrate, integrate_dopri5, warped_grid
from boltztilt.systems.system import System, load_system

DEFAULT_STEPS = 14
DEFAULT_BATCH = 500
SOLVERS = ("rk4", "dopri5")
Progress = Callable[[int, int], None]


class Sampler:
    """A velocity field trained for a system, with a record of how it was trained.

    Attributes:
        system: what is sampled.
        field: velocity network with `forward` and `velocity_and_divergence`.
        metadata: recipe, seed, energy evaluations, wall time (s), hardware and versions.
    """

    def __init__(self, system: System, field: nn.Module, metadata: dict[str, Any]) -> None:
        self.system = system
        self.field = field.eval().requires_grad_(False)
        self.metadata = metadata

    @property
    def device(self) -> torch.device:
        """Where the field lives, and so where sampling runs."""
        return next(self.field.parameters()).device

    def sample(
        self,
        n: int,
        seed: int = 0,
        n_steps: int = DEFAULT_STEPS,
        batch_size: int | None = None,
        with_density: bool = True,
        solver: str = "rk4",
        progress: Progress | None = None,
    ) -> Ensemble:
        """An ensemble of `n` independent structures.

        Args:
            n_steps: RK4 steps on the warped grid (ignored by the adaptive solver).
            batch_size: structures integrated at once; changes memory, and results by rounding.
            with_density: compute the exact log-density, hence weights and ESS.
            solver: "rk4" or "dopri5".
            progress: called with the numbers of structures done and wanted.
        """
        if n < 1:
            raise ValueError(f"n is {n}; sample at least 1 structure")
        started = time.monotonic()
        starts = self.system.base.sample(n, torch.Generator().manual_seed(seed))
        positions, log_density = self._transport(
            starts, n_steps, batch_size, with_density, solver, progress
        )
        log_density = self.system.base.log_density(starts) + log_density
        energies = self.system.potential.energy(positions)
        info = {
            "seed": seed,
            "solver": solver,
            "n_steps": n_steps if solver == "rk4" else None,
            "device": str(self.device),
            "n_energy": n,
            "n_energy_training": self.metadata.get("n_energy"),
            "wall_time": time.monotonic() - started,
        }
        return Ensemble(
            positions, energies, log_density if with_density else None, self.system, info
        )

    def log_density(
        self,
        positions: Float[Tensor, "batch atoms dims"],
        n_steps: int = DEFAULT_STEPS,
        batch_size: int | None = None,
        solver: str = "rk4",
        progress: Progress | None = None,
    ) -> Float64[Tensor, "batch"]:
        """log q of given structures, by following the flow backwards to the base."""
        positions = positions.to(torch.float32)
        if self.system.base.centered:
            positions = remove_mean(positions)
        starts, change = self._transport(
            positions, n_steps, batch_size, True, solver, progress, backward=True
        )
        return self.system.base.log_density(starts) - change

    def integration_error(
        self, ensemble: Ensemble, n: int = 256, n_steps: int | None = None
    ) -> float:
        """Root-mean-square change of log q - log p when the steps are halved, on `n` base draws.

        The ensemble tells the seed and the steps; its first `n` structures are drawn again with
        twice as many steps and their log-weights compared. The mean is weighted: a structure with
        overlapping atoms, whose huge energy changes with every digit, weighs nothing.
        """
        steps = n_steps or ensemble.info.get("n_steps") or DEFAULT_STEPS
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
        positions, change = self._transport(starts, n_steps, None, True, "rk4", None)
        energies = self.system.potential.energy(positions)
        return Ensemble(
            positions, energies, self.system.base.log_density(starts) + change, self.system
        )

    def _transport(
        self,
        starts: Tensor,
        n_steps: int,
        batch_size: int | None,
        with_density: bool,
        solver: str,
        progress: Progress | None,
        backward: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """End points and changes of log q in batches, on the CPU."""
        results = []
        done = 0
        for batch in starts.split(batch_size or DEFAULT_BATCH):
            result = self._flow(batch.to(self.device), n_steps, with_density, solver, backward)
            results.append(FlowResult(result.positions.cpu(), result.log_density_change.cpu()))
            done += len(batch)
            if progress is not None:
                progress(done, len(starts))
        positions, change = zip(*results, strict=True)
        return torch.cat(positions), torch.cat(change)

    def _flow(
        self, batch: Tensor, n_steps: int, with_density: bool, solver: str, backward: bool
    ) -> FlowResult:
        if solver == "rk4":
            times = warped_grid(n_steps)
            return integrate(self.field, batch, times.flip(0) if backward else times, with_density)
        if solver == "dopri5":
            ends = (1.0, 0.0) if backward else (0.0, 1.0)
            return integrate_dopri5(self.field, batch, *ends, with_density)
        raise ValueError(f"solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")

    def save(self, path: str | Path) -> None:
        """Writes weights and metadata as safetensors."""
        save_weights(path, self.field.state_dict(), self.metadata)

    @classmethod
    def load(cls, target: str | Path, system: System | None = None) -> Sampler:
        """The sampler of a shipped system, a run folder or a weights file.

        Args:
            target: the name of a system with shipped weights, or a path.
            system: what the weights were trained for; needed only when it is neither shipped nor
                kept in the run folder.

        Raises:
            FileNotFoundError: there are no weights at the target.
            ValueError: the file is damaged or foreign, or belongs to another system.
        """
        path, kept = _weights_and_system(target)
        weights, metadata = load_weights(path)
        try:
            trained_for, network = metadata["system"], metadata["recipe"]["network"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not tell its system and network: no {error}") from error
        system = system or kept or load_system(trained_for)
        if trained_for != system.name:
            raise ValueError(f"{path} was trained for {trained_for!r}, not for {system.name!r}")
        field = build_network(network, system)
        try:
            field.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit its own network: {error}") from error
        return cls(system, field, metadata)


def sample(name: str | Path, n: int, seed: int = 0, **settings: Any) -> Ensemble:
    """An ensemble of `n` structures from shipped weights, a run folder or a weights file.

    Further settings are those of `Sampler.sample`.
    """
    return Sampler.load(name).sample(n, seed=seed, **settings)


def _weights_and_system(target: str | Path) -> tuple[Path, System | None]:
    """The weights file meant by a name or path, and the system kept beside it, if any."""
    path = Path(target)
    if path.is_dir():
        weights, kept = path / "weights.safetensors", path / "system.toml"
        if not weights.is_file():
            raise FileNotFoundError(
                f"{path} holds no weights.safetensors: train there first, or give another folder"
            )
        return weights, load_system(kept) if kept.is_file() else None
    if path.suffix == ".safetensors":
        return path, None
    system = load_system(str(target))
    shipped = system.weights_path()
    if shipped is None:
        raise FileNotFoundError(
            f"system {system.name!r} has no trained weights: run `boltztilt train {target} -o "
            f"runs/{system.name}` and sample from that folder"
        )
    return shipped, system
