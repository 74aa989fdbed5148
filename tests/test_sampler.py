"""Samplers with exact fields: weights, log-densities, errors of integration; bad input."""

import math

import pytest
import torch
from wells import NETWORK, exact_sampler, rough_sampler, well

from boltztilt.networks.build import build_network
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.sampler import Sampler
from boltztilt.sampling.solvers import (
    DEFAULT_STEPS,
    MULTISTEP_STEPS,
    PACED_STEPS,
    STEPS_WITHOUT_DENSITY,
)
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.annealing import anneal


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_exact_field_has_equal_weights_and_the_exact_free_energy(solver, centered):
    sampler = exact_sampler(centered)
    ensemble = sampler.sample(400, solver=solver)
    assert ensemble.ess == pytest.approx(1, abs=1e-5)
    assert ensemble.log_z.value == pytest.approx(sampler.system.potential.log_z, abs=1e-3)
    assert ensemble.log_weights.std() < 1e-3
    dof = sampler.system.base.dof
    z_score = (ensemble.energies.mean() - dof / 2) / math.sqrt(dof / 2 / 400)
    assert abs(z_score) < 4


def test_wrong_width_costs_the_exact_amount_of_ess():
    """Samples too wide by sqrt(2) have ESS (3/4)^(dof/2), and log Z within its error."""
    sampler = exact_sampler()
    sampler.field.log_std += 0.5 * math.log(2)
    ensemble = sampler.sample(4000)
    log_z = ensemble.log_z
    assert abs(log_z.value - sampler.system.potential.log_z) < 4 * log_z.error
    assert ensemble.ess == pytest.approx(0.75 ** (sampler.system.base.dof / 2), rel=0.1)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_log_density_of_samples_is_found_again_backwards(solver):
    sampler = rough_sampler(well())
    ensemble = sampler.sample(4, n_steps=10, solver=solver)
    backwards = sampler.log_density(ensemble.positions, n_steps=10, solver=solver)
    torch.testing.assert_close(backwards, ensemble.log_density, atol=0.01, rtol=0)
    assert ensemble.log_density.std() > 0.1


def mapped_sampler() -> Sampler:
    """A small unrolled field off its start, whose Jacobian is known."""
    network = {"kind": "unrolled", "n_layers": 2, "n_hidden": 8, "n_channels": 3}
    return rough_sampler(System("well", Harmonic(n_atoms=4, stiffness=1.2)), network, 0.05)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"coupling": "independent"}, True),
        ({"coupling": "independent", "likelihood_steps": 5}, False),
        ({"coupling": "aligned"}, False),
        ({}, False),
    ],
)
def test_only_means_of_independent_pairs_start_at_rest(recipe, expected, monkeypatch):
    sampler = mapped_sampler()
    sampler.metadata["recipe"] |= recipe
    asked = []
    forward = sampler.field.forward
    monkeypatch.setattr(
        sampler.field, "forward", lambda t, x, step=None: asked.append(float(t[0])) or forward(t, x)
    )
    sampler.sample(1, n_steps=3, with_density=False)
    assert (0.0 not in asked) == expected


def test_fields_with_a_jacobian_are_sampled_in_many_steps_of_one_evaluation():
    sampler = mapped_sampler()
    ensemble = sampler.sample(4)
    expected = {"solver": "multistep", "n_steps": MULTISTEP_STEPS, "folded": 0}
    assert expected.items() <= ensemble.info.items()
    without = sampler.sample(4, with_density=False)
    torch.testing.assert_close(without.positions, ensemble.positions, rtol=0, atol=1e-5)
    assert "folded" not in without.info
    backwards = sampler.log_density(ensemble.positions)
    torch.testing.assert_close(backwards, ensemble.log_density, atol=0.01, rtol=0)
    assert ensemble.log_density.std() > 0.1


def test_a_map_has_no_integration_error():
    sampler = mapped_sampler()
    with pytest.raises(ValueError, match="those of solver 'rk4', not 'multistep'"):
        sampler.integration_error(sampler.sample(2))
    assert sampler.integration_error(sampler.sample(2, solver="rk4")) < 0.1


def test_weights_of_a_map_are_exact_however_few_its_steps():
    ensemble = mapped_sampler().sample(2000, seed=1, n_steps=2)
    followed = mapped_sampler().sample(300, seed=1, n_steps=12, solver="rk4")
    potential = ensemble.system.potential
    assert abs(ensemble.log_z.value - potential.log_z) < 4 * ensemble.log_z.error
    assert ensemble.log_z.error < 0.1
    moved = followed.positions - ensemble.positions[:300]
    assert moved.abs().max() > 0.1  # the flow itself is another one
    mean = ensemble.mean_energy(weighted=True)
    assert abs(mean.value - ensemble.system.base.dof / 2) < 4 * mean.error


