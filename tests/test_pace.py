"""The pace of the solver: where it puts steps, and what that gains."""

import math

import pytest
import torch
from torch import nn

from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.flow import warped_grid
from boltztilt.sampling.pace import N_BLOCKS, paced_grid
from boltztilt.sampling.sampler import Sampler
from boltztilt.systems.system import System

MOMENT, WIDTH = 0.3, 0.02


class Jolt(nn.Module):
    """b = rate(t) x with all of the rate near one moment: exact for a harmonic well, and sudden."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.dof = system.base.dof
        self.log_std = nn.Parameter(torch.tensor(-0.5 * math.log(4.0)))

    def rate(self, times):
        bump = torch.exp(-((times - MOMENT) ** 2) / (2 * WIDTH**2))
        return self.log_std * bump / (WIDTH * math.sqrt(2 * math.pi))

    def forward(self, times, positions):
        return self.rate(times)[:, None, None] * positions

    def velocity_and_divergence(self, times, positions):
        return self(times, positions), self.rate(times) * self.dof


def jolted() -> Sampler:
    system = System("well", Harmonic(n_atoms=4, stiffness=4.0))
    return Sampler(system, Jolt(system), {})


def test_the_warped_grid_is_the_pace_of_itself():
    for n_steps in (1, 5, 16, 40):
        found = paced_grid(n_steps, warped_grid(N_BLOCKS))
        torch.testing.assert_close(found, warped_grid(n_steps), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 7, 32])
def test_a_paced_grid_spans_the_flow_and_rises(n_steps):
    pace = torch.tensor([0.0, 0.1, 0.15, 0.9, 1.0], dtype=torch.float64)
    times = paced_grid(n_steps, pace)
    assert times[0] == 0
    assert times[-1] == 1
    assert len(times) == n_steps + 1
    assert (times.diff() > 0).all()


def test_each_interval_of_the_pace_has_as_many_steps():
    pace = torch.tensor([0.0, 0.1, 0.15, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(paced_grid(8, pace)[::2], pace)


def test_fewer_steps_early():
    """Half as many as in the second half: 4 of 12, 2 in each of its intervals."""
    pace = torch.tensor([0.0, 0.1, 0.15, 0.9, 1.0], dtype=torch.float64)
    grid = paced_grid(12, pace, early=1 / 2)
    torch.testing.assert_close(grid[[0, 2, 4, 8, 12]], pace)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="n_steps is 0"):
        paced_grid(0, warped_grid(4))


def test_steps_gather_where_the_field_is_sudden():
    sampler = jolted()
    paced = sampler.paced(4)
    near = [
        ((each.time_grid(16, "rk4") - MOMENT).abs() < 4 * WIDTH).sum().item()
        for each in (sampler, paced)
    ]
    assert near[1] >= 2 * near[0]
    errors = [
        (each.sample(50, n_steps=16).log_z.value - sampler.system.potential.log_z)
        for each in (sampler, paced)
    ]
    assert abs(errors[1]) < 0.2 * abs(errors[0])


def test_structures_without_finite_energy_do_not_matter():
    sampler = jolted()
    energy = sampler.system.potential.energy

    def sometimes_infinite(positions):
        energies = energy(positions)
        energies[0] = math.inf
        return energies

    sampler.system.potential.energy = sometimes_infinite
    assert all(math.isfinite(time) for time in sampler.paced(8).metadata["pace"])


def test_the_pace_is_kept_with_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("boltztilt.sampling.pace.N_BLOCKS", 4)  # cheaper
    paced = Sampler.load("dw4").paced(2)
    paced.save(tmp_path / "paced.safetensors")
    again = Sampler.load(tmp_path / "paced.safetensors")
    assert torch.equal(again.time_grid(9, "rk4"), paced.time_grid(9, "rk4"))
    ensemble = paced.sample(3, n_steps=40)
    backwards = again.log_density(ensemble.positions, n_steps=40)
    torch.testing.assert_close(backwards, ensemble.log_density, atol=0.02, rtol=0)
