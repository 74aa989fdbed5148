"""Markov chains: exact on the harmonic potential, on the subspace, robust at overlaps."""

import math

import pytest
import torch

from boltztilt.energy import CallablePotential, Potential
from boltztilt.sampling.base import BondGaussian
from boltztilt.sampling.mcmc import ChainState, hmc, mala, random_walk, truncated_drift

N_CHAINS = 4000
STIFFNESS = 4.0
KERNELS = {
    "random_walk": lambda potential, x, n, g, adapt=False: random_walk(
        potential, x, n, 0.35, g, adapt
    ),
    "mala": lambda potential, x, n, g, adapt=False: mala(potential, x, n, 0.45, g, adapt),
    "hmc": lambda potential, x, n, g, adapt=False: hmc(potential, x, n, 0.4, 3, g, adapt),
}


class Spring(Potential):
    """U = k/2 |x|² per coordinate, with an optional hard core of infinite energy."""

    n_atoms, n_dims, mirror_symmetric = 4, 3, True

    def __init__(self, centered=True, core=0.0):
        self.centered, self.core = centered, core

    def energy(self, positions):
        energies = 0.5 * STIFFNESS * positions.square().sum(dim=(1, 2))
        distances = torch.cdist(positions, positions) + 1e9 * torch.eye(4)
        inside = (distances < self.core).flatten(1).any(dim=1)
        return torch.where(inside, math.inf, energies)


class Quartic(Potential):
    """U = (x/s)⁴/4 with s = 0.3: its force far outgrows any noise, the case truncation is for."""

    n_atoms, n_dims, centered, mirror_symmetric = 1, 1, False, True

    def energy(self, positions):
        return 0.25 * (positions / 0.3).pow(4).sum(dim=(1, 2))


def start(seed, potential):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        N_CHAINS, potential.n_atoms, potential.n_dims, generator=generator
    ), generator


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_harmonic_energy_has_exact_mean_and_variance(kernel, centered):
    potential = Spring(centered)
    positions, generator = start(1, potential)
    n_steps = 25 if kernel == "hmc" else 150
    energies = KERNELS[kernel](potential, positions, n_steps, generator).energies
    dof = 9 if centered else 12
    z_mean = (energies.mean() - dof / 2) / math.sqrt(dof / 2 / N_CHAINS)
    # U is Gamma(dof/2): variance dof/2, fourth central moment 3 (dof/2)² + 3 dof.
    spread = math.sqrt(((dof / 2) ** 2 * 2 + 3 * dof) / N_CHAINS)
    z_variance = (energies.var() - dof / 2) / spread
    assert abs(z_mean) < 3.5
    assert abs(z_variance) < 3.5


def test_mala_balances_in_detail_where_the_drift_is_truncated():
    potential = Quartic()
    positions, generator = start(2, potential)
    assert (potential.force(positions).abs() * 0.25 > 1).float().mean() > 0.3
    energies = mala(potential, positions, 400, 0.5, generator, adapt=False).energies
    # x⁴/4 is Gamma(1/4) in law: mean 1/4, variance 1/4.
    assert abs(energies.mean() - 0.25) / math.sqrt(0.25 / N_CHAINS) < 3.5


