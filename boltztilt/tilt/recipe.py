"""Every setting of a training run, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltztilt.files import atomic_path
from boltztilt.suggestions import did_you_mean
from boltztilt.tilt.coupling import COUPLINGS

OBJECTIVES = ("itm", "wfm", "etm")
RECENTRINGS = ("mala", "hmc", "random_walk", "none")
POSITIVE = (
    "n_particles",
    "rungs_per_rollout",
    "rollout_steps",
    "first_rung_factor",
    "polish_particles",
    "polish_refresh",
    "batch_size",
    "times_per_pair",
    "likelihood_batch",
    "likelihood_solver_steps",
    "likelihood_grid_power",
    "likelihood_rate",
    "learning_rate",
    "gradient_clip",
)
NOT_NEGATIVE = (
    "recentring_steps",
    "steps_per_rung",
    "uniform_times",
    "polish_steps",
    "polish_chain_steps",
    "polish_rollout_every",
    "likelihood_steps",
    "likelihood_anchor",
    "pace_structures",
    "warmup_steps",
    "checkpoint_minutes",
)
PRECISIONS = ("float32", "bfloat16")
TYPES: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
STOCHASTIC = {"coupling": "independent", "likelihood_steps": 0, "network": {"kind": "unrolled"}}
"""What makes a field that `sampling.stochastic` can use, a conditional mean of independent pairs,
with a network deep enough for it."""


@dataclass(frozen=True)
class Recipe:
    """How a field is trained. Lengths are in the units of the system.

    Attributes:
        network: arguments of the velocity network, `kind` choosing it (see `networks.build`).
        objective: regression on the ladder, "itm", "wfm" or "etm" (see `tilt.objectives`).
        coupling: "aligned" or "independent" (see `tilt.coupling`).
        cess: conditional ESS that each tilt step keeps.
        n_particles: particles of the ladder.
        rungs_per_rollout: rungs between fresh rollouts of the field. In between the particles are
            those of the rung below, resampled and rejuvenated: far cheaper for many atoms.
        rollout_steps: RK4 steps of a rollout during training.
        recentring: Markov chain that rejuvenates rollouts: "mala", "hmc", "random_walk" (no
            gradient of the energy) or "none".
        recentring_steps: its steps per rung, at the old level and at the new one; one energy
            evaluation each.
        exact_weights: weigh rollouts by their exact density, rho_{a+h}(x)/q(x), instead of by
            exp(h r): unbiased whatever the error of the field. Its regression is "wfm", and
            rollouts are not rejuvenated before they are weighed.
        steps_per_rung: updates at each rung. With none the ladder only carries its particles up by
            their Markov chains, and the field is learned from `start_from` on.
        start_from: the sampler with whose field polishing begins, instead of one learned on the
            ladder: a system with shipped weights, a run folder or a weights file. Fields of
            clusters do not depend on the number of atoms, and small ones teach most of the way.
            The network must have the same settings, though an unrolled field may have more layers;
            energies and base may differ.
        matching_fraction: share of these that are plain flow matching on particles resampled and
            rejuvenated at the new level.
        first_rung_factor: the first rung, where the field is learned from nothing, gets this many
            times as many updates.
        polish_steps: updates of flow matching at a = 1.
        polish_refresh: updates between refreshments of the particles while polishing.
        polish_rollout_every: refreshments between replacements of all particles by new rollouts;
            0 never replaces them and continues with those of the ladder.
        polish_particles, polish_chain_steps: particles while polishing, and Markov chain steps at
            each refreshment (`BURN_IN` times as many after new rollouts), rounded up to whole
            trajectories.
        likelihood_steps: updates at the end that maximise the exact likelihood of the polishing
            particles, through the flow and its divergence. Dear, but a hundred of them gain more
            than thousands of updates of flow matching.
        likelihood_batch, likelihood_solver_steps, likelihood_rate: particles of each of these
            updates, Runge-Kutta steps back to the base, and the learning rate, which falls as it
            does while polishing. Memory grows with batch, steps and pairs of atoms: 3 GB at
            64 particles of 13 atoms and 8 steps.
        likelihood_grid_power: of the grid of these steps, the larger the finer towards t = 1
            (`warped_grid`); stiff bonds need about 2.
        likelihood_forces: follow the gradient of the likelihood along paths, which needs forces of
            the particles and is less noisy (`regression.path_loss`). It needs an anchor too.
        likelihood_anchor: weight of the distance to the field that flow matching left, in nats.
            Without it the field stiffens until the few steps integrate it wrongly, and the
            likelihood rises without bound.
        pace_structures: draws of the base with which the steps of the solver are placed in the end
            (`sampling.pace`); with none they are those of `warped_grid`.
        batch_size: interpolant points of one update.
        times_per_pair: points drawn on the path of each coupled pair.
        uniform_times: how many of these have uniform times, the others 1 - t log-uniform. Uniform
            ones learn faster where a molecule folds, long before its bonds take shape.
        smallest_noise: smallest 1 - t of training.
        optimiser: "muon" (hidden matrices; AdamW for the rest) or "adamw".
        learning_rate, warmup_steps, gradient_clip, average_decay: of the optimiser; the learning
            rate is constant up to `decay_from` of the polishing and then falls linearly.
        precision: of products in the regressions of ladder and polishing, "float32" or "bfloat16".
            Positions, distances, parameters and all log-densities stay in float32. For GPUs and
            processors that multiply in bfloat16, as recent ones of AMD and Intel for servers do.
        compile: compile the field with torch.compile where a C++ compiler is at hand.
        checkpoint_minutes: time between checkpoints.
    """

    network: Mapping[str, Any] = field(default_factory=lambda: {"kind": "local_density"})
    objective: str = "itm"
    coupling: str = "aligned"
    cess: float = 0.8
    n_particles: int = 1024
    rungs_per_rollout: int = 1
    rollout_steps: int = 10
    recentring: str = "mala"
    recentring_steps: int = 30
    exact_weights: bool = False
    steps_per_rung: int = 100
    start_from: str = ""
    matching_fraction: float = 0.5
    first_rung_factor: float = 1.0
    polish_steps: int = 10_000
    polish_particles: int = 4096
    polish_refresh: int = 100
    polish_chain_steps: int = 50
    polish_rollout_every: int = 50
    likelihood_steps: int = 0
    likelihood_batch: int = 64
    likelihood_solver_steps: int = 8
    likelihood_grid_power: float = 1.6
    likelihood_rate: float = 1e-3
    likelihood_forces: bool = False
    likelihood_anchor: float = 1.0
    pace_structures: int = 0
    batch_size: int = 256
    times_per_pair: int = 4
    uniform_times: int = 0
    smallest_noise: float = 0.005
    optimiser: str = "muon"
    learning_rate: float = 5e-3
    warmup_steps: int = 100
    decay_from: float = 0.5
    gradient_clip: float = 100.0
    average_decay: float = 0.999
    precision: str = "float32"
    compile: bool = False
    checkpoint_minutes: float = 2.0

    def __post_init__(self) -> None:
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("coupling", self.coupling, tuple(COUPLINGS))
        _check_choice("recentring", self.recentring, RECENTRINGS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("optimiser", self.optimiser, ("muon", "adamw"))
        for name in ("cess", "smallest_noise"):
            _check(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1")
        for name in ("matching_fraction", "decay_from"):
            _check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        _check(0 <= self.average_decay < 1, "average_decay", self.average_decay, "in [0, 1)")
        for name in POSITIVE:
            _check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in NOT_NEGATIVE:
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        if self.start_from and self.steps_per_rung:
            raise ValueError(
                f"recipe: start_from = {self.start_from!r} takes the place of a field learned on "
                f"the ladder; set steps_per_rung = 0, not {self.steps_per_rung}"
            )
        if self.start_from and self.polish_rollout_every:
            raise ValueError(
                f"recipe: start_from = {self.start_from!r} polishes on the particles of the "
                f"ladder; set polish_rollout_every = 0, not {self.polish_rollout_every}"
            )
        if self.exact_weights and not self.steps_per_rung:
            raise ValueError(
                "recipe: exact_weights needs the density of a field learned at every rung; "
                "steps_per_rung = 0 learns none"
            )
        if not self.start_from and not self.steps_per_rung:
            raise ValueError(
                "recipe: steps_per_rung = 0 learns no field on the ladder; make it positive, or "
                "name in start_from the sampler whose field is polished"
            )
        if self.batch_size % self.times_per_pair:
            raise ValueError(
                f"recipe: batch_size = {self.batch_size} is not a multiple of times_per_pair = "
                f"{self.times_per_pair}"
            )
        if self.uniform_times >= self.times_per_pair:
            raise ValueError(
                f"recipe: uniform_times = {self.uniform_times} leaves none of times_per_pair = "
                f"{self.times_per_pair} for late times; make it smaller"
            )
        if self.exact_weights and self.rungs_per_rollout != 1:
            raise ValueError(
                "recipe: exact_weights needs the density of fresh rollouts at every rung, "
                f"rungs_per_rollout = 1, not {self.rungs_per_rollout}"
            )
        if self.exact_weights and self.objective != "wfm":
            raise ValueError(
                "recipe: exact_weights weighs samples of the field itself, for which only "
                f"objective = 'wfm' is right, not {self.objective!r}"
            )

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Recipe:
        """The recipe of a TOML table; unknown names are refused with the nearest known one."""
        check_names(table)
        types = {entry.name: str(entry.type) for entry in dataclasses.fields(cls)}
        return cls(**{name: _as_type(name, value, types[name]) for name, value in table.items()})

    def to_mapping(self) -> dict[str, Any]:
        """All settings as plain values."""
        return {**dataclasses.asdict(self), "network": dict(self.network)}

    def save(self, path: Path, seed: int, system: str) -> None:
        """Writes the settings, the seed and the system's name as TOML."""
        settings = {"system": system, "seed": seed, **self.to_mapping()}
        network = settings.pop("network")
        lines = [f"{name} = {_toml(value)}" for name, value in settings.items()]
        given = {name: value for name, value in network.items() if value is not None}
        lines += ["", "[network]"] + [f"{name} = {_toml(value)}" for name, value in given.items()]
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_names(table: Iterable[str]) -> None:
    """Raises ValueError where a name is no setting of a recipe, with the nearest that is one."""
    known = [entry.name for entry in dataclasses.fields(Recipe)]
    for name in table:
        if name not in known:
            raise ValueError(
                f"recipe: unknown setting {name!r}.{did_you_mean(name, known)} "
                f"Known: {', '.join(sorted(known))}"
            )


