"""Loading systems by name, by file and from a plain function."""

import pytest
import torch

from boltztilt.energy import CallablePotential
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.potentials.lennard_jones import LennardJones
from boltztilt.sampling.ensemble import Ensemble
from boltztilt.systems.system import System, available_systems, load_system
from boltztilt.testing import jittered_lattice


def spring(positions):
    return (positions - positions.mean(1, keepdim=True)).square().sum((1, 2))


def write_system(folder, text: str):
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", available_systems())
def test_every_shipped_system_loads_and_says_its_convention(name):
    system = load_system(name)
    assert system.name == name
    assert system.title
    if system.molecule is None:
        assert system.convention.startswith("U = ")
    else:
        assert system.convention.endswith("no cutoff, 300 K, kT, nm")


def test_lj13_is_the_dem_cluster_on_a_unit_base(generator):
    system = load_system("lj13")
    positions = jittered_lattice(13, 3, generator)
    expected = LennardJones(13, "dem").energy(positions)
    torch.testing.assert_close(system.potential.energy(positions), expected)
    assert (system.base.std, system.base.dof, system.base.centered) == (1.0, 36, True)
    assert system.species == (0,) * 13


def test_dw4_has_four_particles_in_the_plane():
    system = load_system("dw4")
    assert (system.n_atoms, system.n_dims, system.base.dof) == (4, 2, 6)


def test_unknown_name_suggests_the_nearest():
    known = "aldp, aldp-vacuum, dw4, lj13"
    with pytest.raises(ValueError, match=rf"Did you mean 'lj13'.*Available: {known}"):
        load_system("lj31")


def test_name_like_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"unknown system 'zzzzz'\. Available"):
        load_system("zzzzz")


def test_file_of_ones_own_is_a_system(tmp_path):
    path = write_system(
        tmp_path,
        'title = "T"\nbase_std = 2.0\nspecies = [0, 0, 1]\n'
        '[potential]\nkind = "harmonic"\nn_atoms = 3\nstiffness = 5.0\n'
        '[export]\nelement = "Ne"\n[reference_energy]\nmean = 3.0\nerror = 0.1\nsd = 1.7\n'
        "[recipe]\nn_steps = 7\n[recipe.network]\nwidth = 8\n",
    )
    for system in (load_system(path), load_system(str(path))):
        assert (system.name, system.title, system.element) == ("mine", "T", "Ne")
        assert system.potential.stiffness == 5.0
        assert system.base.std == 2.0
        assert system.species == (0, 0, 1)
        assert system.reference_energy.sd == 1.7
        assert system.recipe == {"n_steps": 7, "network": {"width": 8}}


def test_weights_are_found_beside_the_file(tmp_path):
    path = write_system(tmp_path, 'name = "other"\n[potential]\nkind = "harmonic"\nn_atoms = 3\n')
    assert load_system(path).weights_path() is None
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(b"")
    assert load_system(path).weights_path() == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not a valid TOML"),
        ('[potential]\nkind = "harmonik"\n', "'harmonik' is unknown: choose one of double_well"),
        ("", "kind = None is unknown"),
        ('[export]\nnm_per_length = "a"\n', r"\[export\] nm_per_length = 'a': expected a length"),
        ("[export]\nnm_per_lenth = 1.0\n", "mean 'nm_per_length'"),
        ("[reference_energy]\nmean = 1.0\n", r"\[reference_energy\] does not tell error, sd"),
        ('[reference_energy]\nmean = "a"\n', "mean = 'a': expected a number of kT"),
        ('[potential]\nkind = "lennard_jones"\n', "'lennard_jones' alone: missing (1|a) required"),
        ("[export]\nelement = 18\n", r"\[export\] element = 18: expected the symbol"),
        (
            '[potential]\nkind = "harmonic"\nn_atoms = "3"\n',
            r"\[potential\] n_atoms = '3': expected",
        ),
        ('[potential]\nkind = "harmonic"\nn_atoms = 0\n', "n_atoms = 0: expected a whole number"),
        ('[potential]\nkind = "harmonic"\nn_atoms = 3\nn_dims = 2.0\n', "n_dims = 2.0: expected"),
        ('[potential]\nkind = "harmonic"\nn_atoms = 3\nstiffness = "a"\n', "stiffness = 'a': "),
        ('[potential]\nkind = "harmonic"\nn_atoms = 3\nstiffnes = 1.0\n', "stiffnes"),
        ('colour = 1\n[potential]\nkind = "harmonic"\nn_atoms = 3\n', "colour"),
        (
            'base_std = -1.0\n[potential]\nkind = "harmonic"\nn_atoms = 3\n',
            "base_std = -1.0 must be pos",
        ),
        ('base_std = inf\n[potential]\nkind = "harmonic"\nn_atoms = 3\n', "base_std = inf must be"),
        ('bse_std = 1.0\n[potential]\nkind = "harmonic"\nn_atoms = 3\n', "mean 'base_std'"),
        ('species = ["C", "H"]\n[potential]\nkind = "harmonic"\nn_atoms = 2\n', "whole number"),
        ('molecule = "my.pdb"\n', r"molecule = 'my.pdb': expected a table, \[molecule\]"),
        ('recipe = 3\n[potential]\nkind = "harmonic"\nn_atoms = 3\n', "recipe = 3: expected a t"),
        ('species = [0]\n[potential]\nkind = "harmonic"\nn_atoms = 3\n', "1 species.*3 atoms"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path, text, message):
    path = write_system(tmp_path, text)
    with pytest.raises(ValueError, match=rf"(?s)mine\.toml.*{message}"):
        load_system(path)


def test_files_that_describe_a_system_are_never_replaced(tmp_path):
    """Neither they nor copies of them, as a run folder keeps."""
    path = write_system(tmp_path, '[potential]\nkind = "harmonic"\nn_atoms = 3\nstiffness = 1.0\n')
    system = load_system(path)
    (tmp_path / "copy.pdb").write_bytes(path.read_bytes())
    (tmp_path / "other.pdb").write_text("something else")
    system.refuse_own_files([tmp_path / "other.pdb", tmp_path / "missing.pdb"])
    for own in (path, tmp_path / "copy.pdb"):
        with pytest.raises(FileExistsError, match=rf"never replaced.*{own.stem}_samples"):
            system.refuse_own_files([own])
    Ensemble(torch.zeros(1, 3, 3), torch.zeros(1), None, system).save(tmp_path / "other.npz")
    with pytest.raises(FileExistsError, match="never replaced"):
        Ensemble(torch.zeros(1, 3, 3), torch.zeros(1), None, system).save(
            tmp_path / "copy.dcd", overwrite=True
        )
    assert not (tmp_path / "copy.npz").exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        load_system(tmp_path / "nowhere.toml")


def test_system_is_its_own_load():
    system = System(name="spring", potential=Harmonic(3))
    assert load_system(system) is system


def test_plain_function_becomes_a_system():
    system = System(name="spring", potential=spring, n_atoms=5)
    assert isinstance(system.potential, CallablePotential)
    assert (system.n_atoms, system.n_dims, system.base.dof) == (5, 3, 12)


def test_plain_function_without_its_size_is_refused():
    with pytest.raises(ValueError, match="needs n_atoms"):
        System(name="spring", potential=spring)


def test_size_that_contradicts_the_potential_is_refused():
    with pytest.raises(ValueError, match="disagree with the potential's 3 atoms"):
        System(name="spring", potential=Harmonic(3), n_atoms=4)


def test_something_that_is_no_potential_is_refused():
    with pytest.raises(TypeError, match="got int"):
        System(name="three", potential=3, n_atoms=4)
