"""Which choices of the training recipe matter: one factor at a time, for equal CPU time.

python benchmarks/ablation.py lj13 --minutes 20 --reference lj13_reference.npz --out lj13.json
python benchmarks/ablation.py dw4 --minutes 1 --reference dw4_reference.npz --out dw4.json

Every row changes one setting of the default row: ITM, steps that keep a conditional ESS of 0.8,
recentring by HMC, aligned coupling. All train for --minutes of CPU time, up the ladder and then by
flow matching at a = 1 until the time is up, with a constant learning rate and averaged weights
because the end is not known beforehand, and without the likelihood stage. Rows that time stopped
on the ladder show "only" and the level a < 1 they reached: they are not at the target.

ESS is Kish's, from the exact density of -n structures. KL(q|p) = log Z - ELBO and KL(p|q) =
EUBO - log Z with log Z from annealed chains; W2 is that of energies, raw and reweighted, to the
reference. A few overlapping atoms make KL(q|p) and the raw W2 huge.

Results are written to --out after every row, and rows found there are not trained again. CPU time
of several threads is more than that of one for the same work: compare with --threads 1.
"""

import argparse
import json
import math
from pathlib import Path
from time import process_time
from typing import Any

import torch
from conditions import arguments, begin, row
from measurement import Table

from boltztilt.analysis.evaluation import log_weights_at
from boltztilt.analysis.metrics import energy_wasserstein, eubo, noise_floor
from boltztilt.analysis.reference import Reference
from boltztilt.hardware import hardware
from boltztilt.report import write_report
from boltztilt.sampling.estimate import Estimate
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import load_system
from boltztilt.tilt.annealing import anneal
from boltztilt.tilt.recipe import Recipe, merged
from boltztilt.tilt.run import TrainingRun

DEFAULT = {"objective": "itm", "cess": 0.8, "recentring": "hmc", "coupling": "aligned"}
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "WFM": {"objective": "wfm"},
    "WFM, exact weights": {"objective": "wfm", "exact_weights": True},
    "ETM": {"objective": "etm"},
    "tau 0.7": {"cess": 0.7},
    "tau 0.9": {"cess": 0.9},
    "recentring none": {"recentring": "none"},
    "recentring random_walk": {"recentring": "random_walk"},
    "recentring mala": {"recentring": "mala"},
    "independent coupling": {"coupling": "independent"},
}
HEADINGS = (
    *("row", "a reached", "rungs", "updates", "1e6 calls", "CPU s"),
    *("ESS", "KL(q|p)", "KL(p|q)", "W2 raw", "W2 rew."),
)
UNTIL_TIME_IS_UP = {"polish_steps": 10**9, "decay_from": 1.0, "likelihood_steps": 0}


def train_and_judge(
    settings: dict[str, Any], options: argparse.Namespace, reference: Reference
) -> dict[str, Any]:
    """One row: training with these settings, and what came of it."""
    system = reference.system
    try:
        recipe = Recipe.from_mapping(merged(system.recipe, settings))
        if recipe.compile:
            TrainingRun(system, recipe, options.seed, "cpu").update()  # compiles
        started = process_time()
        run = TrainingRun(system, recipe, options.seed, "cpu")
        run.read_start()
        while not run.finished and process_time() - started < 60 * options.minutes:
            run.update()
    except ValueError as error:
        return {"refused": str(error)}
    seconds, sampler = process_time() - started, run.sampler()
    names = ("a", "n_rungs", "n_updates", "n_energy", "wall_time")
    training = {name: sampler.metadata[name] for name in names}
    return {**training, "cpu_seconds": seconds, **judge(sampler, options, reference)}


def judge(sampler: Sampler, options: argparse.Namespace, reference: Reference) -> dict[str, Any]:
    """ESS, bounds of log Z and energies of a sampler."""
    ensemble = sampler.sample(options.n, options.seed)
    n_reference = min(options.n, len(reference))
    at_reference = log_weights_at(sampler, reference, n_reference)
    found = {
        "ess": 0.0,
        "elbo": -math.inf,
        "eubo": eubo(*at_reference).value,
        "w2_raw": energy_wasserstein(ensemble.energies, reference.energies),
        "w2_reweighted": math.inf,
    }
    if ensemble.any_weight:
        found["ess"], found["elbo"] = ensemble.ess, ensemble.elbo.value
        given = (ensemble.energies, reference.energies, ensemble.weights)
        found["w2_reweighted"] = energy_wasserstein(*given)
    return found


