"""Boltzmann samplers with exact weights, trained from the energy alone by tilt matching.

The names below are loaded on first use, so that `import boltztilt` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltztilt.energy import CallablePotential, Potential
    from boltztilt.sampling.ensemble import Ensemble
    from boltztilt.sampling.sampler import Sampler, sample
    from boltztilt.systems.system import System, available_systems, load_system
    from boltztilt.tilt.annealing import anneal
    from boltztilt.tilt.training import train

__version__ = "0.1.0"

__all__ = [
    "CallablePotential",
    "Ensemble",
    "Potential",
    "Sampler",
    "System",
    "__version__",
    "anneal",
    "available_systems",
    "load_system",
    "sample",
    "train",
]

_HOMES = {
    "CallablePotential": "boltztilt.energy",
    "Ensemble": "boltztilt.sampling.ensemble",
    "Potential": "boltztilt.energy",
    "Sampler": "boltztilt.sampling.sampler",
    "System": "boltztilt.systems.system",
    "anneal": "boltztilt.tilt.annealing",
    "available_systems": "boltztilt.systems.system",
    "load_system": "boltztilt.systems.system",
    "sample": "boltztilt.sampling.sampler",
    "train": "boltztilt.tilt.training",
}


def __getattr__(name: str) -> Any:
    """Returns a top-level name, importing the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'boltztilt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