def load_recipe(path: Path) -> tuple[Recipe, int, str]:
    """The recipe, the seed and the system's name in a run folder's recipe.toml."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        system, seed = settings.pop("system"), settings.pop("seed")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not the recipe of a boltztilt run: {error}") from error
    return Recipe.from_mapping(settings), seed, system


def merged(*recipes: Mapping[str, Any]) -> dict[str, Any]:
    """Recipes one over the other, the later ones replacing single entries, also of the network."""
    networks = [recipe["network"] for recipe in recipes if "network" in recipe]
    whole = {name: value for recipe in recipes for name, value in recipe.items()}
    if all(isinstance(network, Mapping) for network in networks) and networks:
        whole["network"] = {name: value for each in networks for name, value in each.items()}
    return whole


def _as_type(name: str, value: Any, type_name: str) -> Any:
    if name == "network" and isinstance(value, Mapping):
        return {entry: _plain(f"network.{entry}", setting) for entry, setting in value.items()}
    expected = TYPES.get(type_name, Mapping)
    wrong_bool = isinstance(value, bool) and type_name in ("int", "float")
    if wrong_bool or not isinstance(value, expected):
        raise TypeError(f"recipe: {name} = {value!r} must be of type {type_name}")
    return float(value) if type_name == "float" else value


def _plain(name: str, value: Any) -> Any:
    """A setting of the network as TOML can hold it; None leaves it open."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, bool | int | float | str | list | tuple | None):
        raise TypeError(f"recipe: {name} = {value!r} must be a number, a truth value or a text")
    return value


def _toml(value: Any) -> str:
    """The value in TOML, which writes strings, truth values and lists as JSON does."""
    is_json = isinstance(value, bool | str | list | tuple)
    return json.dumps(value, ensure_ascii=False) if is_json else repr(value)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"recipe: {name} = {value!r} is unknown; choose one of {choices}")


def _check(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(f"recipe: {name} = {value} must be {expected}")
