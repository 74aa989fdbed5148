"""A mixture of Gaussians, whose tilt by a linear reward is again a mixture of Gaussians."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from boltztilt.energy import Potential


class GaussianMixture(Potential):
    """The energy U(x) = -log sum_k w_k N(x; mu_k, s_k^2 I) - log_z in kT.

    Closed forms: the configuration integral of exp(-U) is exp(log_z); means, density and samples
    are exact; and so is the tilt by a linear reward, see `tilted`.

    | symbol | argument |
    |---|---|
    | mu_k | `means`, (components, atoms, dims) |
    | s_k | `stds`, one per component or one for all |
    | w_k | `weights`, normalised on construction; equal if not given |

    It also serves as a normalised base: `sample` and `log_density`.
    """

    centered = False
    mirror_symmetric = False

    def __init__(
        self,
        means: Tensor | Sequence,
        stds: Tensor | Sequence[float] | float = 1.0,
        weights: Tensor | Sequence[float] | None = None,
        log_z: float = 0.0,
    ):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.dim() != 3:
            raise ValueError(
                f"means must have shape (components, atoms, dims), got {tuple(self.means.shape)}"
            )
        n_components, self.n_atoms, self.n_dims = self.means.shape
        self.stds = torch.as_tensor(stds, dtype=torch.float64).expand(n_components)
        weights = torch.ones(n_components) if weights is None else torch.as_tensor(weights)
        self.weights = weights.double() / weights.double().sum()
        self.log_z = log_z
        if len(self.weights) != n_components or (self.weights < 0).any() or (self.stds <= 0).any():
            raise ValueError(
                f"{n_components} components need as many non-negative weights and positive stds"
            )

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        return -self._log_terms(positions).logsumexp(1) - self.log_z

    def log_density(self, positions: Float[Tensor, "batch atoms dims"]) -> Float64[Tensor, "batch"]:
        """Returns the log of the normalised density."""
        return self._log_terms(positions.double()).logsumexp(1)

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch atoms dims"]:
        """Returns n independent draws from the normalised density."""
        device = generator.device
        component = torch.multinomial(self.weights.to(device), n, True, generator=generator)
        shape = (n, self.n_atoms, self.n_dims)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        stds = self.stds.to(noise)[component]
        return self.means.to(noise)[component] + stds[:, None, None] * noise

    def mean(self) -> Float64[Tensor, "atoms dims"]:
        """Returns the mean configuration, sum_k w_k mu_k."""
        return torch.einsum("k,kad->ad", self.weights, self.means)

    def tilted(self, slope: Float[Tensor, "atoms dims"]) -> "GaussianMixture":
        """Returns the mixture with energy U(x) - slope·x, tilted by the reward slope·x.

        Completing the square shifts every mean to mu_k + s_k^2 slope and multiplies every weight
        by exp(slope·mu_k + s_k^2 |slope|^2 / 2); log_z grows by the log of their new sum.
        """
        slope = slope.double()
        shifts = self.stds.square()[:, None, None] * slope
        gains = ((self.means + 0.5 * shifts) * slope).sum((1, 2))
        log_weights = self.weights.log() + gains
        log_sum = log_weights.logsumexp(0)
        weights = (log_weights - log_sum).exp()
        return GaussianMixture(self.means + shifts, self.stds, weights, self.log_z + log_sum.item())

    def _log_terms(
        self, positions: Float[Tensor, "batch atoms dims"]
    ) -> Float[Tensor, "batch components"]:
        """Returns log(w_k N(x; mu_k, s_k^2 I))."""
        variances = self.stds.square()
        squares = (positions[:, None] - self.means.to(positions)).square().sum((2, 3))
        normaliser = 0.5 * self.n_atoms * self.n_dims * (2.0 * math.pi * variances).log()
        constants = self.weights.log() - normaliser
        return constants.to(positions) - squares / (2.0 * variances.to(positions))


class LinearReward(Potential):
    """The reward slope·x as a potential: its energy is -slope·x and its force is slope."""

    centered = False
    mirror_symmetric = False

    def __init__(self, slope: Float[Tensor, "atoms dims"]):
        self.slope = slope
        self.n_atoms, self.n_dims = slope.shape

    def energy(self, positions: Float[Tensor, "batch atoms dims"]) -> Float[Tensor, "batch"]:
        return -(positions * self.slope.to(positions)).sum((1, 2))
