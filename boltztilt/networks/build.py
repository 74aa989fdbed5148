"""Velocity networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from boltztilt.networks.atom_kinds import RESTING_WIDTHS, Pairing
from boltztilt.networks.egnn import EGNN
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.perceptron import Perceptron
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.suggestions import did_you_mean
from boltztilt.systems.system import System

CLASSES = {
    "local_density": LocalDensityField,
    "unrolled": UnrolledField,
    "egnn": EGNN,
    "perceptron": Perceptron,
}
DEFAULT_KIND = "local_density"


def build_network(settings: Mapping[str, Any], system: System) -> nn.Module:
    """The velocity network that a recipe's [network] table describes, with fresh weights.

    Raises:
        ValueError: unknown kind or setting, or a network that cannot represent the system.
    """
    arguments = dict(settings)
    kind = arguments.pop("kind", DEFAULT_KIND)
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"[network] kind = {kind!r} is unknown; choose one of {known}")
    _check_symmetries(kind, system)
    try:
        with _single_precision():
            if kind == "perceptron":
                centered = system.potential.centered
                return Perceptron(system.n_atoms, system.n_dims, centered=centered, **arguments)
            if kind == "egnn":
                return EGNN(system.species, **arguments)
            return CLASSES[kind](**arguments, pairing=pairing_of(system))
    except TypeError as error:
        settable = with_defaults({"kind": kind})
        for name in arguments.keys() - settable.keys():
            raise ValueError(
                f"[network] unknown setting {name!r} of kind {kind!r}."
                f"{did_you_mean(name, settable)} Known: {', '.join(settable)}"
            ) from error
        raise ValueError(f"[network] settings of kind {kind!r}: {error}") from error


@contextmanager
def _single_precision() -> Iterator[None]:
    """New tensors are float32, whatever another package has made torch's default."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network of a known kind, with those that are left open."""
    kind = settings.get("kind", DEFAULT_KIND)
    layers = _defaults(LocalDensityField) if kind == "unrolled" else {}
    return {**layers, **_defaults(CLASSES[kind]), **settings, "kind": kind}


def _defaults(network: type[nn.Module]) -> dict[str, Any]:
    parameters = inspect.signature(network).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _check_symmetries(kind: str, system: System) -> None:
    """Refuses systems that tell apart what the network cannot, or the other way round."""
    if kind == "perceptron" and system.one_handed:
        raise ValueError(
            f"network 'perceptron' tells mirror images apart, but both hands of {system.name!r} "
            "have the same energy and density; use kind = 'local_density'"
        )
    if kind != "perceptron" and not system.potential.centered:
        raise ValueError(
            f"network {kind!r} does not change under translation but the potential of "
            f"{system.name!r} does; use kind = 'perceptron' and coupling = 'independent', or a "
            "potential with centered = True"
        )
    if system.n_dims > 3 and kind not in ("egnn", "perceptron"):
        raise ValueError(
            f"network {kind!r} sees atoms in 1 to 3 dimensions, {system.name!r} has "
            f"{system.n_dims}; use kind = 'egnn' or 'perceptron'"
        )


def pairing_of(system: System) -> Pairing | None:
    """What tells the atoms of a system apart, None if they are all alike."""
    if len(set(system.species)) == 1:
        return None
    n_atoms, spreads = system.n_atoms, system.base.pair_spreads()
    if system.molecule is None:
        apart = torch.full((n_atoms, n_atoms), len(RESTING_WIDTHS))
        return Pairing(system.species, spreads, apart, spreads)
    distances = torch.cdist(system.molecule.structure, system.molecule.structure)
    bonds = system.molecule.bond_distances(len(RESTING_WIDTHS))
    return Pairing(system.species, distances, bonds, spreads)
