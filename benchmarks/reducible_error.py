"""How far a field is from the conditional mean that it is trained to be.

python benchmarks/reducible_error.py lj55 --reference lj55_reference.npz

The loss of flow matching hardly moves when a field improves, because most of it is noise that
nobody can know. Here the mean of x1 given x_t is measured itself: Markov chains sample its law
~ exp(-U(x1) - |x_t - t x1|² / 2 (1-t)²) from the true x1 on. Two chains give an unbiased estimate
of the squared error of the field, in nats per e-fold of the ratio (1-t)/t of noise to signal; their
integral bounds the relative entropy of stochastic samples to the target. Beside it stands what
is left of the loss.

Chains that have not forgotten the true x1 count it among what could have been known. The figure is
given from the first and from the second half of the chains: where the second is smaller, it is an
upper bound, and more --trajectories lower it. On LJ-55 that begins at a ratio of about 0.2.

Samplers are shipped systems, run folders or weights files, trained on independent pairs and without
likelihood.
"""

from pathlib import Path

import torch
from conditions import arguments, begin, row
from torch import Tensor

from boltztilt.analysis.reference import Reference
from boltztilt.energy import Potential
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.estimate import weighted_mean
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.solvers import starts_at_rest

TRAJECTORIES, LEAPFROG = 120, 12


class Tethered(Potential):
    """U(x) + |y - x|² / 2 σ²: the law of x1 given y = x1 + σ x0, for σ in units of the base."""

    def __init__(self, potential: Potential, base: Gaussian, noisy: Tensor, ratio: float) -> None:
        self.potential, self.noisy = potential, noisy
        self.stiffness = 1 / (ratio * base.std) ** 2
        self.n_atoms, self.n_dims = potential.n_atoms, potential.n_dims
        self.centered, self.mirror_symmetric = potential.centered, False

    def energy(self, positions: Tensor) -> Tensor:
        apart = (positions - self.noisy).square().sum((1, 2))
        return self.potential.energy(positions) + 0.5 * self.stiffness * apart

    def energy_and_force(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, force = self.potential.energy_and_force(positions)
        apart = positions - self.noisy
        tether = 0.5 * self.stiffness * apart.square().sum((1, 2))
        return energy + tether, force - self.stiffness * apart


def chain_means(
    tethered: Tethered, ends: Tensor, step: float, n: int, generator: torch.Generator
) -> Tensor:
    """The means of the two halves of a chain that starts from the true end points."""
    settings = (step, LEAPFROG, generator, False)
    ends = hmc(tethered, ends, n // 4, *settings).positions
    totals = torch.zeros(2, *ends.shape)
    for total in totals:
        for _ in range(n // 2):
            ends = hmc(tethered, ends, 1, *settings).positions
            total += ends
    return totals / (n // 2)


def errors(
    sampler: Sampler, ends: Tensor, ratio: float, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors of the guessed end points: beyond the conditional mean, and in all.

    The first is given twice, from the first and from the second half of the chains.
    """
    base = sampler.system.base
    noisy = ends + ratio * base.sample(len(ends), generator)
    tethered = Tethered(sampler.system.potential, base, noisy, ratio)
    first, second = (chain_means(tethered, ends, base.std / 70, n, generator) for _ in range(2))
    time = 1 / (1 + ratio)
    with torch.no_grad():
        velocity = sampler.field(torch.full((len(ends),), time), time * noisy)
    guess = time * noisy + (1 - time) * velocity
    scale = (ratio * base.std) ** 2
    earlier, later = ((guess - first) * (guess - second)).sum((2, 3)) / scale
    return earlier, later, (guess - ends).square().sum((1, 2)) / scale


def main() -> None:
    parser = arguments(__doc__, n=64)
    parser.add_argument("samplers", nargs="*", default=["lj55"])
    parser.add_argument("--reference", type=Path, required=True, help="samples of the target")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.05, 0.1, 0.15])
    parser.add_argument("--trajectories", type=int, default=TRAJECTORIES, help="of a chain")
    options = begin(parser)
    for target in options.samplers:
        sampler = Sampler.load(target)
        if not starts_at_rest(sampler.metadata) or sampler.system.base_kind != "isotropic":
            parser.error(
                f"{target}: only a field of independent pairs from an isotropic base, trained by "
                "matching alone, is a conditional mean of x1 given x_t"
            )
        reference = Reference.load(options.reference, sampler.system)
        ends = reference.positions[-options.n :].float()
        for ratio in options.ratios:
            generator = torch.Generator().manual_seed(options.seed)
            found = errors(sampler, ends, ratio, options.trajectories, generator)
            earlier, later, whole = (weighted_mean(values.double()) for values in found)
            comment = f"(first half of the chains: {earlier}) of a loss of {whole}"
            row(f"{target}, noise / signal {ratio:g}", f"{later}", comment)


if __name__ == "__main__":
    main()
