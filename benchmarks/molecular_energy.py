"""Energies of alanine dipeptide: whole batches in torch against OpenMM frame by frame.

python benchmarks/molecular_energy.py [--force-field FILE FILE]

All are measured in turn in the same run, so that a busy machine slows them alike, and medians over
`--rounds` are printed: wall time per frame, with the ratio to the faster of OpenMM's Reference and
CPU platforms in one process, and processor time per frame, summed over threads, which other
programs disturb less. OpenMM computes the first `--frames` frames of the batch, torch all of them.
The deviations from the Reference platform show that the energies are the same.
"""

from collections.abc import Callable
from importlib.resources import files
from statistics import median
from time import perf_counter, process_time

import torch
from conditions import arguments, begin, row
from openmm import app, unit
from torch import Tensor

from boltztilt.energy import Potential
from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential

TEMPERATURE = 300.0  # K
DISTORTION = 0.005  # nm
FORCE_FIELD = ["amber99sbildn.xml", "amber99_obc.xml"]
OPENMM = ("OpenMM Reference", "OpenMM CPU")

Work = dict[str, tuple[Potential, Tensor]]  # what to evaluate, and where


def prepare(force_field: list[str], n: int, n_frames: int, n_workers: int, seed: int) -> Work:
    """Every potential with its positions: a batch of the minimum, each atom slightly moved."""
    structure = app.PDBFile(str(files("boltztilt.systems") / "aldp.pdb"))
    system = app.ForceField(*force_field).createSystem(
        structure.topology, nonbondedMethod=app.NoCutoff, constraints=None
    )
    generator = torch.Generator().manual_seed(seed)
    minimum = torch.tensor(structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    noise = torch.randn(n, *minimum.shape, generator=generator, dtype=torch.float64)
    positions = minimum + DISTORTION * noise
    several = OpenMMPotential(system, TEMPERATURE, n_workers=n_workers)
    work: Work = {
        OPENMM[0]: (OpenMMPotential(system, TEMPERATURE, "Reference"), positions[:n_frames]),
        OPENMM[1]: (OpenMMPotential(system, TEMPERATURE, "CPU"), positions[:n_frames]),
        f"OpenMM Reference, {n_workers} processes": (several, positions[:n_frames]),
    }
    for compile in (False, True):
        potential = molecular_potential(system, TEMPERATURE, compile=compile)
        for dtype in (torch.float32, torch.float64):
            name = f"{str(dtype).split('.')[1]}, {'compiled' if compile else 'eager'}"
            work[f"torch {name}"] = (potential, positions.to(dtype))
    return work


def clock(function: Callable[[Tensor], object], positions: Tensor) -> tuple[float, float]:
    """Wall and processor time per frame in microseconds."""
    wall, processor = perf_counter(), process_time()
    function(positions)
    scale = 1e6 / len(positions)
    return scale * (perf_counter() - wall), scale * (process_time() - processor)


def compare(work: Work, method: str, n_rounds: int) -> None:
    """Prints the times of one method of all potentials."""
    calls = {name: getattr(potential, method) for name, (potential, _) in work.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for i in range(n_rounds + 1):
        for name, (_, positions) in work.items():
            elapsed = clock(calls[name], positions)
            if i > 0:  # the first round warms up
                times[name].append(elapsed)
    walls = {name: median(wall for wall, _ in pairs) for name, pairs in times.items()}
    one_process = min(walls[name] for name in OPENMM)
    for name, pairs in times.items():
        processor = median(processor for _, processor in pairs)
        words = f"{one_process / walls[name]:5.1f} x OpenMM, {1e6 / walls[name]:9,.0f} frames/s"
        if "processes" not in name:
            words += f", processor {processor:.2f} us"
        row(f"{method}, {name}", f"{walls[name]:.2f} us a frame", words)


def main() -> None:
    parser = arguments(__doc__, n=4096)
    parser.add_argument("--force-field", nargs="+", default=FORCE_FIELD, help="OpenMM XML files")
    parser.add_argument("--frames", type=int, default=512, help="frames that OpenMM computes")
    parser.add_argument("--workers", type=int, default=2, help="processes of OpenMM")
    parser.add_argument("--rounds", type=int, default=7)
    options = begin(parser)
    row("force field", " ".join(options.force_field))
    work = prepare(options.force_field, options.n, options.frames, options.workers, options.seed)
    exact = OpenMMPotential.energy(*work[OPENMM[0]])
    for name, (potential, positions) in work.items():
        deviation = (potential.energy(positions)[: len(exact)] - exact).abs().max()
        row(f"largest deviation, {name}", f"{deviation:.1e} kT")
    for method in ("energy", "energy_and_force"):
        compare(work, method, options.rounds)


if __name__ == "__main__":
    main()
