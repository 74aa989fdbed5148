"""What the TOML file of a system may tell."""

from collections.abc import Mapping
from typing import Any

from boltztilt.suggestions import check_settings

SETTINGS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("name", "title", "description", "convention", "base_kind"), (str, "a text")),
    **dict.fromkeys(("n_atoms", "n_dims"), (int, "a whole number")),
    "base_std": ((int, float), "a length"),
    "species": (list, "a list of whole numbers, equal ones for atoms that may be permuted"),
    **{
        table: (Mapping, f"a table, [{table}]")
        for table in ("potential", "molecule", "export", "reference_energy", "recipe")
    },
}
"""What the file of a system tells: types, and what is expected in words."""

EXPORT: dict[str, tuple[Any, str]] = {
    "element": (str, "the symbol of an element"),
    "nm_per_length": ((int, float), "a length in nm"),
}
MOMENTS = dict.fromkeys(("mean", "error", "sd"), ((int, float), "a number of kT"))
"""What its tables [export] and [reference_energy] tell."""


def check_table(table: Mapping[str, Any]) -> None:
    """Raises ValueError for what the file of a system cannot tell."""
    check_settings(table, SETTINGS)
    check_settings(table.get("export", {}), EXPORT, "[export] ")
    check_settings(table.get("reference_energy", {}), MOMENTS, "[reference_energy] ")
    if missing := MOMENTS.keys() - table.get("reference_energy", MOMENTS).keys():
        raise ValueError(f"[reference_energy] does not tell {', '.join(sorted(missing))}")
    species = table.get("species", [])
    if not all(type(each) is int for each in species):
        raise ValueError(f"species = {species!r}: expected a whole number for each atom")
