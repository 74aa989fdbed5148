"""Estimates with errors, as they are printed."""

import math

import pytest
import torch

from boltztilt.sampling.estimate import Estimate, weighted_fraction


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(-43.0612, 0.0512), "-43.06 ± 0.05"),
        (Estimate(-43.0612, 0.0151), "-43.061 ± 0.015"),
        (Estimate(3.25, 12.0), "3 ± 12"),
        (Estimate(1.5, 0.0), "1.5 ± 0"),
        (Estimate(1.0, 5.2e-17), "1 ± 5e-17"),
        (Estimate(2.9812e22, 3.2e22), "2.981e+22 ± 3e+22"),
        (Estimate(1.5, math.nan), "1.5 ± unknown"),
    ],
)
def test_estimates_print_as_many_digits_as_the_error_warrants(estimate, words):
    assert str(estimate) == words


def test_the_error_of_a_fraction_is_unknown_where_a_state_was_never_seen():
    holds = torch.tensor([True, True, False, False])
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert weighted_fraction(holds).value == 0.5
    assert weighted_fraction(holds).error == pytest.approx(math.sqrt(0.25 / 3), rel=0.2)
    assert weighted_fraction(holds, weights) == (1.0, pytest.approx(math.nan, nan_ok=True))
    assert weighted_fraction(~holds, weights) == (0.0, pytest.approx(math.nan, nan_ok=True))
