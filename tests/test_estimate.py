"""Estimates with errors, as they are printed."""

import math

import pytest
import torch

from boltztilt.sampling.estimate import Estimate, pareto_k, weighted_fraction


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


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_pareto_k_is_the_exponent_of_the_tail(k, generator):
    """u^-k has excesses of that shape; the error of a fit to m of them is (1 + k) / sqrt(m)."""
    n = 40_000
    log_weights = -k * torch.rand(n, generator=generator, dtype=torch.float64).log()
    n_tail = 3 * math.sqrt(n)
    assert abs(pareto_k(log_weights + 300) - k) < 3.5 * (1 + k) / math.sqrt(n_tail)


def test_pareto_k_needs_weights_that_differ():
    assert math.isnan(pareto_k(torch.full((500,), 3.0, dtype=torch.float64)))
    assert math.isnan(pareto_k(torch.linspace(0, 1, 99, dtype=torch.float64)))
    absent = torch.linspace(0, 1, 150, dtype=torch.float64).log()
    absent[:60] = -math.inf
    assert math.isnan(pareto_k(absent))
