"""Symmetries of the local-density field and its divergence against the full Jacobian."""

import pytest
import torch

from boltztilt.geometry import random_rotation
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.sampling.flow import resting_rate
from boltztilt.testing import jittered_lattice

EXACT = 1e-9
TIMES = torch.tensor([0.0, 0.3, 0.8, 0.97], dtype=torch.float64)


def local_density(max_degree: int = 2, **settings) -> LocalDensityField:
    """A small field in float64, moved off its start: a fresh one has no learned part."""
    with torch.random.fork_rng():
        torch.manual_seed(max_degree)
        field = LocalDensityField(n_hidden=12, n_channels=4, max_degree=max_degree, **settings)
        for parameter in field.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


def lattice(n_atoms: int, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    """Crowded clusters, one for each of the times: neighbours feel each other."""
    return 0.6 * jittered_lattice(n_atoms, n_dims, generator, n=len(TIMES))


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("max_degree", [1, 2, 3])
def test_velocity_turns_with_the_atoms(max_degree, n_dims, reflect, generator):
    field, positions = local_density(max_degree), lattice(6, n_dims, generator)
    rotation = random_rotation(n_dims, generator, reflect)
    turned = field(TIMES, positions @ rotation.T)
    expected = field(TIMES, positions) @ rotation.T
    torch.testing.assert_close(turned, expected, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_velocity_permutes_with_the_atoms(n_dims, generator):
    field, positions = local_density(3), lattice(6, n_dims, generator)
    order = [3, 0, 5, 4, 1, 2]
    permuted = field(TIMES, positions[:, order])
    torch.testing.assert_close(permuted, field(TIMES, positions)[:, order], atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_velocity_ignores_translation_and_keeps_the_centre(n_dims, generator):
    field, positions = local_density(3), lattice(6, n_dims, generator)
    velocity = field(TIMES, positions)
    torch.testing.assert_close(field(TIMES, positions + 1.7), velocity, atol=EXACT, rtol=EXACT)
    assert velocity.mean(1).abs().max() < 1e-14


def test_divergence_shares_the_symmetries_of_the_field(generator):
    field, positions = local_density(3), lattice(6, 3, generator)
    moved = positions[:, [3, 0, 5, 4, 1, 2]] @ random_rotation(3, generator, True).T + 0.4
    divergence = field.velocity_and_divergence(TIMES, positions)[1]
    torch.testing.assert_close(field.velocity_and_divergence(TIMES, moved)[1], divergence)


def test_planar_atoms_move_as_they_would_in_space(generator):
    field, planar = local_density(3), lattice(6, 2, generator)
    in_space = field(TIMES, torch.nn.functional.pad(planar, (0, 1)))
    torch.testing.assert_close(in_space[..., :2], field(TIMES, planar))
    assert in_space[..., 2].abs().max() < 1e-14


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("max_degree", [1, 2, 3])
def test_divergence_equals_the_trace_of_the_jacobian(max_degree, n_dims, jacobian_trace, generator):
    """One network, clusters of several sizes: its weights do not depend on the number of atoms."""
    field = local_density(max_degree)
    for n_atoms in (2, 4, 7):
        positions = lattice(n_atoms, n_dims, generator)
        divergence = field.velocity_and_divergence(TIMES, positions)[1]
        expected = jacobian_trace(field, TIMES, positions)
        torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)
        assert divergence.abs().max() > 1


def test_learned_part_contributes_to_the_divergence(generator):
    """Beyond the linear skip, whose divergence is the number of degrees of freedom."""
    field, positions = local_density(), lattice(9, 3, generator)
    divergence = field.velocity_and_divergence(TIMES, positions)[1]
    skip = resting_rate(TIMES)
    assert (divergence - 24 * skip).abs().min() > 1.0


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
def test_divergence_of_atoms_that_almost_coincide(gap, jacobian_trace, generator):
    field, positions = local_density(3), lattice(5, 3, generator)
    positions[:, 1] = positions[:, 0] + gap * torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    divergence = field.velocity_and_divergence(TIMES, positions)[1]
    expected = jacobian_trace(field, TIMES, positions)
    torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)


def test_divergence_is_finite_where_atoms_coincide(generator):
    field, positions = local_density(), lattice(5, 3, generator)
    positions[:, 1] = positions[:, 0]
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    assert torch.isfinite(velocity).all()
    assert torch.isfinite(divergence).all()


def test_velocity_is_continuous_where_atoms_meet(generator):
    """Atom 1 passes through atom 0: the velocity on both sides differs by the order of the gap."""
    field, positions = local_density(3), lattice(5, 3, generator)
    direction = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    jumps = []
    for gap in (1e-3, 1e-5):
        before, after = positions.clone(), positions.clone()
        before[:, 1] = positions[:, 0] - gap * direction
        after[:, 1] = positions[:, 0] + gap * direction
        jumps.append((field(TIMES, after) - field(TIMES, before)).abs().max())
    assert jumps[0] < 0.2
    assert jumps[1] < 0.02 * jumps[0]


def test_velocity_beside_the_divergence_is_that_of_forward(dtype, generator):
    field, times = local_density().to(dtype), TIMES.to(dtype)
    positions = lattice(7, 3, generator).to(dtype)
    velocity, _ = field.velocity_and_divergence(times, positions)
    assert torch.equal(velocity, field(times, positions))


def test_single_precision_agrees_with_double(generator):
    field, positions = local_density(), lattice(9, 3, generator)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    single = field.float().velocity_and_divergence(TIMES.float(), positions.float())
    torch.testing.assert_close(single[0].double(), velocity, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(single[1].double(), divergence, atol=1e-3, rtol=1e-4)


def test_divergence_is_differentiable(generator):
    """With respect to positions and to weights, against finite differences."""
    field = local_density().requires_grad_(True)
    positions = lattice(3, 3, generator)[1:2].requires_grad_(True)

    def divergence(x):
        return field.velocity_and_divergence(TIMES[1:2], x)[1]

    assert torch.autograd.gradcheck(divergence, positions)
    for weight in (field.radial.weight, field.mixing[1], field.node_vectors.weight):
        (slope,) = torch.autograd.grad(divergence(positions).sum(), weight)
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        step = 1e-5 * direction
        with torch.no_grad():
            weight += step
            higher = divergence(positions)
            weight -= 2 * step
            lower = divergence(positions)
            weight += step
        difference = (higher - lower).item() / 2e-5
        assert (slope * direction).sum().item() == pytest.approx(difference, rel=1e-6)


def test_learned_part_fades_where_the_data_are_at_rest(generator):
    """At t = 1 only the exact field between equal Gaussians is left, b = x."""
    field, positions = local_density(), lattice(5, 3, generator)[:1]
    time = torch.ones(1, dtype=torch.float64)
    velocity, divergence = field.velocity_and_divergence(time, positions)
    torch.testing.assert_close(velocity, positions - positions.mean(1, keepdim=True))
    assert divergence.item() == pytest.approx(3 * 4)


@pytest.mark.parametrize("max_degree", [1, 3])
def test_cutoff_beyond_the_cluster_changes_nothing(max_degree, generator):
    positions = lattice(7, 3, generator)
    near = local_density(max_degree, cutoff=9.0).velocity_and_divergence(TIMES, positions)
    every = local_density(max_degree).velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(near[0], every[0], atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(near[1], every[1], atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("cutoff", [1.05, 1.3, 1.8])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_divergence_with_a_cutoff_equals_the_trace_of_the_jacobian(
    cutoff, n_dims, jacobian_trace, generator
):
    """Structures of one batch have different numbers of pairs, some of them fading."""
    field = local_density(2, cutoff=cutoff)
    positions = lattice(8, n_dims, generator) * torch.tensor([0.7, 1.0, 1.3, 9.0])[:, None, None]
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    expected = jacobian_trace(field, TIMES, positions)
    torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)
    assert torch.equal(velocity, field(TIMES, positions))
    fading = torch.pdist(positions[1]) / cutoff
    assert ((fading > 0.8) & (fading < 1)).any()


def test_an_atom_beyond_the_cutoff_of_all_others_moves_alone(generator):
    """The others move as they would without it, but for the common centre."""
    field, positions = local_density(2, cutoff=2.0), lattice(6, 3, generator)
    positions[:, 5] += 50.0
    with_it, without = field(TIMES, positions), field(TIMES, positions[:, :5])
    skip = resting_rate(TIMES)[:, None, None]

    def learned(velocity, x):
        rest = velocity - skip * (x - x.mean(1, keepdim=True))
        return rest - rest[:, :1]

    found, expected = learned(with_it, positions)[:, :5], learned(without, positions[:, :5])
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_cutoff_inside_the_core_is_refused():
    with pytest.raises(ValueError, match=r"cutoff = 0\.9 must be larger than core"):
        LocalDensityField(cutoff=0.9)


@pytest.mark.parametrize("wrong", [{"max_degree": 0}, {"n_hidden": 0}, {"n_channels": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        LocalDensityField(**wrong)
