"""Parameters of OpenMM forces as plain numbers in OpenMM's units (nm, kJ/mol, radian, e)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

COULOMB = 138.93545764438198  # kJ nm / (mol e²), 1 / (4 pi eps_0) in OpenMM's own code


class Untranslated(ValueError):
    """Why a force cannot be evaluated by torch."""


def parameters(force: Any, kind: str) -> list[list[Any]]:
    """Returns what `get<kind>Parameters` of a force says of every bond, angle, particle, ..."""
    read = getattr(force, f"get{kind}Parameters")
    count = getattr(force, f"getNum{kind}s")()
    return [[plain(value) for value in read(index)] for index in range(count)]


def plain(value: Any) -> Any:
    """Returns a value without its unit."""
    from openmm import unit

    if unit.is_quantity(value):
        return value.value_in_unit_system(unit.md_unit_system)
    return value


def column(values: Sequence[float]) -> Float64[Tensor, "terms 1"]:
    """Returns values as the parameters of terms, for any batch."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def pair_values(table: Float64[Tensor, "atoms atoms"]) -> Float64[Tensor, "pairs 1"]:
    """Returns the entries i < j of a table."""
    first, second = torch.triu_indices(len(table), len(table), offset=1)
    return table[first, second][:, None]


def refuse_periodic(force: Any) -> None:
    """Raises Untranslated for a force that sees periodic images."""
    if force.usesPeriodicBoundaryConditions():
        raise Untranslated("it uses periodic boundary conditions")


def refuse_cutoff(force: Any) -> None:
    """Raises Untranslated for a force with a cutoff."""
    if force.getNonbondedMethod() != force.NoCutoff:
        raise Untranslated("its nonbonded method is not NoCutoff")
