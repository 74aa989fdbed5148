"""Langevin dynamics of a molecule by OpenMM: independent replicas that can be interrupted."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from boltztilt.checkpoint import load_state_of, save_state
from boltztilt.energy import Potential
from boltztilt.potentials.openmm_frames import find_platform, import_openmm
from boltztilt.potentials.openmm_potential import OpenMMSource

if TYPE_CHECKING:
    import openmm

PLATFORM = "Reference"  # double precision, and the fastest for a few tens of atoms
FRAMES_PER_BLOCK = 20
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Langevin:
    """How replicas move.

    Attributes:
        time_step: in fs.
        friction: in 1/ps.
        smallest_mass: in dalton; lighter atoms are given this mass. Masses do not enter the
            distribution of positions, and heavier hydrogens allow twice the time step.
        frame_interval: time between two frames, in ps.
        settling_time: in ps, before the first frame.
    """

    time_step: float = 2.0
    friction: float = 1.0
    smallest_mass: float = 4.0
    frame_interval: float = 2.0
    settling_time: float = 10.0

    def __post_init__(self) -> None:
        for name in ("time_step", "friction", "frame_interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("smallest_mass", "settling_time"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")
        if 1000.0 * self.frame_interval < self.time_step:
            raise ValueError(
                f"frame_interval ({self.frame_interval} ps) is shorter than time_step "
                f"({self.time_step} fs)"
            )

    def n_steps(self, time: float) -> int:
        """How many time steps there are in a time in ps."""
        return round(1000.0 * time / self.time_step)


class PhasePoint(NamedTuple):
    """Positions in nm and velocities in nm/ps of one replica."""

    positions: Float64[Tensor, "atoms 3"]
    velocities: Float64[Tensor, "atoms 3"]


def run_replicas(
    source: OpenMMSource,
    starts: Float[Tensor, "replicas atoms 3"],
    n_frames: int,
    seed: int = 0,
    settings: Langevin | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[Tensor, "replicas frames atoms 3"]:
    """Frames of independent replicas by Langevin dynamics at the temperature of the source.

    Replicas start with thermal velocities and settle before the first frame. They advance in turn
    by blocks of frames. Each block is a function of positions, velocities and its own seed alone,
    so that a run continued from `state_path`, which is written after each round of blocks, is that
    of an uninterrupted one.

    Positions follow the density of the energy up to the error of the time step, which for
    harmonic bonds vanishes: the scheme draws positions of a harmonic oscillator exactly.

    Args:
        progress: called with the picoseconds done and wanted, all replicas together.

    Reference: Zhang et al. (2019), Unified efficient thermostat scheme for the canonical ensemble
        with holonomic or isokinetic constraints, doi:10.1021/acs.jpca.9b02771 (LFMiddle).
    """
    settings = settings or Langevin()
    n_replicas = len(starts)
    given = {"seed": seed, "n_replicas": n_replicas, "n_frames": n_frames, **asdict(settings)}
    given["system"] = fingerprint(source)
    prepared = with_smallest_mass(with_free_centre(source), settings.smallest_mass)
    run = _Run(prepared, settings, given)
    done = run.load(state_path) if resume and state_path else None
    replicas, frames = done or ([], torch.empty(n_replicas, 0, *starts.shape[1:]))
    total = round(n_replicas * (settings.settling_time + n_frames * settings.frame_interval))
    for index in range(len(replicas), n_replicas):
        replicas.append(run.start(starts[index], index))
        _report(progress, (index + 1) * settings.settling_time, total)
    started = n_replicas * settings.settling_time
    while frames.shape[1] < n_frames:
        n_block = min(FRAMES_PER_BLOCK, n_frames - frames.shape[1])
        blocks = []
        for index, replica in enumerate(replicas):
            block, replicas[index] = run.advance(replica, n_block, index, frames.shape[1])
            blocks.append(block)
            n_done = n_replicas * frames.shape[1] + (index + 1) * n_block
            _report(progress, started + n_done * settings.frame_interval, total)
        frames = torch.cat([frames, torch.stack(blocks)], dim=1)
        if state_path:
            run.save(state_path, replicas, frames)
    return frames


def langevin(
    source: OpenMMSource,
    start: PhasePoint,
    n_frames: int,
    n_steps: int,
    settings: Langevin,
    seed: int,
) -> tuple[Float32[Tensor, "frames atoms 3"], PhasePoint]:
    """`n_frames` frames, `n_steps` time steps apart, and where the dynamics ends.

    Raises:
        ValueError: the dynamics becomes unstable.
    """
    mm = import_openmm()
    integrator = mm.LangevinMiddleIntegrator(
        source.temperature, settings.friction, 1e-3 * settings.time_step
    )
    integrator.setRandomNumberSeed(seed)
    context = mm.Context(source.system, integrator, find_platform(PLATFORM))
    context.setPositions(start.positions.numpy())
    context.setVelocities(start.velocities.numpy())
    frames = torch.empty(n_frames, *start.positions.shape, dtype=torch.float64)
    try:
        for frame in range(n_frames):
            integrator.step(n_steps)
            frames[frame] = _phase_point(context).positions
    except mm.OpenMMException as error:
        if "nan" not in str(error).lower():
            raise
        frames[-1] = torch.nan
    if not torch.isfinite(frames).all():
        raise ValueError(
            f"the dynamics became unstable with a time step of {settings.time_step} fs: choose a "
            "shorter one"
        )
    return frames.float(), _phase_point(context)


def with_free_centre(source: OpenMMSource) -> OpenMMSource:
    """A copy of the source whose centre of mass moves as the forces on it tell.

    A `CMMotionRemover`, which OpenMM adds to what it makes from force fields, would keep it at
    rest, also where an external force acts on it.
    """
    remover = import_openmm().CMMotionRemover
    system = copy.deepcopy(source.system)
    for number in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(number), remover):
            system.removeForce(number)
    return source._replace(system=system)


def with_smallest_mass(source: OpenMMSource, smallest_mass: float) -> OpenMMSource:
    """A copy of the source in which no atom is lighter than `smallest_mass`, in dalton."""
    system = copy.deepcopy(source.system)
    for atom in range(system.getNumParticles()):
        if system.getParticleMass(atom)._value < smallest_mass:
            system.setParticleMass(atom, smallest_mass)
    return source._replace(system=system)


def thermal(source: OpenMMSource, positions: Float[Tensor, "atoms 3"], seed: int) -> PhasePoint:
    """The positions with velocities of the source's temperature."""
    mm = import_openmm()
    context = mm.Context(source.system, mm.VerletIntegrator(0.001), find_platform(PLATFORM))
    context.setPositions(positions.double().numpy())
    context.setVelocitiesToTemperature(source.temperature, seed)
    return _phase_point(context)


