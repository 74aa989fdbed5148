"""Energies between all pairs of atoms: Coulomb, Lennard-Jones and generalised Born.

Each is a function of the distances of all pairs i < j, see `boltztilt.potentials.force_terms`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class CoulombLennardJones(NamedTuple):
    """sum_{i<j} [ C_ij / r + 4 eps_ij ((sigma_ij / r)^12 - (sigma_ij / r)^6) ].

    Pairs that do not interact have C = eps = sigma = 0.

    Attributes:
        coulomb: C in kT nm, the product of the charges over 4 pi eps_0.
        sigma: in nm.
        depth: 4 eps in kT.
    """

    coulomb: Float[Tensor, "pairs 1"]
    sigma: Float[Tensor, "pairs 1"]
    depth: Float[Tensor, "pairs 1"]

    def energy(self, distances: Float[Tensor, "pairs batch"]) -> Float[Tensor, "batch"]:
        return self.energy_and_slope(distances)[0]

    def energy_and_slope(
        self, distances: Float[Tensor, "pairs batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "pairs batch"]]:
        inverse = distances.reciprocal()
        coulomb = self.coulomb.to(distances) * inverse
        square = (self.sigma.to(distances) * inverse).square()
        six = square * square * square
        dispersion = self.depth.to(distances) * six
        repulsion = dispersion * six
        energy = (coulomb + repulsion - dispersion).sum(0)
        return energy, (6.0 * dispersion - 12.0 * repulsion - coulomb) * inverse


class Descreening(NamedTuple):
    """How much every atom of a pair is shielded by the other; 2: by the second, by the first."""

    integrals: Float[Tensor, "2 pairs batch"]
    slopes: Float[Tensor, "2 pairs batch"]


class BornRadii(NamedTuple):
    """Effective Born radii in nm and their derivatives by the descreening integrals."""

    radii: Float[Tensor, "atoms batch"]
    slopes: Float[Tensor, "atoms batch"]


class GeneralizedBorn:
    """The energy of solvation in a continuum, model II of Onufriev, Bashford and Case ("OBC2").

    U = -(tau/2) sum_ij q_i q_j / f_ij + sum_i S_i / B_i^6,
    f_ij^2 = r_ij^2 + B_i B_j exp(-r_ij^2 / (4 B_i B_j)),
    1 / B_i = 1 / o_i - tanh(psi - 0.8 psi^2 + 4.85 psi^3) / rho_i,  psi = o_i sum_j H_ij,
    2 H_ij = 1/L - 1/U + (r - s_j^2 / r) (1/U^2 - 1/L^2) / 4 + log(L/U) / (2 r),
    U = max(r + s_j, o_i), L = max(|r - s_j|, o_i), plus 2 (1/o_i - 1/L) where atom j swallows
    atom i (o_i < s_j - r) and `engulfing` is set.

    | symbol | argument |
    |---|---|
    | rho_i, o_i, s_i | `radii`, `offset_radii`, `scaled_radii` in nm |
    | tau q_i q_j | `strengths` in kT nm, tau = (1/eps_solute - 1/eps_solvent) / (4 pi eps_0) |
    | S_i = 4 pi gamma (rho_i + 0.14 nm)^2 rho_i^6 | `surface` in kT nm^6 |

    References:
        Still, Tempczyk, Hawley, Hendrickson (1990), eq. 4, https://doi.org/10.1021/ja00172a038
        Hawkins, Cramer, Truhlar (1995), eq. 13, https://doi.org/10.1016/0009-2614(95)01082-K
        Schaefer, Bartels, Karplus (1998), https://doi.org/10.1006/jmbi.1998.2172 (surface term)
        Onufriev, Bashford, Case (2004), eqs. 5-7, https://doi.org/10.1002/prot.20033
    """

    def __init__(
        self,
        radii: Float[Tensor, "atoms 1"],
        offset_radii: Float[Tensor, "atoms 1"],
        scaled_radii: Float[Tensor, "atoms 1"],
        strengths: Float[Tensor, "atoms atoms"],
        surface: Float[Tensor, "atoms 1"],
        engulfing: bool,
    ):
        n_atoms = len(radii)
        first, second = torch.triu_indices(n_atoms, n_atoms, offset=1)
        self.receivers = torch.stack([first, second])
        self.radii = radii
        self.offset_radii = offset_radii
        self.pair_offset_radii = offset_radii[self.receivers]
        self.pair_scaled_radii = scaled_radii[self.receivers.flip(0)]
        self.pair_strength = strengths[first, second][:, None]
        self.self_strength = 0.5 * strengths.diagonal()[:, None]
        self.surface = surface
        self.engulfing = engulfing
        self.membership = torch.eye(n_atoms)[:, self.receivers.flatten()]

    def energy(self, distances: Float[Tensor, "pairs batch"]) -> Float[Tensor, "batch"]:
        radii = self._born_radii(self._descreening(distances)).radii
        first, second = self._of_pairs(radii)
        products = first * second
        screening = (-0.25 * distances.square() / products).exp()
        return self._energy(radii, (distances.square() + products * screening).rsqrt())

    def energy_and_slope(
        self, distances: Float[Tensor, "pairs batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "pairs batch"]]:
        descreening = self._descreening(distances)
        born = self._born_radii(descreening)
        first, second = self._of_pairs(born.radii)
        products = first * second
        squares = distances.square()
        exponent = 0.25 * squares / products
        screening = (-exponent).exp()
        inverse = (squares + products * screening).rsqrt()
        strength = self.pair_strength.to(inverse) * inverse.pow(3)
        by_radii = 0.5 * strength * products * screening * (1.0 + exponent)
        by_integrals = self._radius_slope(born.radii, by_radii) * born.slopes
        slope = strength * distances * (1.0 - 0.25 * screening)
        slope = slope + (self._of_pairs(by_integrals) * descreening.slopes).sum(0)
        return self._energy(born.radii, inverse), slope

    def _descreening(self, distances: Float[Tensor, "pairs batch"]) -> Descreening:
        offset, scaled = self.pair_offset_radii.to(distances), self.pair_scaled_radii.to(distances)
        inverse = distances.reciprocal()
        difference = distances - scaled
        lower = torch.maximum(difference.abs(), offset)
        upper = torch.maximum(distances + scaled, offset).reciprocal()
        logarithm = 0.25 * (lower * upper).log() * inverse
        lower = lower.reciprocal()
        curvature = 0.125 * (upper - lower) * (upper + lower)
        reach = scaled.square() * inverse
        integrals = 0.5 * (lower - upper) + curvature * (distances - reach) + logarithm
        slopes = curvature * (1.0 + reach * inverse) - logarithm * inverse
        inside = difference < -offset
        if self.engulfing:
            integrals = integrals + torch.where(inside, offset.reciprocal() - lower, 0.0)
        else:
            slopes = slopes + torch.where(inside, lower.square(), 0.0)
        return Descreening(integrals, slopes)

    def _born_radii(self, descreening: Descreening) -> BornRadii:
        integrals = descreening.integrals.flatten(0, 1)
        offset, radii = self.offset_radii.to(integrals), self.radii.to(integrals)
        psi = offset * (self.membership.to(integrals) @ integrals)
        factor = (psi * (1.0 + psi * (4.85 * psi - 0.8))).tanh()
        born = (offset.reciprocal() - factor / radii).reciprocal()
        growth = 1.0 + psi * (14.55 * psi - 1.6)
        slopes = born.square() * (1.0 - factor.square()) * growth * offset / radii
        return BornRadii(born, slopes)

    def _energy(
        self, radii: Float[Tensor, "atoms batch"], inverse: Float[Tensor, "pairs batch"]
    ) -> Float[Tensor, "batch"]:
        """Returns the energy, given 1 / f of every pair."""
        surface = self.surface.to(radii) * radii.pow(-6)
        own = (surface - self.self_strength.to(radii) / radii).sum(0)
        return own - (self.pair_strength.to(inverse) * inverse).sum(0)

    def _radius_slope(
        self, radii: Float[Tensor, "atoms batch"], by_radii: Float[Tensor, "pairs batch"]
    ) -> Float[Tensor, "atoms batch"]:
        """Returns the derivatives of the energy by the Born radii."""
        own = self.self_strength.to(radii) / radii - 6.0 * self.surface.to(radii) * radii.pow(-6)
        members = self.membership.unflatten(1, self.receivers.shape).sum(1)
        return (members.to(by_radii) @ by_radii + own) / radii

    def _of_pairs(self, values: Float[Tensor, "atoms batch"]) -> Float[Tensor, "2 pairs batch"]:
        """Returns the values of the first and of the second atom of every pair."""
        return (self.membership.T.to(values) @ values).unflatten(0, self.receivers.shape)