def test_drift_never_exceeds_the_typical_noise():
    forces = (
        torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 12, 50)[:, None, None]
    )
    drift = truncated_drift(forces, 0.1)
    norms = drift.flatten(1).norm(dim=1)
    assert (norms <= 0.1 * math.sqrt(12) * (1 + 1e-5)).all()
    torch.testing.assert_close(drift[0], 0.005 * forces[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_chains_leave_an_overlap_and_stay_out(kernel):
    potential = Spring(core=0.3)
    generator = torch.Generator().manual_seed(3)
    state = KERNELS[kernel](potential, torch.zeros(200, 4, 3), 200, generator)
    assert torch.isfinite(state.energies).all()


def test_nan_energies_are_never_entered():
    class Broken(Spring):
        def energy(self, positions):
            return torch.where(positions[:, 0, 0] > 0, torch.nan, super().energy(positions))

    potential = Broken()
    positions, generator = start(4, potential)
    for kernel in KERNELS.values():
        state = kernel(potential, -positions[:, :1].abs() * torch.ones(4, 1), 20, generator)
        assert not torch.isnan(state.energies).any()
        entered = torch.isfinite(state.energies) & (state.positions[:, 0, 0] > 0)
        assert not entered.any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_centre_of_mass_stays_at_the_origin(kernel):
    potential = Spring()
    positions, generator = start(5, potential)
    moved = KERNELS[kernel](potential, positions + 3.0, 100, generator).positions
    assert moved.mean(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_returned_energies_and_forces_belong_to_the_positions(kernel):
    potential = Spring()
    positions, generator = start(6, potential)
    state = KERNELS[kernel](potential, positions, 5, generator)
    torch.testing.assert_close(state.energies, potential.energy(state.positions).double())
    if state.forces is not None:
        torch.testing.assert_close(state.forces, -STIFFNESS * state.positions)


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_seed_same_chains(kernel):
    potential = Spring()

    def run() -> ChainState:
        positions, generator = start(7, potential)
        return KERNELS[kernel](potential, positions, 10, generator, adapt=True)

    first, second = run(), run()
    assert torch.equal(first.positions, second.positions)
    assert first.step_size == second.step_size


@pytest.mark.parametrize(
    ("adapted", "target"),
    [
        (lambda p, x, step, g: random_walk(p, x, 100, step, g), 0.25),
        (lambda p, x, step, g: mala(p, x, 100, step, g), 0.6),
        (lambda p, x, step, g: hmc(p, x, 50, step, 3, g), 0.8),
    ],
)
@pytest.mark.parametrize("step_size", [1e-3, 10.0])
def test_step_size_finds_the_target_acceptance(adapted, target, step_size):
    potential = Spring()
    positions, generator = start(8, potential)
    state = adapted(potential, positions, step_size, generator)
    again = adapted(potential, state.positions, state.step_size, generator)
    assert isinstance(state, ChainState)
    assert abs(again.acceptance - target) < 0.05


def test_scale_of_a_covariance_moves_all_modes_alike():
    """A chain of 16 atoms bound by springs: the law is the same, and soft modes are not slow."""
    bonds = torch.stack([torch.arange(15), torch.arange(1, 16)])
    base, n = BondGaussian(16, 3, 0.2, bonds=bonds), 4000
    chain = CallablePotential(lambda x: base.squared_norm(x) / 2, 16)
    start = torch.zeros(n, 16, 3)

    def end_to_end(scale):
        generator = torch.Generator().manual_seed(0)
        state = hmc(chain, start, 8, 0.06, 6, generator, adapt=False, scale=scale)
        return (state.positions[:, 0] - state.positions[:, -1]).square().mean().item(), state

    exact = 15 * 0.2**2
    scaled, state = end_to_end(base.mode_scale)
    assert scaled == pytest.approx(exact, abs=4 * exact * math.sqrt(2 / (3 * n)))
    assert state.energies.mean() == pytest.approx(45 / 2, abs=4 * math.sqrt(45 / 2 / n))
    assert state.positions.mean(1).abs().max() < 1e-5
    assert end_to_end(None)[0] < 0.8 * exact


def test_impossible_settings_are_refused():
    positions, generator = start(9, Spring())
    with pytest.raises(ValueError, match="step_size"):
        mala(Spring(), positions, 1, 0.0, generator)
    with pytest.raises(ValueError, match="n_steps"):
        random_walk(Spring(), positions, -1, 0.1, generator)
    with pytest.raises(ValueError, match="n_leapfrog"):
        hmc(Spring(), positions, 1, 0.1, 0, generator)
