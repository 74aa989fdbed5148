"""The unrolled field: symmetries, divergence, its start, and how far its layers reach."""

import pytest
import torch

from boltztilt.geometry import random_rotation
from boltztilt.networks.local_density import LocalDensityField
from boltztilt.networks.unrolled import (
    ACTING,
    UnrolledField,
    how_far,
    jacobian_step,
    velocity_step,
)
from boltztilt.testing import jittered_lattice

EXACT = 1e-9
TIMES = torch.tensor([0.0, 0.3, 0.8, 0.97], dtype=torch.float64)
SETTINGS = {"n_hidden": 12, "n_channels": 4}


def unrolled(n_layers: int = 3, **settings) -> UnrolledField:
    """A small field in float64, moved off its start: a fresh one has no learned part."""
    with torch.random.fork_rng():
        torch.manual_seed(n_layers)
        field = UnrolledField(n_layers, **SETTINGS, **settings)
        for parameter in field.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return field.double().requires_grad_(False)


def lattice(generator: torch.Generator, n_dims: int = 3) -> torch.Tensor:
    return 0.6 * jittered_lattice(5, n_dims, generator, n=len(TIMES))


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("n_dims", [2, 3])
def test_velocity_turns_and_permutes_with_the_atoms(n_dims, reflect, generator):
    field, positions = unrolled(), lattice(generator, n_dims)
    rotation = random_rotation(n_dims, generator, reflect)
    order = [3, 0, 4, 1, 2]
    moved = field(TIMES, positions[:, order] @ rotation.T)
    expected = field(TIMES, positions)[:, order] @ rotation.T
    torch.testing.assert_close(moved, expected, atol=EXACT, rtol=EXACT)


def test_velocity_ignores_translation_and_keeps_the_centre(generator):
    field, positions = unrolled(), lattice(generator)
    velocity = field(TIMES, positions)
    torch.testing.assert_close(field(TIMES, positions + 1.7), velocity, atol=EXACT, rtol=EXACT)
    assert velocity.mean(1).abs().max() < 1e-13


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"n_throughout": 1}, {"cutoff": 1.4}],
    ids=["by Jacobians", "layers that come and go", "by products"],
)
def test_divergence_equals_the_trace_of_the_jacobian(settings, n_dims, jacobian_trace, generator):
    field, positions = unrolled(3, **settings), 0.3 + lattice(generator, n_dims)
    velocity, divergence = field.velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(velocity, field(TIMES, positions), atol=EXACT, rtol=EXACT)
    expected = jacobian_trace(field, TIMES, positions)
    torch.testing.assert_close(divergence, expected, atol=EXACT, rtol=EXACT)
    assert divergence.abs().max() > 1


def test_fresh_field_is_the_one_between_two_equal_gaussians(generator):
    """b = x (t - (1-t)) / (t² + (1-t)²), the start that tilting needs."""
    positions = lattice(generator)
    positions = positions - positions.mean(1, keepdim=True)
    field = UnrolledField(**SETTINGS).double()
    rate = (2 * TIMES - 1) / (TIMES.square() + (1 - TIMES).square())
    torch.testing.assert_close(field(TIMES, positions), rate[:, None, None] * positions)


def test_starts_as_the_local_density_field_of_its_first_layer(generator):
    first = LocalDensityField(**SETTINGS).double()
    for parameter in first.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    field = UnrolledField(**SETTINGS).double()
    field.load_state_dict(field.started_from(first.state_dict()))
    positions = lattice(generator)
    torch.testing.assert_close(field(TIMES, positions), first(TIMES, positions))


def test_starts_as_an_unrolled_field_of_fewer_layers(generator):
    shallower, positions = unrolled(2), lattice(generator)
    field = UnrolledField(4, **SETTINGS).double()
    field.load_state_dict(field.started_from(shallower.state_dict()))
    torch.testing.assert_close(field(TIMES, positions), shallower(TIMES, positions))


def test_new_layers_begin_as_silenced_copies_of_the_last_one(generator):
    """All that leads up to the last weights is copied, so that a few updates already help."""
    shallower = unrolled(2)
    field = UnrolledField(4, **SETTINGS).double()
    field.load_state_dict(field.started_from(shallower.state_dict()))
    copied, given = field.layers[3], shallower.layers[1]
    torch.testing.assert_close(copied.edge_hidden.weight, given.edge_hidden.weight)
    assert copied.correction(TIMES, lattice(generator)).abs().max() == 0
    with torch.no_grad():
        for name in ("output", "modulation.weight", "modulation.bias", "node_gates.weight"):
            copied.get_parameter(name).copy_(given.get_parameter(name))
        for name in ("node_gates.bias", "node_vectors.weight", "node_vectors.bias"):
            copied.get_parameter(name).copy_(given.get_parameter(name))
    positions = lattice(generator)
    torch.testing.assert_close(
        copied.correction(TIMES, positions), given.correction(TIMES, positions)
    )


