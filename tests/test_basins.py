"""Basins of the backbone against dihedrals computed here."""

import math

import pytest
import torch

from boltztilt.analysis.basins import HELIX, backbone_basins
from boltztilt.systems.system import load_system

PHI, PSI = [4, 6, 8, 14], [6, 8, 14, 16]


@pytest.fixture(scope="module")
def dipeptide():
    return load_system("aldp")


def dihedral(positions, atoms):
    a, b, c, d = positions[:, atoms].double().unbind(dim=1)
    along = torch.nn.functional.normalize(c - b, dim=1)
    first, last = torch.linalg.cross(b - a, along), torch.linalg.cross(along, d - c)
    sine = (torch.linalg.cross(first, last) * along).sum(dim=1)
    return torch.atan2(sine, (first * last).sum(dim=1))


def turned(positions, bond, moving, angle):
    """The positions with some atoms turned about a bond, by Rodrigues' formula."""
    origin = positions[bond[0]]
    axis = torch.nn.functional.normalize(positions[bond[1]] - origin, dim=0)
    arms = positions[moving] - origin
    cross = torch.linalg.cross(axis.expand_as(arms), arms)
    along = axis * (arms @ axis)[:, None]
    result = positions.clone()
    result[moving] = (
        origin + arms * math.cos(angle) + cross * math.sin(angle) + along * (1 - math.cos(angle))
    )
    return result


def test_basins_of_turned_backbones(dipeptide):
    structure = dipeptide.molecule.structure
    after_phi, after_psi = [*range(9, 22)], [15, 16, *range(17, 22)]
    frames = torch.stack(
        [
            turned(turned(structure, (6, 8), after_phi, a), (8, 14), after_psi, b)
            for a in torch.linspace(0, 6, 12).tolist()
            for b in torch.linspace(0, 6, 12).tolist()
        ]
    )
    phi, psi = dihedral(frames, PHI), dihedral(frames, PSI)
    basins = backbone_basins(dipeptide, frames)
    assert torch.equal(basins["phi_positive"], phi > 0)
    assert torch.equal(basins["helix"], (phi < 0) & (psi > HELIX[0]) & (psi < HELIX[1]))
    assert 0.3 < basins["phi_positive"].float().mean() < 0.7
    mirrored = backbone_basins(dipeptide, -frames)
    assert all(torch.equal(mirrored[name], basins[name]) for name in basins)


def test_clusters_have_no_backbone():
    assert backbone_basins(load_system("lj13"), torch.randn(2, 13, 3)) == {}
