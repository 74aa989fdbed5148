"""Energies and forces of the terms of a molecular force field.

A term depends on the positions only through separations x_i - x_j of some pairs of atoms
(`boltztilt.potentials.pairs`); it is a function of them. Energies are in kT, lengths in nm.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from boltztilt.potentials.pairs import AtomPairs

SMALLEST_SINE_LENGTH = 1e-6  # nm², |a x b| of a straight angle, as in OpenMM
MIRROR_TOLERANCE = 1e-4  # kT, what a phase of 180 degrees may be off by rounding


@runtime_checkable
class RadialFunction(Protocol):
    """An energy that depends on the distances of pairs."""

    def energy(self, distances: Float[Tensor, "pairs batch"]) -> Float[Tensor, "batch"]:
        """Returns the energy in kT."""
        ...

    def energy_and_slope(
        self, distances: Float[Tensor, "pairs batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "pairs batch"]]:
        """Returns the energy and its derivative by every distance, in kT/nm."""
        ...


@runtime_checkable
class Term(Protocol):
    """One part of the energy, and whether reflection leaves it unchanged."""

    mirror_symmetric: bool

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        """Returns the energy in kT."""
        ...

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        """Returns the energy in kT and the forces in kT/nm."""
        ...


class RadialTerm:
    """The sum of several functions of the distances of the same pairs."""

    mirror_symmetric = True

    def __init__(self, pairs: AtomPairs, functions: list[RadialFunction]):
        self.pairs = pairs
        self.functions = functions

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        distances = self.pairs.separations(positions).square().sum(1).sqrt()
        return total([function.energy(distances) for function in self.functions])

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        separations = self.pairs.separations(positions)
        distances = separations.square().sum(1).sqrt()
        energies, slopes = zip(
            *(function.energy_and_slope(distances) for function in self.functions), strict=True
        )
        strength = -total(slopes) / distances
        force = self.pairs.sum_on_atoms(strength[:, None] * separations)
        return total(energies), force


class HarmonicBonds(NamedTuple):
    """(k/2) sum (r - r_0)^2 over the bonds."""

    lengths: Float[Tensor, "bonds 1"]
    stiffness: Float[Tensor, "bonds 1"]

    def energy(self, distances: Float[Tensor, "bonds batch"]) -> Float[Tensor, "batch"]:
        lengths, stiffness = self.lengths.to(distances), self.stiffness.to(distances)
        return (0.5 * stiffness * (distances - lengths).square()).sum(0)

    def energy_and_slope(
        self, distances: Float[Tensor, "bonds batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "bonds batch"]]:
        slope = self.stiffness.to(distances) * (distances - self.lengths.to(distances))
        return self.energy(distances), slope


class HarmonicAngles:
    """(k/2) sum (theta - theta_0)^2 over the angles theta between two separations a and b."""

    mirror_symmetric = True

    def __init__(
        self,
        arms: tuple[AtomPairs, AtomPairs],
        angles: Float[Tensor, "angles 1"],
        stiffness: Float[Tensor, "angles 1"],
    ):
        self.arms = arms
        self.angles = angles[:, None]
        self.stiffness = stiffness[:, None]

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        a, b = (arm.separations(positions) for arm in self.arms)
        return self._energy_and_slope(a, b, cross(a, b))[0]

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        a, b = (arm.separations(positions) for arm in self.arms)
        normal = cross(a, b)
        energy, slope = self._energy_and_slope(a, b, normal)
        sine_length = dot(normal, normal).sqrt().clamp_min(SMALLEST_SINE_LENGTH)
        normal = normal * (slope / sine_length)
        forces = cross(normal, a) / dot(a, a), cross(b, normal) / dot(b, b)
        return energy, sum_on_atoms(self.arms, forces)

    def _energy_and_slope(
        self, a: Tensor, b: Tensor, normal: Tensor
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "angles 1 batch"]]:
        angles = torch.atan2(dot(normal, normal).sqrt(), dot(a, b))
        deviation = angles - self.angles.to(a)
        slope = self.stiffness.to(a) * deviation
        return 0.5 * (slope * deviation).sum((0, 1)), slope


class PeriodicTorsions:
    """sum_n k_n [1 + cos(n phi - phi_n)] over the dihedral angles phi of i, j, k, l.

    Written as constant + sum_n [C_n cos(n phi) + S_n sin(n phi)], so that cos(phi) and sin(phi)
    suffice, with the three separations f = x_i - x_j, g = x_j - x_k, h = x_l - x_k and the
    normals a = f x g and b = h x g (F, G, H, A and B in the reference).

    Reference:
        Blondel, Karplus (1996), New formulation for derivatives of torsion angles and improper
        torsion angles in molecular mechanics, eqs. 11 and 27,
        https://doi.org/10.1002/(SICI)1096-987X(19960715)17:9<1132::AID-JCC5>3.0.CO;2-T
    """

    def __init__(
        self,
        arms: tuple[AtomPairs, AtomPairs, AtomPairs],
        cosines: Float[Tensor, "orders torsions"],
        sines: Float[Tensor, "orders torsions"],
        constant: float,
    ):
        self.arms = arms
        self.cosines = cosines[:, :, None, None]
        self.sines = sines[:, :, None, None]
        self.constant = constant
        self.mirror_symmetric = bool((sines.abs() < MIRROR_TOLERANCE).all())

    def energy(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, "batch"]:
        f, g, h = (arm.separations(positions) for arm in self.arms)
        return self._energy_and_slope(f, g, cross(f, g), cross(h, g))[0]

    def energy_and_force(
        self, positions: Float[Tensor, "batch atoms 3"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch atoms 3"]]:
        f, g, h = (arm.separations(positions) for arm in self.arms)
        a, b = cross(f, g), cross(h, g)
        energy, slope = self._energy_and_slope(f, g, a, b)
        length = dot(g, g).sqrt()
        a = a * (slope / dot(a, a))
        b = b * (slope / dot(b, b))
        along = b * (dot(h, g) / length) - a * (dot(f, g) / length)
        return energy, sum_on_atoms(self.arms, (length * a, along, -length * b))

    def _energy_and_slope(
        self, f: Tensor, g: Tensor, a: Tensor, b: Tensor
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "torsions 1 batch"]]:
        scale = (dot(a, a) * dot(b, b)).rsqrt()
        cosine, sine = dot(a, b) * scale, -dot(f, b) * dot(g, g).sqrt() * scale
        multiple_cosine, multiple_sine = cosine, sine
        energy, slope = torch.zeros_like(cosine), torch.zeros_like(cosine)
        for n, (c, s) in enumerate(zip(self.cosines.to(f), self.sines.to(f), strict=True), start=1):
            energy = energy + c * multiple_cosine + s * multiple_sine
            slope = slope + n * (s * multiple_cosine - c * multiple_sine)
            multiple_cosine, multiple_sine = (
                multiple_cosine * cosine - multiple_sine * sine,
                multiple_cosine * sine + multiple_sine * cosine,
            )
        return energy.sum((0, 1)) + self.constant, slope


def dot(
    a: Float[Tensor, "terms 3 batch"], b: Float[Tensor, "terms 3 batch"]
) -> Float[Tensor, "terms 1 batch"]:
    """Returns the scalar products."""
    return (a * b).sum(1, keepdim=True)


def cross(
    a: Float[Tensor, "terms 3 batch"], b: Float[Tensor, "terms 3 batch"]
) -> Float[Tensor, "terms 3 batch"]:
    """Returns the vector products, faster than torch.linalg.cross in this layout."""
    (x, y, z), (u, v, w) = a.unbind(1), b.unbind(1)
    return torch.stack([y * w - z * v, z * u - x * w, x * v - y * u], dim=1)


def sum_on_atoms(
    arms: tuple[AtomPairs, ...], forces: tuple[Float[Tensor, "terms 3 batch"], ...]
) -> Float[Tensor, "batch atoms 3"]:
    """Returns the forces on the atoms from the forces along the separations of several arms."""
    return total([arm.sum_on_atoms(force) for arm, force in zip(arms, forces, strict=True)])


def total(values: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    """Returns the sum of tensors, without stacking them first."""
    return reduce(torch.add, values)
