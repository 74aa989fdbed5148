"""Harmonic wells with exact and with rough samplers."""

import math

import torch
from torch import nn

from boltztilt.networks.build import build_network
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System

STIFFNESS = 4.0
NETWORK = {"kind": "local_density", "n_hidden": 8, "n_channels": 3, "max_degree": 1}


class Contraction(nn.Module):
    """b = 2 t log(std) x turns N(0, 1) into N(0, std²): exact for a harmonic well."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.dof = system.base.dof
        self.log_std = nn.Parameter(torch.tensor(-0.5 * math.log(STIFFNESS)))

    def forward(self, times, positions):
        return 2 * times[:, None, None] * self.log_std * positions

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), 2 * times * self.log_std * self.dof


def well(centered: bool = True) -> System:
    return System("well", Harmonic(n_atoms=4, stiffness=STIFFNESS, centered=centered))


def exact_sampler(centered: bool = True) -> Sampler:
    system = well(centered)
    return Sampler(system, Contraction(system), {"n_energy": 17})


def rough_sampler(system: System, network: dict = NETWORK, roughness: float = 0.1) -> Sampler:
    """A small network off its start: no good sampler, but all its numbers are defined."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = build_network(network, system)
        for parameter in field.parameters():
            parameter.data += roughness * torch.randn(parameter.shape)
    return Sampler(system, field, {"system": system.name, "recipe": {"network": network}})
