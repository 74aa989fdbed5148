"""Energies of alanine dipeptide per second: batches in torch against OpenMM frame by frame.

python benchmarks/molecular_energy.py [--force-field FILE FILE]

Both are measured in turn in the same run, `--rounds` times, and the medians are printed: the time
per frame and the ratio to the fastest OpenMM platform for one process at a time. OpenMM computes
the first `--frames` frames of the batch, the torch potential all of them. Agreement is printed
too, so that a fast wrong energy cannot pass.
"""

import os
from collections.abc import Callable
from importlib.resources import files
from statistics import median
from time import perf_counter

import torch
from conditions import arguments, begin, row
from openmm import app, unit

from boltztilt.potentials.molecular import molecular_potential
from boltztilt.potentials.openmm_potential import OpenMMPotential

TEMPERATURE = 300.0  # K
DISTORTION = 0.005  # nm
FORCE_FIELD = ["amber99sbildn.xml", "amber99_obc.xml"]


def seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def main() -> None:
    parser = arguments(__doc__, n=4096)
    parser.add_argument("--force-field", nargs="+", default=FORCE_FIELD)
    parser.add_argument("--frames", type=int, default=512, help="frames that OpenMM computes")
    parser.add_argument("--rounds", type=int, default=7)
    options = begin(parser)
    structure = app.PDBFile(str(files("boltztilt.systems") / "aldp.pdb"))
    system = app.ForceField(*options.force_field).createSystem(
        structure.topology, nonbondedMethod=app.NoCutoff, constraints=None
    )
    row("force field", " ".join(options.force_field))
    generator = torch.Generator().manual_seed(options.seed)
    start = torch.tensor(structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    noise = torch.randn(options.n, *start.shape, generator=generator, dtype=torch.float64)
    positions = start + DISTORTION * noise
    few = positions[: options.frames]
    workers = os.cpu_count() or 1
    potentials = {
        "OpenMM Reference": (OpenMMPotential(system, TEMPERATURE), few),
        "OpenMM CPU": (OpenMMPotential(system, TEMPERATURE, "CPU"), few),
        f"OpenMM Reference, {workers} processes": (
            OpenMMPotential(system, TEMPERATURE, n_workers=workers),
            few,
        ),
    }
    for name, compile in (("torch", False), ("torch, compiled", True)):
        potential = molecular_potential(system, TEMPERATURE, compile=compile)
        for dtype in (torch.float32, torch.float64):
            potentials[f"{name}, {dtype}"] = (potential, positions.to(dtype))
    for what in ("energy", "energy_and_force"):
        calls = {name: getattr(potential, what) for name, (potential, _) in potentials.items()}
        first = {name: call(potentials[name][1]) for name, call in calls.items()}  # warms up
        times: dict[str, list[float]] = {name: [] for name in potentials}
        for _ in range(options.rounds):
            for name, call in calls.items():
                frames = potentials[name][1]
                times[name].append(seconds(lambda c=call, f=frames: c(f)) / len(frames))
        medians = {name: median(values) for name, values in times.items()}
        one_process = min(medians["OpenMM Reference"], medians["OpenMM CPU"])
        for name, value in medians.items():
            ratio = f"{one_process / value:.1f} x OpenMM"
            row(f"{what}, {name}", f"{1e6 * value:.2f} us a frame", f"{1 / value:,.0f}/s, {ratio}")
        if what == "energy":
            exact = first["OpenMM Reference"]
            for name, energy in first.items():
                deviation = (energy[: len(few)] - exact).abs().max()
                row(f"largest deviation, {name}", f"{deviation:.1e} kT")


if __name__ == "__main__":
    main()
