"""What is told of weights and groups that are too few or too uneven."""

from dataclasses import replace

import torch
from springs import importance_sample

from boltztilt.sampling.ensemble import Ensemble


def test_cautions_name_weights_and_groups_that_rest_on_too_little():
    ensemble = importance_sample(1000, 0)
    assert ensemble.cautions == []
    assert "cautions" not in ensemble.report()
    one = replace(ensemble, log_density=ensemble.log_density.clone())
    one.log_density[3] -= 20.0
    (caution,) = one.cautions
    assert caution.startswith("the weights rest on about 1.0 of 1000 structures")
    assert one.report()["cautions"] == [caution]
    grouped = replace(ensemble, groups=torch.arange(1000) // 250)
    (caution,) = grouped.cautions
    assert caution.startswith("errors are those over 4 groups")
    assert importance_sample(3, 0, with_density=False).cautions == []


def test_a_heavy_tail_of_the_weights_is_a_caution(generator):
    ensemble = importance_sample(1000, 0)
    assert ensemble.report()["pareto_k"] < 0.7
    log_weights = -1.0 * torch.rand(1000, generator=generator, dtype=torch.float64).log()
    heavy = replace(ensemble, log_density=-ensemble.energies - log_weights)
    assert heavy.n_effective > 10
    (caution,) = heavy.cautions
    assert caution.startswith("the weights have a heavy tail (Pareto k = ")
    assert "pareto_k" not in replace(heavy, groups=torch.arange(1000) // 10).report()


def test_other_stereoisomers_that_the_energy_allows_are_a_caution(aldp):
    """As with force fields that tell hands apart by a few kT: structures are not reflected."""
    frames = aldp.molecule.structure.repeat(10, 1, 1)
    frames[3] *= -1
    ensemble = Ensemble(frames, torch.zeros(10), None, aldp)
    (caution,) = ensemble.cautions
    assert caution.startswith("10.0% of the ensemble are other stereoisomers")
    assert replace(ensemble, positions=frames[[0] * 10]).cautions == []
    light = torch.zeros(10)
    light[3] = 20.0
    weighted = replace(ensemble, log_density=light)
    assert not [words for words in weighted.cautions if "stereoisomers" in words]
