"""Figures of an evaluation: the reference in grey, an ensemble as it is and by its weights."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from boltztilt.analysis.conformations import (
    ALPHA_L_PHI,
    ALPHA_R_PSI,
    bin_number,
    ramachandran,
    residue_torsions,
)
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
HIGHEST_FREE_ENERGY = 7.0  # kT, one structure among a thousand of the most frequent bin
TORSION_TICKS = range(-120, 121, 60)  # degrees
BASIN_LABELS = {r"$\alpha_R$": (150, -20), r"$\beta$": (150, 130), r"$\alpha_L$": (60, 150)}


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
    for name, view in _views(ensemble).items():
        label = view.label + words[name]
        _histogram(axes, ensemble.energies, edges, label, view.weights, view.color)
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
    expected = radial_distribution(reference.positions, edges)
    figure, (above, below) = _new_figure(rows=2)
    label = "reference" + words["floor"]
    above.fill_between(middles, expected, color=REFERENCE, label=label)
    for name, view in _views(ensemble).items():
        found = radial_distribution(ensemble.positions, edges, view.weights)
        above.plot(middles, found, color=view.color, label=view.label + words[name])
        below.plot(middles, found - expected, color=view.color)
    noise = 2 * _density_noise(reference, edges)
    below.fill_between(middles, -noise, noise, color=REFERENCE, label="reference ± 2 errors")
    above.set(ylabel="g(r) (1/length)", ylim=(0, None))
    below.set(xlabel="pair distance r (length units)", ylabel="difference", xlim=_ends(edges))
    above.legend(frameon=False, fontsize="small")
    below.legend(frameon=False, fontsize="small")
    return figure


def ramachandran_figure(ensemble: Ensemble, reference: Reference) -> Figure:
    """Free energy of (phi, psi) in kT: sampler, by weight, reference; one row for each residue.

    -log of the probability of a bin over the largest of the reference, on one scale; bins without
    structures stay white. Dashed lines part the basins.
    """
    ours, theirs = _torsions(ensemble), _torsions(reference)
    n_bins = bin_number(min(len(ensemble), len(reference)))
    views = _views(ensemble).values()
    n_columns = len(views) + 1
    size = (0.6 + 2.8 * n_columns, 3.25 * len(ours))
    figure, panels = _new_figure(rows=len(ours), columns=n_columns, size=size)
    figure.set_layout_engine("compressed")  # keeps the colour bar as high as square panels
    for row, name in zip(_rows(panels, n_columns), ours, strict=True):
        histograms = {
            **{view.label: ramachandran(ours[name], n_bins, view.weights) for view in views},
            "reference": ramachandran(theirs[name], n_bins),
        }
        largest = histograms["reference"].max()
        for axes, (title, histogram) in zip(row, histograms.items(), strict=True):
            image = _free_energy_map(axes, -(histogram / largest).log())
            axes.set_title(f"{name}, {title}" if len(ours) > 1 else title)
            axes.set(xlabel=r"$\phi$ (degrees)")
        row[0].set(ylabel=r"$\psi$ (degrees)")
        for axes in row[1:]:
            axes.tick_params(labelleft=False)
        figure.colorbar(image, ax=list(row), label="free energy (kT)", extend="max", pad=0.01)
    return figure


def torsion_figure(ensemble: Ensemble, reference: Reference) -> Figure:
    """The distributions of phi and psi, one row for each residue."""
    ours, theirs = _torsions(ensemble), _torsions(reference)
    views = _views(ensemble).values()
    edges = torch.linspace(-180.0, 180.0, 2 * bin_number(len(ensemble)) + 1).double()
    figure, panels = _new_figure(rows=len(ours), columns=2, size=(9.0, 0.3 + 3.0 * len(ours)))
    for row, name in zip(_rows(panels, 2), ours, strict=True):
        for axes, symbol, first, second in zip(
            row, (r"$\phi$", r"$\psi$"), ours[name].T, theirs[name].T, strict=True
        ):
            first, second = first.rad2deg().double(), second.rad2deg().double()
            _histogram(axes, second, edges, "reference", filled=True)
            for view in views:
                _histogram(axes, first, edges, view.label, view.weights, view.color)
            label = f"{symbol} of {name} (degrees)"
            axes.set(xlabel=label, xlim=_ends(edges), xticks=TORSION_TICKS, ylim=(0, None))
        row[0].set(ylabel="probability density (1/degree)")
        row[0].legend(frameon=False, fontsize="small")
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


def is_log(path: str | Path) -> bool:
    """Whether a file of comma-separated values is a training log."""
    with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
        return {"stage", "rung", "seconds", "loss"} <= set(next(csv.reader(file), []))


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


def _new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None
) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'boltztilt[plot]'") from error
    size = size or (6.0 if columns == 1 else 9.0, 4.0 if rows == 1 else 2.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=columns == 1)


class _View(NamedTuple):
    """One way to look at an ensemble."""

    label: str
    color: str
    weights: Tensor | None


def _views(ensemble: Ensemble) -> dict[str, _View]:
    """The ensemble as it is and, if it has any, by its weights: named as in reports."""
    first = "refined" if "refine_steps" in ensemble.info else "sampler"
    looks = {"raw": (first, RAW), "reweighted": ("reweighted", REWEIGHTED)}
    return {name: _View(*looks[name], weights) for name, weights in ensemble.views.items()}


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


def _torsions(samples: Ensemble | Reference) -> dict[str, Tensor]:
    found = residue_torsions(samples.positions, samples.system)
    if not found:
        raise ValueError(f"system {samples.system.name!r} has no backbone torsions to draw")
    return found


def _rows(panels: Any, columns: int) -> Any:
    """The panels as rows, also where there is one row only."""
    return panels.reshape(-1, columns)


def _free_energy_map(axes: Axes, energies: Tensor) -> Any:
    """Draws a map over (phi, psi) with the borders of the basins, and returns the image."""
    edges = torch.linspace(-180.0, 180.0, len(energies) + 1)
    energies = energies.where(torch.isfinite(energies), math.nan)
    image = axes.pcolormesh(
        edges.numpy(), edges.numpy(), energies.T.numpy(), vmin=0.0, vmax=HIGHEST_FREE_ENERGY
    )
    left, right = (math.degrees(phi) for phi in ALPHA_L_PHI)
    border: dict[str, Any] = {"color": "0.5", "linewidth": 0.8, "linestyle": "--"}
    axes.vlines([left, right], -180, 180, **border)
    for psi in map(math.degrees, ALPHA_R_PSI):
        axes.hlines([psi, psi], [-180, right], [left, 180], **border)
    for label, (phi, psi) in BASIN_LABELS.items():
        axes.text(phi, psi, label, color="0.35", ha="center", va="center")
    axes.set(xticks=TORSION_TICKS, yticks=TORSION_TICKS, aspect="equal")
    axes.set(xlim=_ends(edges), ylim=_ends(edges))
    return image


def _density_noise(reference: Reference, edges: Tensor, n_parts: int = 20) -> Tensor:
    """The standard error of the reference's g(r), from its spread over parts of whole groups."""
    groups = torch.arange(len(reference)) if reference.groups is None else reference.groups
    groups = groups.unique(return_inverse=True)[1]
    n_parts = min(n_parts, int(groups.max()) + 1)
    parts = [reference.positions[groups % n_parts == part] for part in range(n_parts)]
    curves = torch.stack([radial_distribution(part, edges) for part in parts])
    return curves.std(dim=0) / math.sqrt(n_parts)


def _distance_words(symbol: str, distances: Mapping[str, Any] | None, unit: str) -> dict[str, str]:
    """Legend entries such as `, W2 = 0.31 kT`."""
    names = ("raw", "reweighted", "floor")
    if distances is None:
        return dict.fromkeys(names, "")
    known = {name: distances[name] for name in names if name in distances}
    values = {name: float(getattr(value, "value", value)) for name, value in known.items()}
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
