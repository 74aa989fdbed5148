"""Bumps on the warped distance axis: where they sit, what they cover, their derivative."""

import pytest
import torch

from boltztilt.networks.radial import BUMP_HALF_WIDTH, WarpedBumps

CORE, SPREAD, REACH = 1.0, 0.4, 6.0


def bumps(n_radial: int = 32) -> WarpedBumps:
    return WarpedBumps(n_radial, CORE, SPREAD, REACH).double()


def distances(n: int = 1001) -> torch.Tensor:
    return torch.linspace(0, REACH, n, dtype=torch.float64)[None]


def peak(basis: WarpedBumps, k: int) -> float:
    grid = distances(12001)
    return grid[0, basis(grid)[0, :, k].argmax()].item()


def test_derivative_agrees_with_autograd():
    basis, at = bumps(), distances(200).requires_grad_(True)
    values, slopes = basis(at), basis.derivative(at)
    for k in range(basis.n_radial):
        (expected,) = torch.autograd.grad(values[..., k].sum(), at, retain_graph=True)
        torch.testing.assert_close(slopes[..., k], expected, atol=1e-12, rtol=1e-10)
    assert slopes.abs().max() > 1


def test_first_and_last_bump_sit_at_contact_and_at_reach():
    basis = bumps()
    assert peak(basis, 0) == pytest.approx(0, abs=1e-3)
    assert peak(basis, basis.n_radial - 1) == pytest.approx(REACH, abs=1e-3)


def test_bumps_are_finest_at_the_core():
    basis = bumps()
    peaks = torch.tensor([peak(basis, k) for k in range(basis.n_radial)])
    spacings = peaks.diff()
    assert abs(peaks[spacings.argmin()] - CORE) < 0.1
    assert spacings.min() == pytest.approx(SPREAD / basis.slope, rel=0.05)
    assert spacings[-1] > 5 * spacings.min()


def test_bumps_cover_the_axis_evenly():
    """Away from the ends the sum of all bumps is constant: no distance is preferred."""
    basis = bumps()
    inside = distances()[:, 100:600]
    total = basis(inside).sum(-1)
    assert (total / total.mean() - 1).abs().max() < 0.01
    assert (basis(distances()).sum(-1) > 0.4 * total.mean()).all()


def test_bumps_are_local():
    """Few are on at a time, none is negative, and far away nothing is left."""
    values = bumps()(distances())
    assert (values >= 0).all()
    assert ((values > 0).sum(-1) <= 2 * BUMP_HALF_WIDTH + 1).all()
    assert bumps()(torch.full((1, 1), 1e3, dtype=torch.float64)).count_nonzero() == 0


@pytest.mark.parametrize(
    "wrong", [{"n_radial": 1}, {"core": 0.0}, {"core": 7.0}, {"spread": 0.0}, {"reach": -1.0}]
)
def test_impossible_axes_are_refused(wrong):
    settings = {"n_radial": 8, "core": CORE, "spread": SPREAD, "reach": REACH, **wrong}
    with pytest.raises(ValueError, match="radial basis needs"):
        WarpedBumps(**settings)
