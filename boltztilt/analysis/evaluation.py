"""A sampler against reference samples: one report, one set of figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from boltztilt.analysis import conformations, metrics, plots
from boltztilt.analysis.comparison import NoiseFloors, compare
from boltztilt.analysis.free_energy import bar, import_estimators
from boltztilt.analysis.reference import Reference
from boltztilt.hardware import hardware
from boltztilt.report import write_report
from boltztilt.sampling.ensemble import Ensemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from boltztilt.sampling.sampler import Sampler

REFERENCE_BATCH = 1000


FIGURES = ("energy", "pair_distances", "ramachandran", "torsions", "log_weights", "ladder")
"""Names of the figures of an evaluation."""


class ReferenceWeights(NamedTuple):
    """log w of reference structures under a sampler, and their chains, see `Reference.groups`."""

    log_weights: Float64[Tensor, "structures"]
    groups: Int64[Tensor, "structures"] | None


def evaluate(
    sampler: Sampler,
    reference: Reference,
    n: int = 10_000,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    n_steps: int | None = None,
    refine_steps: int = 0,
    stochastic: bool = False,
    solver: str | None = None,
) -> dict[str, Any]:
    """The report on `n` samples, written with its figures into the folder `out` if one is given.

    Samples are drawn and weighted; up to `n` reference structures are carried back to the base
    for their density under the sampler, which shows what the sampler misses; those whose origin
    is not found are left out, and their number is "reference_lost". With `refine_steps`
    the samples are also compared after so many steps of `Ensemble.refine`, under "refined".
    Samples drawn with `stochastic` have no weights and are compared as they are.

    Raises:
        FileExistsError: the folder holds a report or plots that no evaluation made.
    """
    check_extras()
    if out is not None:
        check_folder(out)
    started = time.perf_counter()
    n_reference = 0 if stochastic else min(n, len(reference))
    total = n + n_reference

    def advance(done: int) -> None:
        if progress is not None:
            progress(done, total)

    ensemble = sampler.sample(
        n,
        seed=seed,
        n_steps=n_steps,
        progress=lambda done, _: advance(done),
        stochastic=stochastic,
        solver=solver,
    )
    at_reference, lost = None, 0
    if ensemble.any_weight:
        found = log_weights_at(
            sampler, reference, n_reference, n_steps, solver, lambda done: advance(n + done)
        )
        lost = n_reference - len(found.log_weights)
        at_reference = found if lost < n_reference else None
    floors = NoiseFloors(seed, reference.groups)
    compared = compare(ensemble, reference, seed, floors)
    basins = {"basins": compared.pop("basins")} if "basins" in compared else {}
    report = {
        **_inserted(ensemble.report(), "ess", basins),
        **({"reference_lost": lost} if lost > 0 else {}),
        **weight_figures(sampler, ensemble, at_reference),
        **compared,
        "device": str(next(sampler.field.parameters()).device),
        "hardware": hardware(sampler.device),
        "reference": reference.report(),
        "training": dict(sampler.metadata),
    }
    refined = ensemble.refine(refine_steps, seed=seed) if refine_steps > 0 else None
    if refined is not None:
        report["refined"] = {
            "refine_steps": refine_steps,
            "energy": refined.mean_energy(weighted=False),
            **compare(refined, reference, seed, floors),
        }
    report["evaluation_seconds"] = time.perf_counter() - started
    if out is not None:
        figures = comparison_figures(ensemble, reference, report)
        if at_reference is not None:
            figures["log_weights"] = plots.log_weight_figure(
                ensemble.log_weights,
                at_reference.log_weights,
                report["log_z_bar"].value,
                ensemble.ess,
            )
        if refined is not None:
            after = comparison_figures(refined, reference, report["refined"])
            figures |= {f"refined_{name}": figure for name, figure in after.items()}
        write_evaluation(Path(out), report, figures)
    return report


def weight_figures(
    sampler: Sampler, ensemble: Ensemble, at_reference: ReferenceWeights | None
) -> dict[str, Any]:
    """What the log-weights at reference structures tell; nothing about samples without weights."""
    if at_reference is None:
        return {}
    figures = {
        "ess_forward": metrics.forward_ess(at_reference.log_weights),
        "eubo": metrics.eubo(*at_reference),
        "log_z_bar": bar(ensemble.log_weights, *at_reference),
    }
    if ensemble.info["solver"] == "rk4":
        figures["integration_error"] = sampler.integration_error(ensemble)
    return figures


def log_weights_at(
    sampler: Sampler,
    reference: Reference,
    n: int,
    n_steps: int | None = None,
    solver: str | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> ReferenceWeights:
    """log w = -U - log q at those of the first `n` reference structures that q is known for."""
    densities: list[Tensor] = []
    for positions in reference.positions[:n].split(REFERENCE_BATCH):
        densities.append(sampler.log_density(positions, n_steps=n_steps, solver=solver).cpu())
        advance(sum(len(density) for density in densities))
    log_weights = -reference.energies[:n] - torch.cat(densities)
    known = ~log_weights.isnan()
    groups = None if reference.groups is None else reference.groups[:n][known]
    return ReferenceWeights(log_weights[known], groups)


def check_extras() -> None:
    """Raises ImportError before any work where an optional dependency is missing."""
    try:
        import matplotlib  # noqa: F401
        import ot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"evaluation needs {error.name}: pip install 'boltztilt[analysis,plot]'"
        ) from error
    import_estimators()


def comparison_figures(
    ensemble: Ensemble, reference: Reference, compared: Mapping[str, Any]
) -> dict[str, Figure]:
    """The figures of one comparison by name; `compared` is what `compare` found."""
    figures = {"energy": plots.energy_figure(ensemble, reference, compared["energy_w2"])}
    if "pair_distance_w1" in compared:
        figures["pair_distances"] = plots.pair_distance_figure(
            ensemble, reference, compared["pair_distance_w1"]
        )
    if conformations.residue_torsions(ensemble.positions[:1], ensemble.system):
        figures["ramachandran"] = plots.ramachandran_figure(ensemble, reference)
        figures["torsions"] = plots.torsion_figure(ensemble, reference)
    return figures


def write_evaluation(
    folder: Path, report: dict[str, Any], figures: Mapping[str, Figure]
) -> list[Path]:
    """Writes report.json and plots/*.png, that of the training log included if it is there.

    Plots of an evaluation before that had weights or refined its samples do not stay behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / "report.json", report)
    for old in _plots(folder):
        old.unlink()
    log = folder / "log.csv"
    if log.is_file() and plots.is_log(log):
        figures = {**figures, "ladder": plots.ladder_figure(plots.read_log(log))}
    return [folder / "report.json", *plots.write_figures(folder / "plots", figures)]


def check_folder(folder: str | Path) -> None:
    """Raises FileExistsError where the folder holds a report or plots that no evaluation made."""
    report = Path(folder) / "report.json"
    try:
        ours = {"system", "convention", "reference"} <= json.loads(report.read_bytes()).keys()
    except FileNotFoundError:
        ours = not _plots(Path(folder))
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{folder} holds a report.json or plots that boltztilt evaluate did not write: choose "
            "another folder (-o)"
        )


def _plots(folder: Path) -> list[Path]:
    """The figures that are there, of those that an evaluation may write."""
    paths = [
        folder / "plots" / f"{before}{name}.png" for before in ("", "refined_") for name in FIGURES
    ]
    return [path for path in paths if path.exists()]


def _inserted(report: Mapping[str, Any], after: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The report with more entries behind one of its own, or at its end without that one."""
    names = list(report)
    position = names.index(after) + 1 if after in report else len(names)
    before, behind = names[:position], names[position:]
    return {
        **{name: report[name] for name in before},
        **entries,
        **{name: report[name] for name in behind},
    }
