"""Figures of an evaluation: the reference in grey, the sampler before and after reweighting."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.analysis.metrics import pair_distances, radial_distribution
from boltztilt.analysis.reference import Reference
from boltztilt.files import atomic_path
from boltztilt.sampling.ensemble import Ensemble

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE, RAW, REWEIGHTED = "0.8", "tab:blue", "tab:orange"
N_BINS = 80
LOWEST_LOG_WEIGHT = -20.0  # below it a structure weighs nothing


def energy_figure(
    ensemble: Ensemble, reference: Reference, distances: Mapping[str, Any] | None = None
) -> Figure:
    """Energy histograms; `distances` are the report's, written into the legend."""
    words = _distance_words("$W_2$", distances, "kT")
    lowest, highest = reference.energies.min(), reference.energies.quantile(0.999)
    margin = 0.25 * (highest - lowest)
    edges = torch.linspace(float(lowest - margin), float(highest + margin), N_BINS + 1).double()
    figure, axes = _new_figure()
    _histogram(axes, reference.energies, edges, "reference" + words["floor"], filled=True)
    _histogram(axes, ensemble.energies, edges, "sampler" + words["raw"], color=RAW)
    _histogram(
        axes,
        ensemble.energies,
        edges,
        "reweighted" + words["reweighted"],
        weights=ensemble.weights,
        color=REWEIGHTED,
    )
    outside = float((~(ensemble.energies <= edges[-1])).double().mean())
    if outside > 0:
        axes.set_title(
            f"{outside:.2%} of the sampler's energies lie to the right", fontsize="small"
        )
    axes.set(xlabel="energy U (kT)", ylabel="probability density (1/kT)", xlim=_ends(edges))
    axes.legend(frameon=False, fontsize="small")
    return figure


def pair_distance_figure(
    ensemble: Ensemble, reference: Reference, distances: Mapping[str, Any] | None = None
) -> Figure:
    """The distribution g(r) of pair distances, and below it what the sampler adds or lacks."""
    words = _distance_words("$W_1$", distances, "")
    furthest = pair_distances(reference.positions).max(dim=1).values.quantile(0.99)
    edges = torch.linspace(0.0, float(furthest), 2 * N_BINS + 1).double()
    middles = 0.5 * (edges[1:] + edges[:-1])
    curves = {
        "reference": radial_distribution(reference.positions, edges),
        "raw": radial_distribution(ensemble.positions, edges),
        "reweighted": radial_distribution(ensemble.positions, edges, ensemble.weights),
    }
    figure, (above, below) = _new_figure(rows=2)
    label = "reference" + words["floor"]
    above.fill_between(middles, curves["reference"], color=REFERENCE, label=label)
    for name, colour, label in (("raw", RAW, "sampler"), ("reweighted", REWEIGHTED, "reweighted")):
        above.plot(middles, curves[name], color=colour, label=label + words[name])
        below.plot(middles, curves[name] - curves["reference"], color=colour)
    noise = 2 * _density_noise(reference, edges)
    below.fill_between(middles, -noise, noise, color=REFERENCE, label="reference ± 2 errors")
    above.set(ylabel="g(r) (1/length)", ylim=(0, None))
    below.set(xlabel="pair distance r (length units)", ylabel="difference", xlim=_ends(edges))
    above.legend(frameon=False, fontsize="small")
    below.legend(frameon=False, fontsize="small")
    return figure


def log_weight_figure(
    log_weights: Float64[Tensor, "batch"],
    reference_log_weights: Float64[Tensor, "reference"],
    log_z: float,
    ess: float,
) -> Figure:
    """log w - log Z where the sampler goes and where the target is; all zero for a perfect one."""
    forward = (log_weights - log_z)[torch.isfinite(log_weights)]
    reverse = (reference_log_weights - log_z)[torch.isfinite(reference_log_weights)]
    both = torch.cat([forward.quantile(_TAILS), reverse.quantile(_TAILS)])
    lowest, highest = max(float(both.min()) - 1.0, LOWEST_LOG_WEIGHT), float(both.max()) + 1.0
    edges = torch.linspace(lowest, highest, N_BINS + 1).double()
    figure, axes = _new_figure()
    lost = float((~(log_weights - log_z >= lowest)).double().mean())
    if lost > 0:
        axes.set_title(f"{lost:.2%} of the sampler's structures lie to the left", fontsize="small")
    _histogram(axes, reverse, edges, "at reference structures", filled=True)
    _histogram(axes, forward, edges, f"at the sampler's structures, ESS {ess:.1%}", color=RAW)
    axes.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel=r"$\log w - \log Z$  (0: the sampler has the exact density)",
        ylabel="probability density",
        xlim=_ends(edges),
    )
    axes.legend(frameon=False, fontsize="small")
    return figure


