"""Quality of a sampler: ESS, energies, free energy, occupancies, each beside its yardstick.

python benchmarks/ess.py lj13
python benchmarks/ess.py runs/lj13 --reference lj13_reference.npz

The yardsticks are reference samples by Markov chains (made here unless given) and a free energy
from annealed chains; neither has seen the sampler.
"""

from pathlib import Path
from typing import Any

from conditions import arguments, begin, row

from boltztilt.analysis.evaluation import evaluate
from boltztilt.analysis.reference import Reference, make_reference
from boltztilt.sampling.estimate import Estimate
from boltztilt.sampling.sampler import Sampler
from boltztilt.tilt.annealing import anneal


def deviation(first: Estimate, second: Estimate) -> str:
    """The difference of two estimates in standard errors."""
    error = (first.error**2 + second.error**2) ** 0.5
    return f"{(first.value - second.value) / error:+.1f} standard errors"


def print_sampler(report: dict[str, Any]) -> None:
    """ESS and energies."""
    row("ESS, reverse", f"{report['ess']:.1%}", f"{report['n_effective']:.0f} effective")
    row("ESS, forward (at reference structures)", f"{report['ess_forward']:.1%}")
    error = report.get("integration_error")
    row("integration error of log q (rms)", "none" if error is None else f"{error:.3g}")
    reference = report["energy_reference"]
    row("<U> reference", str(reference))
    for name in ("raw", "reweighted"):
        energy = report[f"energy_{name}"]
        row(f"<U> {name}", str(energy), deviation(energy, reference))


def print_distances(report: dict[str, Any]) -> None:
    """Distances beside their noise floors."""
    names = ("energy_w1", "energy_w2", "pair_distance_w1", "geometric_w2")
    for key in filter(report.__contains__, names):
        distances = report[key]
        floor = distances.get("floor_effective", distances["floor"])
        comment = (
            f"floor {distances['floor']:.3g}"
            if isinstance(distances["floor"], float)
            else (f"floor {distances['floor']} (at the effective number {floor})")
        )
        values = f"{distances['raw']:.3g} / {distances['reweighted']:.3g}"
        row(f"{key.replace('_', ' ')}, raw / reweighted", values, comment)
    beyond = report["beyond_reference"]
    row("beyond the reference's 99.9 %, raw", f"{beyond['raw']:.2%}")


def print_free_energies(report: dict[str, Any], annealed: Estimate) -> None:
    """log Z four ways: from weights, between bounds, by BAR, and without the sampler."""
    row("ELBO, EUBO", f"{report['elbo'].value:.2f}, {report['eubo'].value:.2f}")
    row("log Z, annealed chains", str(annealed))
    for key, name in (("log_z", "weights"), ("log_z_bar", "BAR")):
        row(f"log Z, {name}", str(report[key]), deviation(report[key], annealed))


def print_occupancies(occupancies: dict[str, Any]) -> None:
    """The fraction of structures by their number of short pairs."""
    for count, reference in occupancies["reference"].items():
        estimate = occupancies["reweighted"][count]
        comment = f"reference {reference}, {deviation(estimate, reference)}"
        row(f"{count} short pairs, reweighted", str(estimate), comment)


def main() -> None:
    parser = arguments(__doc__, n=10_000)
    parser.add_argument("sampler", nargs="?", default="lj13", help="system, run folder, weights")
    parser.add_argument("--reference", type=Path, help="reference samples (.npz)")
    parser.add_argument("--chains", type=int, default=4000, help="annealed chains for log Z")
    options = begin(parser)
    sampler = Sampler.load(options.sampler)
    system = sampler.system
    if options.reference is not None:
        reference = Reference.load(options.reference, system)
    else:
        reference = make_reference(system, n_samples=5 * options.n, seed=options.seed + 1000)
    annealed = anneal(system, options.chains, seed=options.seed + 2000).log_z
    report = evaluate(sampler, reference, options.n, options.seed)
    if "log_z" not in report:
        parser.exit(1, f"none of {options.n} structures has a weight: train longer\n")
    row("energy", "", system.convention)
    row("energy calls, sampling", f"{report['n_energy']:,}")
    row("time, sampling", f"{report['wall_time']:.1f} s")
    print_sampler(report)
    print_distances(report)
    print_free_energies(report, annealed)
    if "short_pair_occupancy" in report:
        print_occupancies(report["short_pair_occupancy"])


if __name__ == "__main__":
    main()