def figures(result: dict[str, Any], log_z: float) -> list[str]:
    """ESS, KL both ways and W2 of a row as `judge` found them; a dash for what is infinite."""
    values = {key: math.nan if value is None else value for key, value in result.items()}
    bounds = (log_z - values["elbo"], values["eubo"] - log_z)
    distances = (values["w2_raw"], values["w2_reweighted"])
    return [
        f"{values['ess']:.2%}",
        *(f"{value:.3g}" if math.isfinite(value) else "-" for value in (*bounds, *distances)),
    ]


def load_results(path: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    """The results in a file, which must come from the same conditions; without a file, none."""
    if not path.is_file():
        return {"conditions": conditions, "rows": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key, value in conditions.items() if results["conditions"][key] != value]
    if different:
        raise SystemExit(
            f"{path} holds rows with other {', '.join(different)}; give another file by --out"
        )
    return results


def print_row(table: Table, name: str, result: dict[str, Any], log_z: float) -> None:
    """One line of the table; what is missing or infinite shows as a dash."""
    if "refused" in result:
        table.add(name, "refused", *[""] * (len(table.widths) - 2))
        return
    table.add(
        name,
        "1" if result["a"] >= 1 else f"only {result['a']:.2g}",
        str(result["n_rungs"]),
        str(result["n_updates"]),
        f"{result['n_energy'] / 1e6:.1f}",
        f"{result['cpu_seconds']:.0f}",
        *figures(result, log_z),
    )


def print_results(names: list[str], options: argparse.Namespace, reference: Reference) -> None:
    """The table, row by row as each is trained or found, and why rows were refused."""
    settings = common_settings(options)
    results = load_results(options.out, conditions(options, settings))
    if "log_z" not in results:
        estimate = anneal(reference.system, options.chains, seed=options.seed + 2000).log_z
        results["log_z"] = estimate._asdict()
    error = results["log_z"]["error"]  # null where a single group of chains has none
    log_z = Estimate(results["log_z"]["value"], math.nan if error is None else error)
    row("log Z, annealed chains", str(log_z))
    floor = noise_floor(energy_wasserstein, reference.energies, options.n, groups=reference.groups)
    row("floor of W2", str(floor))
    table = Table(*HEADINGS, first_width=24)
    for name in names:
        if name not in results["rows"]:
            result = train_and_judge({**settings, **ROWS[name]}, options, reference)
            results["rows"][name] = {**result, "hardware": hardware(torch.device("cpu"))}
            write_report(options.out, results)
        print_row(table, name, results["rows"][name], log_z.value)
    for name in names:
        if "refused" in results["rows"][name]:
            print(f"\n{name} was refused: {results['rows'][name]['refused']}")


def common_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of all rows, on top of the system's recipe."""
    return {
        **DEFAULT,
        **UNTIL_TIME_IS_UP,
        "compile": False,
        "steps_per_rung": options.steps_per_rung,
        "recentring_steps": options.recentring_steps,
        "polish_chain_steps": options.recentring_steps,
        **{name: json.loads(value) for name, value in (each.split("=") for each in options.set)},
    }


def conditions(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """What rows of one file have in common."""
    same = {name: getattr(options, name) for name in ("system", "minutes", "n", "seed", "threads")}
    return {**same, "reference": str(options.reference), "settings": settings}


def main() -> None:
    parser = arguments(__doc__, n=2000)
    parser.add_argument("system", nargs="?", default="lj13")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU time of each training")
    parser.add_argument("--reference", type=Path, required=True, help="reference samples (.npz)")
    parser.add_argument("--out", type=Path, required=True, help="results (.json), kept and resumed")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--steps-per-rung", type=int, default=50, help="updates")
    parser.add_argument("--recentring-steps", type=int, default=100, help="energy calls per rung")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of all rows")
    parser.add_argument("--chains", type=int, default=2000, help="annealed chains for log Z")
    options = begin(parser)
    reference = Reference.load(options.reference, load_system(options.system))
    print_results(options.rows, options, reference)


if __name__ == "__main__":
    main()
