"""Networks from the [network] table of a recipe, and the combinations that are refused."""

import pytest
import torch

from boltztilt.networks.build import build_network, with_defaults
from boltztilt.networks.egnn import EGNN
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.perceptron import Perceptron
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.potentials.harmonic import Harmonic
from boltztilt.systems.system import System


def system(centered: bool = True, species: tuple[int, ...] = ()) -> System:
    return System("wells", Harmonic(n_atoms=3, centered=centered), species=species)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("local_density", LocalDensityField),
        ("unrolled", UnrolledField),
        ("egnn", EGNN),
        ("perceptron", Perceptron),
    ],
)
def test_every_kind_is_built_with_its_settings(kind, expected):
    network = build_network({"kind": kind, "n_hidden": 10}, system())
    assert isinstance(network, expected)
    assert any(10 in parameter.shape for parameter in network.parameters())


def test_the_local_density_field_is_the_default():
    assert isinstance(build_network({}, system()), LocalDensityField)


def test_settings_left_open_are_told_with_those_of_the_layers():
    known = with_defaults({"kind": "unrolled", "n_hidden": 8})
    assert (known["n_layers"], known["n_hidden"], known["reach"]) == (3, 8, 6.0)
    assert "n_layers" not in with_defaults({})


def test_settings_of_the_caller_are_left_alone():
    settings = {"kind": "perceptron", "n_hidden": 4}
    build_network(settings, system())
    assert settings == {"kind": "perceptron", "n_hidden": 4}


def test_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'transformer' is unknown.*local_density, unrolled, egnn"
    ):
        build_network({"kind": "transformer"}, system())


def test_unknown_setting_is_refused_by_name():
    with pytest.raises(ValueError, match="n_heads"):
        build_network({"kind": "egnn", "n_heads": 4}, system())
    with pytest.raises(ValueError, match=r"unknown setting 'n_hiden' .* mean 'n_hidden'\? Known: "):
        build_network({"n_hiden": 4}, system())


@pytest.mark.parametrize("kind", ["local_density", "unrolled", "egnn"])
def test_translation_invariant_networks_are_refused_in_an_external_field(kind):
    with pytest.raises(ValueError, match="does not change under translation"):
        build_network({"kind": kind}, system(centered=False))
    assert isinstance(build_network({"kind": "perceptron"}, system(centered=False)), Perceptron)


def test_networks_that_tell_hands_apart_are_refused_where_both_are_alike(aldp):
    with pytest.raises(ValueError, match="both hands of 'aldp' have the same energy"):
        build_network({"kind": "perceptron"}, aldp)


def test_networks_of_atoms_in_space_are_refused_in_four_dimensions():
    flat = System("four", Harmonic(3, 1.0, 4))
    with pytest.raises(ValueError, match="1 to 3 dimensions, 'four' has 4"):
        build_network({"kind": "local_density"}, flat)
    assert isinstance(build_network({"kind": "egnn"}, flat), EGNN)


def test_only_networks_for_different_atoms_tell_them_apart():
    mixed = system(species=(0, 1, 0))
    field = build_network({"kind": "local_density", "n_hidden": 8, "n_channels": 2}, mixed)
    assert field.kinds.of_pair.tolist() == [1, 0, 1]
    assert build_network({"kind": "local_density"}, system()).kinds is None
    assert isinstance(build_network({"kind": "egnn"}, mixed), EGNN)


def test_networks_are_in_single_precision_whatever_the_default():
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        network = build_network({"n_hidden": 4}, system())
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(usual)
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    times, positions = torch.tensor([0.3]), torch.randn(1, 3, 3)
    expected = build_network({"n_hidden": 4}, system())
    expected.load_state_dict(network.state_dict())
    torch.testing.assert_close(
        network.velocity_and_divergence(times, positions),
        expected.velocity_and_divergence(times, positions),
    )
