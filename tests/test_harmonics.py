"""Solid harmonics: norms, agreement with e3nn, gradients, and their fading at the origin."""

import pytest
import torch
from e3nn import o3

from boltztilt.networks.harmonics import gradient_tensor, harmonics, softened_length

DEGREES = (0, 1, 2, 3, 4)


def vectors(generator: torch.Generator, n: int = 50) -> torch.Tensor:
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("degree", DEGREES)
def test_norm_is_a_power_of_the_length(degree, generator):
    points = vectors(generator)
    squares = harmonics(points, degree).square().sum(-1)
    expected = (2 * degree + 1) * points.norm(dim=-1) ** (2 * degree)
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("degree", DEGREES)
def test_directions_give_the_spherical_harmonics_of_e3nn(degree, generator):
    points = vectors(generator)
    expected = o3.spherical_harmonics(degree, points, normalize=True, normalization="component")
    unit = points / points.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(harmonics(unit, degree), expected)


@pytest.mark.parametrize("degree", DEGREES)
def test_opposite_directions_differ_by_the_parity(degree, generator):
    points = vectors(generator)
    expected = (-1) ** degree * harmonics(points, degree)
    torch.testing.assert_close(harmonics(-points, degree), expected)


@pytest.mark.parametrize("degree", DEGREES[1:])
def test_gradient_tensor_agrees_with_the_gradient_of_e3nn(degree, generator):
    for point in vectors(generator, n=5):
        expected = torch.autograd.functional.jacobian(lambda v: harmonics(v, degree), point)
        lower = harmonics(point, degree - 1)
        found = torch.einsum("p,pam->ma", lower, gradient_tensor(degree))
        torch.testing.assert_close(found, expected)


def test_constant_harmonic_has_no_gradient_tensor():
    with pytest.raises(ValueError, match="degree is 0"):
        gradient_tensor(0)


def test_softened_length_is_the_distance_far_away_and_the_softening_at_contact():
    distances = torch.tensor([0.0, 10.0], dtype=torch.float64)
    lengths = softened_length(distances, softening=0.1)
    assert lengths[0].item() == pytest.approx(0.1)
    assert lengths[1].item() == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("degree", DEGREES[1:])
def test_softened_harmonics_vanish_smoothly_where_atoms_meet(degree):
    """Like d^l, so that no direction is preferred when two atoms pass through each other."""
    direction = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)
    sizes = []
    for distance in (1e-3, 1e-4):
        length = softened_length(torch.tensor(distance, dtype=torch.float64), 0.1)
        sizes.append(harmonics(distance * direction / length, degree).norm())
    assert (sizes[0] / sizes[1]).item() == pytest.approx(10**degree, rel=1e-2)
