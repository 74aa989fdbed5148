"""What noise on the way is worth: stochastic sampling against the flow of the same field.

python benchmarks/stochastic_rounds.py lj55 --reference lj55_reference.npz

Energies of raw structures and after refinement, for numbers of rounds, beside the noise floor; and
the time per structure, compilation left out.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

from conditions import arguments, begin, row

from boltztilt.analysis.metrics import energy_wasserstein, noise_floor
from boltztilt.analysis.reference import Reference
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.sampler import Sampler


def distance(first: Any, second: Any) -> float:
    """The 2-Wasserstein distance of energies."""
    return energy_wasserstein(first, second, order=2)


def measure(
    name: str, sampler: Sampler, options: Any, reference: Reference, **settings: Any
) -> None:
    """A row of the table, and one for the structures after refinement."""
    sampler.sample(min(options.n, 64), seed=options.seed + 1, **settings)
    start = perf_counter()
    ensemble = sampler.sample(options.n, seed=options.seed, **settings)
    seconds = (perf_counter() - start) / options.n
    show(name, ensemble, reference, f"{1000 * seconds:.0f} ms")
    if options.refine:
        refined = ensemble.refine(options.refine, seed=options.seed)
        show(f"{name}, refined", refined, reference, "")


def show(name: str, ensemble: Ensemble, reference: Reference, comment: str) -> None:
    """The median of the energies and their distance to the reference."""
    found = distance(ensemble.energies, reference.energies)
    row(name, f"{ensemble.median_energy:.1f}", f"E-W2 {found:.2f}   {comment}".rstrip())


def main() -> None:
    parser = arguments(__doc__, n=500)
    parser.add_argument("sampler", nargs="?", default="lj55")
    parser.add_argument("--reference", type=Path, required=True, help="samples of the target")
    parser.add_argument("--rounds", type=int, nargs="+", default=[8, 12, 16, 25, 50])
    parser.add_argument("--steps", type=int, default=16, help="Runge-Kutta steps of the flow")
    parser.add_argument("--refine", type=int, default=200, help="leapfrog steps; 0 for none")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    options = begin(parser)
    sampler = Sampler.load(options.sampler)
    sampler.compile = not options.no_compile
    reference = Reference.load(options.reference, sampler.system)
    floor = noise_floor(
        distance, reference.energies, options.n, seed=options.seed, groups=reference.groups
    )
    median = reference.energies.median()
    row("reference", f"{median:.1f}", f"E-W2 {floor} between draws of the same N")
    flow = {"n_steps": options.steps, "solver": "rk4", "with_density": False}
    measure(f"flow alone, {options.steps} steps", sampler, options, reference, **flow)
    for n_rounds in options.rounds:
        settings = {"n_steps": n_rounds, "stochastic": True}
        measure(f"{n_rounds} rounds", sampler, options, reference, **settings)


if __name__ == "__main__":
    main()
