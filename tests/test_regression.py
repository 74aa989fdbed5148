"""Losses of one update: which points, which weights, and which objectives are refused."""

import copy
import math

import pytest
import torch
from torch import nn

from boltztilt.energy import CountedPotential
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.base import Gaussian
from boltztilt.sampling.flow import integrate, warped_grid
from boltztilt.sampling.transport import FieldRates
from boltztilt.tilt.interpolant import Bridge, draw_times
from boltztilt.tilt.ladder import climb
from boltztilt.tilt.population import Chains
from boltztilt.tilt.recipe import Recipe
from boltztilt.tilt.regression import (
    anchor_loss,
    draw_bridge,
    draw_grid,
    likelihood_loss,
    matching_loss,
    path_loss,
    path_slopes,
    refuse_explicit_on_singular_core,
    shortened,
    tilting_loss,
)

BASE = Gaussian(4)
SPECIES = torch.zeros(4, dtype=torch.long)


class Scaled(nn.Module):
    """The field s x."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, times, positions):
        return self.scale * positions

    def velocity_and_divergence(self, times, positions):
        n_free = (positions.shape[1] - 1) * positions.shape[2]
        return self(times, positions), self.scale * n_free * torch.ones_like(times)


def rung_of(potential, n_particles=1000):
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(n_particles=n_particles, recentring="none")
    chains = Chains(CountedPotential(potential), BASE, "none", 0.1, generator)
    field = FieldRates.of(Scaled(0.0), False)
    return climb(field, BASE, 0.0, recipe, chains, torch.device("cpu"))


def bridge_of(n, generator):
    positions, rates = torch.randn(2, n, 4, 3, generator=generator)
    times, weights, factors = torch.rand(3, n, generator=generator)
    return Bridge(times, positions, rates, weights, factors)


def test_likelihood_has_its_closed_form_and_is_largest_at_the_particles_own_width(generator):
    """The flow of s x is a Gaussian of width exp(s); Gaussian particles want s = log width."""
    particles = 1.7 * BASE.sample(500, generator).double()
    width = (particles.square().sum() / (len(particles) * BASE.dof)).sqrt()
    field = Scaled(0.3).double()
    loss = likelihood_loss(
        field, field.velocity_and_divergence, particles, BASE, draw_grid(20, 1.6, generator)
    )
    scale = field.scale.detach()
    exact = BASE.dof * scale - BASE.log_density(particles * torch.exp(-scale)).mean()
    torch.testing.assert_close(loss, exact, atol=1e-4, rtol=0)
    loss.backward()
    slope = BASE.dof * (1 - (width * torch.exp(-scale)) ** 2)
    torch.testing.assert_close(field.scale.grad, slope, atol=1e-3, rtol=1e-4)
    assert slope < -1
    best = Scaled(float(width.log())).double()
    likelihood_loss(
        best, best.velocity_and_divergence, particles, BASE, draw_grid(20, 1.6, generator)
    ).backward()
    assert abs(best.scale.grad) < 1e-3


def path_and_total_gradients(field, particles, target, n_steps, per_batch):
    """Gradients of -log q by its two estimators, batch by batch."""
    frozen = copy.deepcopy(field).requires_grad_(False)
    times, parameters = warped_grid(n_steps).flip(0), list(field.parameters())

    def gradient(loss):
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    path, total = [], []
    for batch in particles.split(per_batch):
        forces = target.energy_and_force(batch)[1]
        rates = frozen.velocity_and_divergence
        losses, slopes = path_slopes(frozen, rates, batch, forces, BASE, times)
        along = path_loss(field, batch, losses, slopes, times)
        through = likelihood_loss(field, field.velocity_and_divergence, batch, BASE, times)
        torch.testing.assert_close(along.detach(), through.detach(), atol=1e-4, rtol=1e-4)
        path.append(gradient(along))
        total.append(gradient(through))
    return torch.stack(path), torch.stack(total)


def test_gradient_along_paths_vanishes_for_each_particle_where_the_flow_is_exact(generator):
    width = 1.7
    field, target = Scaled(math.log(width)).double(), Harmonic(4, 1 / width**2)
    particles = width * BASE.sample(20, generator).double()
    path, total = path_and_total_gradients(field, particles, target, 12, 1)
    assert path.abs().max() < 1e-3
    assert total.std() > 1


def test_gradient_along_paths_has_the_mean_of_the_gradient_of_the_likelihood(generator):
    torch.manual_seed(0)
    field = LocalDensityField(n_hidden=4, n_channels=2, max_degree=1, n_radial=6).double()
    torch.nn.init.normal_(field.output, std=0.3)
    particles = BASE.sample(800, generator).double() / 1.5**0.5
    path, total = path_and_total_gradients(field, particles, Harmonic(4, 1.5), 5, 50)
    downhill = total[::2].mean(dim=0)
    slopes, differences = path[1::2] @ downhill, (path - total)[1::2] @ downhill
    noise = len(slopes) ** -0.5
    assert abs(differences.mean()) < 3.5 * noise * differences.std()
    assert slopes.mean() > 5 * noise * slopes.std()


def test_long_slopes_are_shortened_to_a_multiple_of_the_median():
    lengths = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    slopes = lengths[:, None, None] * torch.tensor([[[0.6, 0.8]]])
    found = shortened(slopes, longest=1.2).norm(dim=(1, 2))
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0, 3.6, 3.6]))
    assert torch.equal(shortened(torch.zeros(3, 2, 3)), torch.zeros(3, 2, 3))


def test_anchor_is_the_distance_between_two_fields(generator):
    """For 0.5 x against 0.2 x at |I_t|² = 1: the integral of 0.3² / (1-t) over the times."""
    n, smallest = 20_000, 0.01
    positions = torch.randn(n, 4, 3, generator=generator)
    positions /= positions.norm(dim=(1, 2), keepdim=True)
    times = draw_times(n, 1, smallest, generator)
    bridge = Bridge(times, positions, torch.zeros(n, 4, 3), torch.ones(n), torch.ones(n))
    distance = anchor_loss(Scaled(0.5), Scaled(0.2), bridge, BASE, smallest)
    exact = 0.3**2 * -math.log(smallest)
    assert distance.item() == pytest.approx(exact, rel=1e-3)
    distance.backward()


def test_likelihood_of_a_network_is_what_the_flow_says(generator):
    field = LocalDensityField(n_hidden=8, n_channels=2)
    torch.nn.init.normal_(field.output)
    particles = BASE.sample(5, generator)
    fine = integrate(field, particles, warped_grid(60).flip(0))
    expected = -(BASE.log_density(fine.positions) - fine.log_density_change).mean()
    loss = likelihood_loss(
        field, field.velocity_and_divergence, particles, BASE, draw_grid(40, 1.6, generator)
    )
    torch.testing.assert_close(loss, expected, atol=1e-2, rtol=0)
    loss.backward()
    gradients = [p.grad for p in field.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert field.output.grad.norm() > 0


@pytest.mark.parametrize("coupling", ["aligned", "independent"])
def test_bridge_pairs_fresh_base_draws_with_weighted_particles(coupling, generator):
    recipe = Recipe(batch_size=64, times_per_pair=4, coupling=coupling)
    sizes = torch.arange(1.0, 21)
    particles = sizes[:, None, None] * BASE.sample(1, generator)
    weights = sizes.double() ** 2
    bridge = draw_bridge(particles, weights, BASE, SPECIES, True, recipe, generator, 0)
    assert len(bridge.times) == 64
    assert torch.equal(bridge.factors, bridge.times)
    ends = bridge.positions + (1 - bridge.times)[:, None, None] * bridge.rates
    starts = bridge.positions - bridge.times[:, None, None] * bridge.rates
    ratio = ends.norm(dim=(1, 2)) / particles[0].norm()
    torch.testing.assert_close(bridge.weights, ratio.square(), rtol=1e-3, atol=1e-3)
    assert len(starts[:16].flatten(1)[:, 0].unique()) == 16
    torch.testing.assert_close(starts[:16], starts[16:32], rtol=1e-3, atol=1e-3)
    assert starts.mean(dim=1).abs().max() < 1e-4


def test_uniform_times_come_on_top_of_late_ones_and_count_fully(generator):
    recipe = Recipe(batch_size=4000, times_per_pair=4, smallest_noise=0.01)
    particles = BASE.sample(5, generator)
    ones = torch.ones(5)
    bridge = draw_bridge(particles, ones, BASE, SPECIES, True, recipe, generator, 3)
    uniform, late = bridge.times.split([3000, 1000])
    uniform = uniform.sort().values  # one in each of 3000 equal parts
    torch.testing.assert_close(uniform, (torch.arange(3000) + 0.5) / 3000, atol=2e-4, rtol=0)
    late = (1 - late).log() / math.log(0.01)
    torch.testing.assert_close(
        late.sort().values, (torch.arange(1000) + 0.5) / 1000, atol=6e-4, rtol=0
    )
    assert torch.equal(bridge.factors[:3000], torch.ones(3000))
    assert torch.equal(bridge.factors[3000:], bridge.times[3000:])


def test_matching_loss_weighs_the_squared_error_by_the_factors(generator):
    bridge = bridge_of(32, generator)
    expected = sum(
        t * ((0.3 * x - rate) ** 2).sum()
        for t, x, rate in zip(bridge.factors, bridge.positions, bridge.rates, strict=True)
    )
    torch.testing.assert_close(matching_loss(Scaled(0.3), bridge, BASE), expected / 32)


def test_unit_weights_turn_weighted_flow_matching_into_flow_matching(generator):
    rung, bridge = rung_of(Harmonic(4, 2.0)), bridge_of(32, generator)
    bridge = bridge._replace(weights=torch.ones(32))
    weighted = tilting_loss(Scaled(0.3), Scaled(0.0), bridge, BASE, rung, "wfm")
    torch.testing.assert_close(weighted, matching_loss(Scaled(0.3), bridge, BASE))


def test_unit_weights_leave_implicit_tilt_matching_at_the_old_field(generator):
    rung, bridge = rung_of(Harmonic(4, 2.0)), bridge_of(32, generator)
    bridge = bridge._replace(weights=torch.ones(32))
    assert tilting_loss(Scaled(0.3), Scaled(0.3), bridge, BASE, rung, "itm") < 1e-9
    assert tilting_loss(Scaled(0.4), Scaled(0.3), bridge, BASE, rung, "itm") > 0


def test_zero_rewards_leave_explicit_tilt_matching_at_the_old_field(generator):
    rung, bridge = rung_of(Harmonic(4, 2.0)), bridge_of(32, generator)
    baseline = float(rung.scaled_rewards.mean())
    bridge = bridge._replace(weights=torch.full((32,), baseline))
    loss = tilting_loss(Scaled(0.3), Scaled(0.3), bridge, BASE, rung, "etm")
    assert loss < 1e-9
    assert tilting_loss(Scaled(0.4), Scaled(0.3), bridge, BASE, rung, "etm") > 1e-3


@pytest.mark.parametrize("objective", ["itm", "wfm", "etm"])
def test_no_gradient_reaches_the_old_field(objective, generator):
    rung, bridge = rung_of(Harmonic(4, 2.0)), bridge_of(32, generator)
    new, old = Scaled(0.4), Scaled(0.3)
    tilting_loss(new, old, bridge, BASE, rung, objective).backward()
    assert new.scale.grad is not None
    assert old.scale.grad is None


def test_explicit_tilt_matching_is_refused_on_a_singular_core_and_says_why():
    with pytest.raises(ValueError, match=r"'etm'.*a = 0.*singular core.*'itm' or 'wfm'"):
        refuse_explicit_on_singular_core(rung_of(LennardJones(4)))


def test_explicit_tilt_matching_is_allowed_where_the_reward_has_a_mean():
    refuse_explicit_on_singular_core(rung_of(Harmonic(4, 5.0)))


def test_explicit_refusal_names_lost_rewards_too():
    class Broken(Harmonic):
        def energy(self, positions):
            energy = super().energy(positions)
            return torch.where(positions[:, 0, 0] > 2, torch.nan, energy)

    rung = rung_of(Broken(4, 2.0))
    assert (rung.weights == 0).any()
    with pytest.raises(ValueError, match="100 % of the total"):
        refuse_explicit_on_singular_core(rung)
