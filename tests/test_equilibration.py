"""Checks of equilibration: they catch what is not equilibrated, and name it."""

import math

import pytest
import torch
from scores import z_score

from boltztilt.analysis.equilibration import (
    check_equilibration,
    drift,
    failed_checks,
    laplacian,
    r_hat,
)
from boltztilt.energy import CallablePotential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.estimate import Estimate
from boltztilt.systems.system import System

WELL = System("well", Harmonic(3, stiffness=4.0))


def test_checks_catch_samples_at_the_wrong_temperature():
    generator = torch.Generator().manual_seed(2)
    hot = Harmonic(3, stiffness=3.0).sample(2000, generator)
    energies = WELL.potential.energy(hot).double()
    checks = check_equilibration(WELL, hot.reshape(200, 10, 3, 3), energies.reshape(200, 10))
    assert abs(z_score(checks["virial"], 1.0)) > 5
    assert abs(z_score(checks["configurational_temperature"], 1.0)) > 5


def test_failed_checks_are_named():
    good = {
        "virial": Estimate(1.01, 0.004),
        "configurational_temperature": Estimate(0.99, 0.01),
        "drift": -1.2,
        "r_hat": {"energy": 1.01},
    }
    assert failed_checks(good) == failed_checks({}) == []
    bad = {"virial": Estimate(1.05, 0.004), "drift": 7.0, "r_hat": {"short_pairs": 1.4}}
    words = failed_checks({**good, **bad})
    assert [word.split()[0] for word in words] == ["virial", "mean", "r_hat"]


def test_r_hat_is_one_for_independent_draws_and_large_for_stuck_chains():
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(500, 10, generator=generator, dtype=torch.float64)
    assert r_hat(draws) == pytest.approx(1.0, abs=0.02)
    modes = 3.0 * torch.randint(2, (500, 1), generator=generator)
    assert r_hat(draws + modes) > 1.5
    assert r_hat(modes.expand(500, 10).double()) == math.inf


def test_drift_is_in_standard_errors_over_chains(generator):
    values = torch.randn(400, 10, dtype=torch.float64, generator=generator)
    assert abs(drift(values)) < 3.5
    values[:, 5:] += 0.5
    expected = 0.5 / math.sqrt(2 / 5 / 400)
    assert drift(values) == pytest.approx(expected, rel=0.25)
    assert drift(torch.zeros(400, 10, dtype=torch.float64)) == 0.0
    assert drift(torch.arange(10, dtype=torch.float64).repeat(4, 1)) == math.inf


def test_laplacian_is_the_trace_of_the_hessian_on_the_subspace():
    positions = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(4)).double()

    def energy(x):
        return x.pow(4).sum(dim=(1, 2)) + (x[:, 0, 0] * x[:, 1, 0]).sin()

    def trace(x, projector):
        hessian = torch.autograd.functional.hessian(lambda y: energy(y[None])[0], x)
        return (projector @ hessian.reshape(6, 6)).trace()

    mean = torch.kron(torch.full((3, 3), 1 / 3), torch.eye(2)).double()
    for centered, projector in ((False, torch.eye(6).double()), (True, torch.eye(6) - mean)):
        potential = CallablePotential(energy, 3, 2, centered=centered)
        expected = torch.stack([trace(x, projector) for x in positions])
        torch.testing.assert_close(laplacian(potential, positions), expected)


class WithoutGraph(Harmonic):
    """A well whose energies autograd cannot follow, as those of other programs."""

    def energy(self, positions):
        return super().energy(positions.detach())

    def energy_and_force(self, positions):
        return super().energy_and_force(positions.detach())


def test_energies_without_a_graph_are_checked_by_their_forces(generator):
    potential = WithoutGraph(3, stiffness=4.0)
    positions = potential.sample(400, generator)
    energies = potential.energy(positions).double().reshape(40, 10)
    system = System("well", potential)
    checks = check_equilibration(system, positions.reshape(40, 10, 3, 3), energies)
    assert "configurational_temperature" not in checks
    assert abs(z_score(checks["virial"], 1.0)) < 4
    assert failed_checks(checks) == []


def test_chains_that_stay_in_wells_of_an_external_field_are_seen():
    """Energies and sizes are the same in both wells, and only the centre of mass tells."""
    wells = CallablePotential(
        lambda x: 0.5 * ((x.mean(1)[:, 0].abs() - 4).square() + x.square().sum((1, 2))),
        n_atoms=2,
        centered=False,
    )
    system = System("wells", wells)
    generator = torch.Generator().manual_seed(1)
    positions = 0.7 * torch.randn(100, 10, 2, 3, generator=generator)
    energies = wells.energy(positions.flatten(0, 1)).double().reshape(100, 10)
    mixed = check_equilibration(system, positions, energies)["r_hat"]
    assert all(value < 1.1 for value in mixed.values())
    positions[:50, ..., 0] += 4
    positions[50:, ..., 0] -= 4
    stuck = check_equilibration(system, positions, energies)["r_hat"]
    assert stuck["centre_1"] > 2
    assert max(stuck["centre_2"], stuck["radius_of_gyration"]) < 1.1