def test_structures_without_an_origin_are_named(monkeypatch):
    monkeypatch.setattr("boltztilt.sampling.multistep.MOST_ITERATIONS", 1)
    sampler = mapped_sampler()
    positions = sampler.sample(3, n_steps=3).positions
    with pytest.warns(UserWarning, match="origin of 3 of 3 structures was not found.*'rk4'"):
        log_density = sampler.log_density(positions, n_steps=3)
    assert log_density.isnan().all()


def test_fields_without_a_jacobian_refuse_the_multistep_solver():
    with pytest.raises(ValueError, match=r"'multistep' needs the Jacobian.*use 'rk4'"):
        exact_sampler().sample(2, solver="multistep")


def test_no_steps_backwards_are_refused():
    with pytest.raises(ValueError, match="n_steps is 0"):
        rough_sampler(well()).log_density(torch.zeros(2, 4, 3), n_steps=0)


def test_log_density_is_exact_for_any_positions(generator):
    """log N(x; 0, 1/stiffness) on the subspace, wherever the centre of the given positions is."""
    sampler = exact_sampler()
    positions = torch.randn(5, 4, 3, generator=generator)
    energies = sampler.system.potential.energy(positions).double()
    exact = -energies - sampler.system.potential.log_z
    found = sampler.log_density(positions + 3.0)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-5)


def test_batches_change_nothing_but_rounding():
    sampler, seen = rough_sampler(well()), []
    whole = sampler.sample(23, seed=5, n_steps=2)
    parts = sampler.sample(
        23, seed=5, n_steps=2, batch_size=7, progress=lambda *done: seen.append(done)
    )
    torch.testing.assert_close(parts.positions, whole.positions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.log_density, whole.log_density, atol=1e-4, rtol=1e-5)
    assert seen == [(7, 23), (14, 23), (21, 23), (23, 23)]


def test_jacobians_are_made_in_smaller_batches():
    """Their memory is several times that of velocities: batches of a divisor of n, in the cache."""
    system = System("cluster", LennardJones(13))
    network = {"kind": "unrolled", "n_layers": 2, "n_hidden": 4, "n_channels": 2, "n_radial": 8}
    sampler = Sampler(system, build_network(network, system), {})
    first = []
    for with_density in (True, False):
        seen = []
        settings = {"n_steps": 1, "with_density": with_density}
        sampler.sample(100, progress=lambda *done, seen=seen: seen.append(done), **settings)
        first.append(seen[0])
    assert first == [(20, 100), (100, 100)]


def test_seed_decides_on_the_samples():
    sampler = rough_sampler(well())
    first = sampler.sample(5, seed=1, n_steps=2)
    again, other = sampler.sample(5, seed=1, n_steps=2), sampler.sample(5, seed=2, n_steps=2)
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.log_density, again.log_density)
    assert (first.positions - other.positions).abs().min() > 0


def test_sampling_without_density_gives_the_same_structures_without_weights():
    sampler = rough_sampler(well())
    plain = sampler.sample(5, n_steps=2, with_density=False)
    assert torch.equal(plain.positions, sampler.sample(5, n_steps=2).positions)
    assert plain.log_density is None
    defaults = [sampler.sample(2, with_density=with_density) for with_density in (True, False)]
    expected = [DEFAULT_STEPS, STEPS_WITHOUT_DENSITY]
    assert [ensemble.info["n_steps"] for ensemble in defaults] == expected
    paced = Sampler(sampler.system, sampler.field, {"pace": [0.0, 0.5, 1.0]})
    assert paced.sample(2).info["n_steps"] == PACED_STEPS


def test_ensemble_tells_how_it_was_made():
    info = exact_sampler().sample(3, seed=9, n_steps=4).info
    expected = {"seed": 9, "n_steps": 4, "solver": "rk4", "n_energy": 3, "n_energy_training": 17}
    assert expected.items() <= info.items()
    assert info["wall_time"] > 0


def test_integration_error_falls_with_the_fourth_power_of_the_step():
    sampler = exact_sampler()
    sampler.field.log_std -= 1
    errors = [sampler.integration_error(sampler.sample(50, n_steps=k)) for k in (12, 24)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.4)
    assert errors[0] > 1e-5
    assert sampler.integration_error(sampler.sample(50)) < 1e-4


