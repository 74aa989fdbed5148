"""What a solver's density costs and is worth: the map of the multistep solver against Runge-Kutta.

python benchmarks/solvers.py lj55 --log-z 383.64

Both start from the same draws of the base, in turns, compilation left out. With the log Z of the
target, the overlap is printed, the mean of min(1, p/q) at the structures: 1 minus the total
variation distance of sampler and target. It settles with far fewer structures than the ESS.
"""

from time import perf_counter
from typing import Any

from conditions import arguments, begin
from measurement import Table, median_ratio

from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.estimate import Estimate, weighted_mean
from boltztilt.sampling.sampler import Sampler

N_TURNS = 4


def overlap(ensemble: Ensemble, log_z: float) -> Estimate:
    """The mean of min(1, p/q) over structures drawn from q."""
    return weighted_mean((ensemble.log_weights - log_z).exp().clamp(max=1))


def drawn(sampler: Sampler, n: int, seed: int, **settings: Any) -> tuple[Ensemble, float]:
    """An ensemble and the seconds it took."""
    start = perf_counter()
    ensemble = sampler.sample(n, seed, **settings)
    return ensemble, perf_counter() - start


def main() -> None:
    parser = arguments(__doc__, n=200)
    parser.add_argument(
        "sampler", nargs="?", default="lj55", help="with a field that has Jacobians"
    )
    parser.add_argument("--log-z", type=float, help="of the target, from another source")
    parser.add_argument("--multistep", type=int, nargs="+", default=[16], help="numbers of steps")
    parser.add_argument("--rk4", type=int, nargs="+", default=[9], help="numbers of steps")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    options = begin(parser)
    sampler = Sampler.load(options.sampler)
    sampler.compile = not options.no_compile
    ways = [("multistep", n) for n in options.multistep] + [("rk4", n) for n in options.rk4]
    share = max(1, options.n // N_TURNS)
    for solver in ("multistep", "rk4"):
        # two steps: some fields are not evaluated in the first of the multistep solver
        sampler.sample(2 * options.threads, options.seed, n_steps=2, solver=solver)
    turns: dict[tuple[str, int], list[tuple[Ensemble, float]]] = {way: [] for way in ways}
    for turn in range(N_TURNS):
        for way in ways:
            settings = {"solver": way[0], "n_steps": way[1]}
            turns[way].append(drawn(sampler, share, options.seed + turn, **settings))
    table = Table("solver, steps", "ms each", "x multistep", "ESS", "log Z", "overlap", "median U")
    fastest = [seconds for _, seconds in turns[ways[0]]]
    for way, found in turns.items():
        whole = Ensemble.join([ensemble for ensemble, _ in found])
        seconds = [each for _, each in found]
        table.add(
            f"{way[0]}, {way[1]}",
            f"{1000 * sum(seconds) / len(whole):.0f}",
            f"{median_ratio(seconds, fastest):.2f}",
            f"{whole.ess:.1%}",
            str(whole.log_z),
            "" if options.log_z is None else str(overlap(whole, options.log_z)),
            f"{whole.median_energy:.1f}",
        )


if __name__ == "__main__":
    main()
