"""Importance sampling of springs from a Gaussian, where everything has a closed form."""

import math

import torch

from boltztilt.energy import CallablePotential
from boltztilt.geometry import remove_mean
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.systems.system import System

STIFFNESS = 1.5
DOF = 6
VARIANCE = 1 / STIFFNESS
LOG_Z = 0.5 * DOF * math.log(2 * math.pi * VARIANCE)
# Kish's ESS of N(0, v) from N(0, 1) in d dimensions: (v (2 - v))^(d/2).
ESS = (VARIANCE * (2 - VARIANCE)) ** (DOF / 2)


def spring_energy(positions):
    return 0.5 * STIFFNESS * remove_mean(positions).square().sum(dim=(1, 2))


SPRING = System("spring", CallablePotential(spring_energy, 3, 3, mirror_symmetric=True))


def importance_sample(n, seed, with_density=True):
    base = Gaussian(3)
    positions = base.sample(n, torch.Generator().manual_seed(seed))
    log_density = base.log_density(positions) if with_density else None
    info = {"seed": seed, "n_steps": 20, "n_energy": n, "wall_time": 0.5}
    return Ensemble(positions, spring_energy(positions), log_density, SPRING, info)


def grouped_sample(n_groups, seed, n_per_group=5):
    """Groups of structures that hold one independent draw each, repeated; all of weight 1."""
    single = importance_sample(n_groups, seed)
    groups = torch.arange(n_groups).repeat_interleave(n_per_group)
    return Ensemble(
        single.positions[groups],
        single.energies[groups],
        None,
        SPRING,
        {"seed": seed, "n_ancestors": n_groups},
        path_log_weights=single.log_weights[groups],
        groups=groups,
    )