def fingerprint(source: OpenMMSource) -> str:
    """A few letters for forces and temperature, by which interrupted work knows its system."""
    words = f"{import_openmm().XmlSerializer.serialize(source.system)} {source.temperature} K"
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def find_source(potential: Potential) -> OpenMMSource | None:
    """The OpenMM System behind a potential, if there is one."""
    return getattr(potential, "source", None)


@dataclass
class _Run:
    """What stays the same while replicas advance."""

    source: OpenMMSource
    settings: Langevin
    given: dict[str, Any]

    def start(self, positions: Tensor, index: int) -> PhasePoint:
        """A replica after settling."""
        n_steps = self.settings.n_steps(self.settings.settling_time)
        replica = thermal(self.source, positions, self.seed(index, 0))
        return langevin(self.source, replica, 1, n_steps, self.settings, self.seed(index, 1))[1]

    def advance(
        self, replica: PhasePoint, n_frames: int, index: int, n_before: int
    ) -> tuple[Tensor, PhasePoint]:
        """The next frames of a replica, and where it then stands."""
        n_steps = self.settings.n_steps(self.settings.frame_interval)
        seed = self.seed(index, 2 + n_before)
        return langevin(self.source, replica, n_frames, n_steps, self.settings, seed)

    def seed(self, index: int, stage: int) -> int:
        """A seed of its own for every part of every replica; never 0, which OpenMM draws anew."""
        words = np.random.SeedSequence([self.given["seed"], index, stage]).generate_state(1)
        return 1 + int(words[0]) % (LARGEST_SEED - 1)

    def save(self, path: Path, replicas: list[PhasePoint], frames: Tensor) -> None:
        """Writes where the run stands, whole or not at all."""
        positions, velocities = (torch.stack(parts) for parts in zip(*replicas, strict=True))
        state = {"positions": positions, "velocities": velocities, "frames": frames}
        save_state(path, {"progress": frames.shape[1], "settings": self.given, **state})

    def load(self, path: Path) -> tuple[list[PhasePoint], Tensor] | None:
        """Where the run in a file stands; None where there is no file."""
        if not path.exists():
            return None
        state = load_state_of(path, self.given)
        replicas = list(map(PhasePoint, state["positions"], state["velocities"]))
        return replicas, state["frames"]


def _phase_point(context: openmm.Context) -> PhasePoint:
    state = context.getState(positions=True, velocities=True)
    quantities = (state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True))
    return PhasePoint(*(torch.from_numpy(np.array(each._value)) for each in quantities))


def _report(progress: Callable[[int, int], None] | None, done: float, total: int) -> None:
    if progress is not None:
        progress(round(done), total)