@pytest.mark.parametrize(("n_layers", "farthest"), [(2, 4), (3, 6)])
def test_every_layer_reaches_two_neighbours_farther(n_layers, farthest, generator):
    """In a row of atoms that see their next neighbours alone, 2 n_layers atoms feel the first."""
    field = unrolled(n_layers, cutoff=1.3)
    field.pulls.weight.zero_()
    for layer in field.layers:  # small steps, after which neighbours are still neighbours
        for parameter in (layer.output, layer.modulation.weight, layer.node_gates.weight):
            parameter.mul_(0.02)
        layer.node_vectors.weight.mul_(0.02)
    row = torch.zeros(1, 9, 3, dtype=torch.float64)
    row[0, :, 0] = torch.arange(9)
    row[0, :, 1] = 0.1 * torch.randn(9, generator=generator, dtype=torch.float64)
    pushed = row.clone()
    pushed[0, 0, 2] += 0.05
    late = torch.tensor([0.9], dtype=torch.float64)
    change = (field(late, pushed) - field(late, row))[0]
    felt = (change - change[-1]).norm(dim=-1) > 1e-12  # all of them feel the mean
    assert felt.nonzero().flatten().tolist() == list(range(farthest + 1))


def times_of(ratios: list[float]) -> torch.Tensor:
    """The times at which the noise is so many times the signal."""
    return 1 / (1 + torch.tensor(ratios, dtype=torch.float64))


def test_layers_come_and_go_smoothly():
    start, full, fading, gone = ACTING
    between = [(start * full) ** 0.5, (fading * gone) ** 0.5]
    shares = how_far(times_of([start, between[0], full, fading, between[1], gone]))
    expected = torch.tensor([0, 0.5, 1, 1, 0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(shares, expected)
    assert (how_far(torch.tensor([0.0, 1.0])) == 0).all()
    times = torch.linspace(0.5, 0.99, 2000, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(how_far(times).sum(), times)
    assert slopes.diff().abs().max() < 0.06 * slopes.abs().max()


def test_layers_that_do_not_act_throughout_are_gone_at_other_times(generator):
    field, shallower = unrolled(4, n_throughout=2), UnrolledField(2, **SETTINGS).double()
    state = field.state_dict()
    state |= {name: state[name][:1] for name in ("pulls.weight", "pulls.bias")}
    shallower.load_state_dict({name: state[name] for name in shallower.state_dict()})
    positions = lattice(generator)
    outside, inside = times_of([9.0, 0.71, 0.049, 0.001]), times_of([0.49, 0.3, 0.2, 0.09])
    for times in (outside, inside):
        same = field(times, positions) - shallower(times, positions)
        assert ((same.flatten(1).norm(dim=1) < EXACT) == (how_far(times) == 0)).all()
    whole = UnrolledField(4, **SETTINGS).double()
    whole.load_state_dict(field.state_dict())
    torch.testing.assert_close(field(inside, positions), whole(inside, positions))


def test_layers_that_are_gone_at_all_times_of_a_batch_are_not_called(generator):
    field, positions = unrolled(4, n_throughout=2), lattice(generator)
    called = []

    def compile(function):
        return lambda layer, *inputs: called.append(layer) or function(layer, *inputs)

    velocity, divergence, _ = field.with_steps(compile)
    velocity(times_of([9.0, 2.0, 0.04, 0.01]), positions)
    divergence(times_of([9.0, 2.0, 0.04, 0.01]), positions)
    assert called == 2 * list(field.layers)[:2]
    called.clear()
    velocity(times_of([9.0, 2.0, 0.3, 0.01]), positions)
    assert called == list(field.layers)


def test_steps_of_all_layers_may_be_one_compiled_function(generator):
    field, positions = unrolled(3), lattice(generator)
    passed = []

    def compile(function):
        def recorded(layer, *inputs):
            passed.append((function, [each.stride() for each in inputs]))
            return function(layer, *inputs)

        return recorded

    velocity, divergence, jacobian = field.with_steps(compile)
    expected = field.velocity_and_jacobian(TIMES, positions)
    torch.testing.assert_close(velocity(TIMES, positions), expected[0])
    torch.testing.assert_close(jacobian(TIMES, positions), expected)
    expected = field.velocity_and_divergence(TIMES, positions)
    torch.testing.assert_close(divergence(TIMES, positions), expected)
    assert [function for function, _ in passed] == 3 * [velocity_step] + 6 * [jacobian_step]
    # code compiles anew for other strides
    assert len({tuple(strides) for _, strides in passed}) == 2


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1; a single layer is kind = 'local"):
        UnrolledField(1)


@pytest.mark.parametrize("n_throughout", [-1, 4])
def test_more_layers_throughout_than_there_are_are_refused(n_throughout):
    with pytest.raises(ValueError, match=f"n_layers = 3, got {n_throughout}"):
        UnrolledField(3, n_throughout)