def test_integration_error_is_the_change_on_halving_the_step():
    sampler = rough_sampler(well())
    coarse, fine = sampler.sample(10, n_steps=2), sampler.sample(10, n_steps=4)
    change = (fine.log_weights - coarse.log_weights).square()
    expected = (coarse.log_weights.softmax(0) * change).sum().sqrt().item()
    assert sampler.integration_error(coarse) == pytest.approx(expected, rel=1e-2)


def test_integration_error_needs_one_seed_and_the_solver():
    sampler = rough_sampler(well())
    with pytest.raises(ValueError, match="those of solver 'rk4', not 'annealed"):
        sampler.integration_error(anneal(sampler.system, 16, n_per_group=4, n_steps=1))
    joined = Ensemble.join([sampler.sample(20, seed=seed) for seed in (1, 2)])
    with pytest.raises(ValueError, match=r"this ensemble tells \[1, 2\]"):
        sampler.integration_error(joined)


@pytest.mark.parametrize("n", [0, -5])
def test_samples_that_are_none_are_refused(n):
    with pytest.raises(ValueError, match="give at least 1"):
        exact_sampler().sample(n)


def test_unknown_solver_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'euler' is unknown; choose one of multistep, rk4, dopri5"
    ):
        exact_sampler().sample(2, solver="euler")


def test_flow_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        exact_sampler().sample(2, n_steps=0)


def test_weights_carry_over_to_another_number_of_atoms():
    """Densities stay exact: the inverse flow finds them again, with and without a cutoff."""
    small = Sampler.load("lj13")
    small.compile = False
    small.metadata["pace"] = [0.0, 0.6, 1.0]
    large = small.transferred(System(potential=LennardJones(19), name="lj19"), cutoff=30.0)
    ensemble = large.sample(4, seed=1, n_steps=40)
    assert ensemble.positions.shape == (4, 19, 3)
    again = small.transferred(large.system).log_density(ensemble.positions, n_steps=40)
    torch.testing.assert_close(again, ensemble.log_density, atol=0.3, rtol=0)
    assert large.metadata["transferred_from"] == "lj13"
    assert "pace" not in large.metadata  # measured for the other system
    assert large.compile is False


def test_weights_that_do_not_fit_are_refused():
    system = System(potential=LennardJones(19), name="lj19")
    with pytest.raises(ValueError, match="'lj13' do not fit 'lj19'"):
        Sampler.load("lj13").transferred(system, n_hidden=32)


def test_shipped_droplet_is_dense_and_its_density_exact():
    """Raw LJ-55 structures: bound, and the map followed back gives a density again."""
    sampler = Sampler.load("lj55")
    ensemble = sampler.sample(2, seed=2)
    assert ensemble.energies.median() < -200
    again = sampler.log_density(ensemble.positions[:1])
    torch.testing.assert_close(again, ensemble.log_density[:1], atol=1e-3, rtol=0)


def dipeptide_sampler():
    system = load_system("aldp-vacuum")
    network = {**NETWORK, "n_hidden": 4, "n_channels": 2, "core": 0.15, "spread": 0.15}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = build_network(network, system)
    return Sampler(system, field, {"system": system.name, "recipe": {"network": network}})


def test_mirror_images_of_a_molecule_are_not_drawn_and_have_no_density():
    """A fresh field carries the base into itself: twice its density on one hand, none beyond."""
    sampler = dipeptide_sampler()
    drawn = sampler.sample(20, seed=1, n_steps=10)
    assert not sampler.system.molecule.inverted_centres(drawn.positions).any()
    assert 0 < drawn.info["mirrored"].value < 1
    one_hand = sampler.log_density(drawn.positions, n_steps=10)
    expected = sampler.system.base.log_density(drawn.positions) + math.log(2)
    torch.testing.assert_close(one_hand, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.log_density, expected, rtol=0, atol=0.02)
    assert (sampler.log_density(-drawn.positions, n_steps=10) == -math.inf).all()


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 4, 2)])
def test_structures_of_another_shape_have_no_density(shape):
    sampler = rough_sampler(well())
    with pytest.raises(ValueError, match=r"needs \(batch, 4, 3\)"):
        sampler.log_density(torch.randn(shape))


@pytest.mark.parametrize("size", [0, -3])
def test_batches_of_nothing_are_refused(size):
    sampler = rough_sampler(well())
    with pytest.raises(ValueError, match=f"batch_size is {size}"):
        sampler.sample(4, batch_size=size)
    with pytest.raises(ValueError, match=f"batch_size is {size}"):
        sampler.sample(4).refine(3, batch_size=size)


def test_no_structures_have_no_densities():
    sampler = mapped_sampler()
    assert sampler.log_density(torch.zeros(0, 4, 3), n_steps=4, solver="rk4").shape == (0,)
