"""Recipes: one clear error for every bad setting, and TOML that gives the same recipe back."""

import dataclasses

import numpy as np
import pytest

from boltztilt.tilt.recipe import Recipe, load_recipe

BAD_VALUES = {
    "objective": "ITM",
    "coupling": "kabsch",
    "recentring": "nuts",
    "optimiser": "sgd",
    "precision": "float16",
    "cess": 1.0,
    "smallest_noise": 0.0,
    "matching_fraction": 1.5,
    "decay_from": -0.1,
    "average_decay": 1.0,
    "n_particles": 0,
    "rungs_per_rollout": 0,
    "rollout_steps": 0,
    "steps_per_rung": -1,
    "start_from": "lj13",
    "first_rung_factor": 0.0,
    "polish_particles": 0,
    "polish_refresh": 0,
    "polish_rollout_every": -1,
    "batch_size": 0,
    "times_per_pair": -4,
    "uniform_times": -1,
    "learning_rate": float("nan"),
    "gradient_clip": 0.0,
    "recentring_steps": -1,
    "polish_steps": -1,
    "polish_chain_steps": -1,
    "likelihood_steps": -1,
    "likelihood_batch": 0,
    "likelihood_solver_steps": 0,
    "likelihood_grid_power": 0.0,
    "likelihood_rate": 0.0,
    "likelihood_anchor": -1.0,
    "pace_structures": -1,
    "warmup_steps": -1,
    "checkpoint_minutes": -1.0,
}
WRONG_TYPES = {
    "cess": "0.8",
    "n_particles": 10.5,
    "batch_size": True,
    "compile": 1,
    "objective": 3,
    "network": "egnn",
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_value_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"recipe: {name} = ") as caught:
        Recipe.from_mapping({name: BAD_VALUES[name]})
    assert "\n" not in str(caught.value)
    assert str(BAD_VALUES[name]) in str(caught.value)


def test_exact_weights_need_a_field_at_every_rung():
    start = {"start_from": "lj13", "steps_per_rung": 0, "polish_rollout_every": 0}
    with pytest.raises(ValueError, match="steps_per_rung = 0 learns none"):
        Recipe(exact_weights=True, objective="wfm", **start)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_type_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"recipe: {name} = .* must be"):
        Recipe.from_mapping({name: WRONG_TYPES[name]})


def test_every_numeric_setting_has_a_bad_value():
    free = {"network", "exact_weights", "likelihood_forces", "compile"}
    assert {entry.name for entry in dataclasses.fields(Recipe)} - free == set(BAD_VALUES)


@pytest.mark.parametrize(("given", "meant"), [("ces", "cess"), ("stepsperrung", "steps_per_rung")])
def test_unknown_name_suggests_the_nearest(given, meant):
    with pytest.raises(ValueError, match=f"unknown setting '{given}'. Did you mean '{meant}'"):
        Recipe.from_mapping({given: 1})


def test_unknown_name_without_a_near_one_lists_what_is_known():
    with pytest.raises(ValueError, match=r"unknown setting 'zzz'\. Known: .*cess"):
        Recipe.from_mapping({"zzz": 1})


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="batch_size = 10 is not a multiple of times_per_pair = 4"):
        Recipe(batch_size=10)
    with pytest.raises(ValueError, match="uniform_times = 4 leaves none of times_per_pair = 4"):
        Recipe(uniform_times=4)
    with pytest.raises(ValueError, match=r"exact_weights.*'wfm'.*'itm'"):
        Recipe(exact_weights=True)
    with pytest.raises(ValueError, match="fresh rollouts at every rung"):
        Recipe(exact_weights=True, objective="wfm", rungs_per_rollout=2)
    assert Recipe(exact_weights=True, objective="wfm").exact_weights


def test_whole_numbers_stand_for_real_ones():
    assert Recipe.from_mapping({"learning_rate": 1}).learning_rate == 1.0


def test_recipe_survives_its_toml_file(tmp_path):
    recipe = Recipe(
        network={"kind": "perceptron", "n_hidden": 32, "layers": [1, 2], "gain": 0.5, "on": True},
        objective="wfm",
        cess=0.9,
        learning_rate=1e-5,
        compile=True,
        exact_weights=True,
    )
    recipe.save(tmp_path / "recipe.toml", 7, 'odd "name" \\ of a system')
    loaded, seed, system = load_recipe(tmp_path / "recipe.toml")
    assert loaded == recipe
    assert (seed, system) == (7, 'odd "name" \\ of a system')
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


def test_settings_of_the_network_are_written_as_they_are_read(tmp_path):
    given = {"network": {"cutoff": None, "core": np.float64(0.5), "n_hidden": np.int64(8)}}
    Recipe.from_mapping(given).save(tmp_path / "recipe.toml", 0, "mine")
    loaded = load_recipe(tmp_path / "recipe.toml")[0]
    assert loaded.network == {"core": 0.5, "n_hidden": 8}
    with pytest.raises(TypeError, match=r"network.core = .* must be a number"):
        Recipe.from_mapping({"network": {"core": {"width": 1}}})


@pytest.mark.parametrize("text", ["seed = 0\n", "system = ", "\x00", 'system = "lj13"\n'])
def test_foreign_recipe_files_are_refused(text, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe.toml is not the recipe of a boltztilt run"):
        load_recipe(path)
