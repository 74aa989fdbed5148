"""Estimates with errors, as they are printed."""

import math

import pytest

from boltztilt.sampling.estimate import Estimate


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
