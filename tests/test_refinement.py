"""The stages of a refinement."""

import math

import pytest
import torch

from boltztilt.geometry import remove_mean
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.sampling.refinement import refined, refinement
from boltztilt.systems.system import System, load_system
from boltztilt.testing import jittered_lattice


@pytest.mark.parametrize("n_steps", [1, 2, 9, 20, 100, 200])
def test_refinement_takes_the_steps_it_is_given(n_steps):
    for stages in (refinement(n_steps), refinement(n_steps, 55)):
        assert sum(stage.n_trajectories * stage.n_leapfrog for stage in stages) == n_steps


def test_refinement_is_longer_where_bonds_hold_the_base_together(aldp, generator):
    """Of 500 steps a tenth instead of a third are in short trajectories, the others in longer."""
    ensemble = Ensemble(aldp.base.sample(2, generator), torch.zeros(2), None, aldp)
    assert ensemble.refine(60).info["n_energy"] == 2 * (60 + 2)  # 2 of 3 and one of 54: two stages
    assert [stage.n_leapfrog for stage in refinement(500, 55)] == [3, 3, 3, 55, 5]
    short = [(10, 3, 1.0), (3, 3, 1 / 5), (3, 3, 1.0)]
    assert refinement(500, 55, 1 / 10) == [*short, (8, 55, 1.0), (1, 12, 1.0)]
    assert [stage.n_leapfrog for stage in refinement(500)] == [3, 3, 3, 17, 12]


def test_atoms_too_near_for_the_step_of_the_others_come_apart(generator):
    """An atom wedged between two, in some of the droplets; the step suits the others."""
    system = load_system("lj55")
    lattice = remove_mean(jittered_lattice(55, 3, generator, n=300).float())
    positions = refined(system, lattice, 400, seed=1).positions
    for droplet in positions[:80]:
        centre, farthest = droplet.norm(dim=-1).argmin(), droplet.norm(dim=-1).argmax()
        neighbour = (droplet - droplet[centre]).norm(dim=-1).argsort()[1]
        droplet[farthest] = (droplet[centre] + droplet[neighbour]) / 2
    assert system.potential.energy(positions)[:80].min() > 1000
    for seed in (0, 1):
        assert refined(system, positions, 200, seed).energies.max() < -200


def test_refinement_without_steps_is_refused():
    with pytest.raises(ValueError, match="n_steps is 0"):
        refinement(0)


def test_first_momenta_do_not_repeat_the_draws_of_the_same_seed():
    """In equilibrium the average of x_start x_end decays; momenta like x_start would add to it."""
    well = System("well", Harmonic(40, stiffness=1.0))
    start = well.base.sample(1000, torch.Generator().manual_seed(3))
    ensemble = Ensemble(start, well.potential.energy(start), None, well)
    (same, other) = (ensemble.refine(3, seed=seed, step_size=0.3) for seed in (3, 4))
    # the shift by which a stream that is read again meets itself is not known: try several
    for shift in range(8):
        ends = (each.positions.flatten()[shift:] for each in (same, other))
        begun = start.flatten()[: start.numel() - shift]
        here, there = (float((begun * end).mean()) for end in ends)
        assert abs(here - there) < 5 * math.sqrt(2 / start.numel())


def test_repeated_refinements_keep_the_law():
    """With the same random numbers each time <U> would be 11.8 in place of 4.5."""
    well = System("well", Harmonic(4, stiffness=1.0))
    start = well.base.sample(2000, torch.Generator().manual_seed(3))
    ensemble = Ensemble(start, well.potential.energy(start), None, well, {"seed": 3})
    for _ in range(12):
        ensemble = ensemble.refine(4, step_size=0.3)
    energy = ensemble.mean_energy(weighted=False)
    assert abs(energy.value - 4.5) < 4 * energy.error
    assert ensemble.info["refine_steps"] == 48


def test_samples_of_different_seeds_are_refined_independently():
    well = System("well", Harmonic(4, stiffness=1.0))
    parts = []
    for seed in (1, 2):
        start = well.base.sample(1000, torch.Generator().manual_seed(seed))
        part = Ensemble(start, well.potential.energy(start), None, well, {"seed": seed})
        parts.append(part.refine(60, step_size=0.3))
    first, second = (part.positions.flatten() for part in parts)
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(len(first))
    both = Ensemble.join(parts)
    assert both.refine(2).info["refine_seed"] == both.refine(2).info["refine_seed"]
    assert both.refine(2).info["refine_seed"] not in (0, 1, 2)