def ladder_figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """How training climbed: tilt, conditional ESS, energy, acceptance, log Z and loss."""
    figure, panels = _new_figure(rows=3, columns=2)
    ladder = [row for row in rows if row["stage"] == "ladder"]
    rung = _column(ladder, "rung")
    for axes, name, label in (
        (panels[0][0], "a", "tilt a"),
        (panels[0][1], "cess", "conditional ESS"),
        (panels[1][0], "mean_energy", "<U> of the particles (kT)"),
        (panels[1][1], "acceptance", "acceptance of MCMC"),
        (panels[2][0], "log_z", "log Z up to a"),
    ):
        _measured(axes, rung, _column(ladder, name))
        axes.set(xlabel="rung", ylabel=label)
    panels[0][0].set_yscale("log")
    panels[1][0].set_yscale("symlog", linthresh=10)
    for axes in (panels[0][1], panels[1][1]):
        axes.set_ylim(0, 1)
    axes = panels[2][1]
    likelihood = [row for row in rows if row["stage"] == "likelihood"]
    matching = [row for row in rows if row["stage"] != "likelihood"]
    _measured(axes, _column(matching, "seconds") / 60, _column(matching, "loss"))
    axes.set(xlabel="time (min)", ylabel="loss")
    if likelihood:
        right = axes.twinx()
        _measured(
            right, _column(likelihood, "seconds") / 60, _column(likelihood, "loss"), REWEIGHTED
        )
        right.set_ylabel("mean -log q, with anchor", color=REWEIGHTED)
    return figure


def read_log(path: str | Path) -> list[dict[str, str]]:
    """The rows of a training log."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_figures(folder: str | Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Writes each figure to FOLDER/NAME.png and returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return paths


_TAILS = torch.tensor([0.001, 0.999], dtype=torch.float64)


def _new_figure(rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'boltztilt[plot]'") from error
    size = (6.0 if columns == 1 else 9.0, 4.0 if rows == 1 else 2.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=columns == 1)


def _histogram(
    axes: Axes,
    values: Tensor,
    edges: Tensor,
    label: str,
    weights: Tensor | None = None,
    color: str = REFERENCE,
    filled: bool = False,
) -> None:
    """Draws a density normalised over all values, those outside the edges included."""
    weights = torch.ones_like(values) if weights is None else weights
    inside = (values >= edges[0]) & (values <= edges[-1])
    counts = torch.histogram(values[inside], edges, weight=weights[inside]).hist
    density = counts / (weights.sum() * edges.diff())
    axes.stairs(density.numpy(), edges.numpy(), fill=filled, color=color, label=label)


def _density_noise(reference: Reference, edges: Tensor, n_parts: int = 20) -> Tensor:
    """The standard error of the reference's g(r), from its spread over parts."""
    parts = reference.positions.tensor_split(min(n_parts, len(reference)))
    curves = torch.stack([radial_distribution(part, edges) for part in parts])
    return curves.std(dim=0) / math.sqrt(len(parts))


def _distance_words(symbol: str, distances: Mapping[str, Any] | None, unit: str) -> dict[str, str]:
    """Legend entries such as `, W2 = 0.31 kT`."""
    names = ("raw", "reweighted", "floor")
    if distances is None:
        return dict.fromkeys(names, "")
    values = {name: float(getattr(distances[name], "value", distances[name])) for name in names}
    words = {name: f", {symbol} = {value:.2g} {unit}".rstrip() for name, value in values.items()}
    return {**words, "floor": f", noise floor {values['floor']:.2g} {unit}".rstrip()}


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Tensor:
    """One column as numbers; empty or missing entries as NaN."""
    return torch.tensor([float(row.get(name) or math.nan) for row in rows], dtype=torch.float64)


def _measured(axes: Axes, x: Tensor, y: Tensor, color: str = RAW) -> None:
    """A line through the entries that were measured."""
    measured = torch.isfinite(y) & torch.isfinite(x)
    axes.plot(x[measured].numpy(), y[measured].numpy(), color=color, marker=".", markersize=3)


def _ends(edges: Tensor) -> tuple[float, float]:
    return float(edges[0]), float(edges[-1])
