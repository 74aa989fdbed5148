"""Replica exchange: every temperature is sampled, and barriers are crossed that HMC cannot."""

import math
from functools import partial

import pytest
import torch

from boltztilt.energy import CallablePotential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.mcmc import hmc
from boltztilt.sampling.tempering import (
    exchange,
    geometric_betas,
    replica_exchange,
    start_ladders,
)

BARRIER = 14.0


def two_wells(x):
    """Wells at -1 and 1, the right one less favourable by about 1.2 kT."""
    x = x[:, 0, 0]
    return BARRIER * (x.square() - 1.0).square() + 0.6 * x


WELLS = CallablePotential(two_wells, 1, 1, centered=False)


def right_share():
    grid = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    weights = (-two_wells(grid[:, None, None])).exp()
    return float(weights[grid > 0].sum() / weights.sum())


def run(potential, start, betas, n_rounds, n_leapfrog, generator, step_size):
    """Chains after every second round, after a fifth as burn-in."""
    advance = partial(replica_exchange, potential, n_leapfrog=n_leapfrog, generator=generator)
    chains = start_ladders(potential, start, betas, step_size, 40, n_leapfrog, generator)
    chains = advance(chains, betas, n_rounds=n_rounds // 5)
    seen = []
    for _ in range(n_rounds // 2):
        chains = advance(chains, betas, n_rounds=2)
        seen.append(chains)
    return seen


def test_populations_of_wells_that_chains_do_not_leave(generator):
    start = torch.full((100, 1, 1), 1.0)
    stuck = hmc(WELLS, start, 100, 0.1, 5, generator).positions
    assert (stuck > 0).double().mean() > 0.95
    betas = geometric_betas(14.0, 6)
    seen = run(WELLS, start, betas, 300, 5, generator, 0.1)
    positions = torch.stack([chains.positions[:, 0, 0, 0] for chains in seen])
    shares = (positions > 0).double().mean(dim=0)
    error = float(shares.std()) / math.sqrt(len(shares))
    assert abs(float(shares.mean()) - right_share()) < 3.5 * error
    assert error < 0.03
    exchanged = torch.tensor([chains.exchanged for chains in seen]).mean(dim=0)
    assert exchanged.min() > 0.3


def test_mean_energy_at_every_temperature(generator):
    potential, betas = Harmonic(4, stiffness=2.0), geometric_betas(3.0, 4)
    start = torch.randn(100, 4, 3, generator=generator)
    seen = run(potential, start, betas, 150, 6, generator, 0.3)
    means = torch.stack([chains.energies for chains in seen]).mean(dim=0)
    for k, beta in enumerate(betas):
        exact = 0.5 * 9 / float(beta)
        error = float(means[:, k].std()) / math.sqrt(len(means))
        assert abs(float(means[:, k].mean()) - exact) < 3.5 * error


def test_energies_belong_to_the_positions(generator):
    start = torch.randn(5, 4, 3, generator=generator)
    potential, betas = Harmonic(4), geometric_betas(2.0, 3)
    chains = start_ladders(potential, start, betas, 0.3, 5, 4, generator)
    chains = replica_exchange(potential, chains, betas, 3, 4, generator)
    computed = potential.energy(chains.positions.flatten(0, 1)).reshape(5, 3)
    torch.testing.assert_close(chains.energies, computed.double(), atol=1e-5, rtol=1e-5)


def test_exchanges_in_turn_by_the_metropolis_rule(generator):
    betas = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    downhill = torch.tensor([[9.0, 1.0, 0.0]], dtype=torch.float64)  # always accepted
    assert exchange(downhill, betas, 0, generator)[0].tolist() == [[1, 0, 2]]
    assert exchange(downhill, betas, 1, generator)[0].tolist() == [[0, 2, 1]]
    uphill = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64).expand(20_000, 3)
    share = exchange(uphill, betas, 0, generator)[1][:, 0].double().mean()
    assert float(share) == pytest.approx(math.exp(-1.0), abs=0.012)


def test_temperatures_that_make_no_ladder_are_refused(generator):
    for numbers in ([1.0], [0.9, 0.5], [1.0, 1.2], [1.0, 0.0]):
        betas = torch.tensor(numbers, dtype=torch.float64)
        with pytest.raises(ValueError, match="beta"):
            start_ladders(Harmonic(3), torch.zeros(2, 3, 3), betas, 0.1, 1, 1, generator)
