"""Free energies: log Z from both directions of a flow."""

from __future__ import annotations

import logging
import math
from types import ModuleType

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from boltztilt.sampling.estimate import Estimate, log_mean_exp

NEGLIGIBLE_WORK = 500.0  # kT: exp(-500) adds nothing; pymbar's error bar overflows above 700


def bar(
    forward_log_weights: Float64[Tensor, "forward"],
    reverse_log_weights: Float64[Tensor, "reverse"],
    reverse_groups: Int64[Tensor, "reverse"] | None = None,
    n_bootstrap: int = 50,
) -> Estimate:
    """log Z by Bennett's acceptance ratio, from log w at samples of q and at samples of the target.

    log w = -U - log q in both. Samples of infinite energy belong here: they carry no overlap, but
    count. Where samples of the target come in groups that depend on each other, the error is that
    of samples of q and whole groups drawn anew.

    Reference: Bennett (1976), doi:10.1016/0021-9991(76)90078-4; computed by pymbar, Shirts &
        Chodera (2008), doi:10.1063/1.2978177.
    """
    estimators = import_estimators()
    centre = log_mean_exp(forward_log_weights, n_bootstrap=0).value
    works = (centre - forward_log_weights, reverse_log_weights - centre)
    forward, reverse = (work.clamp(max=NEGLIGIBLE_WORK).numpy() for work in works)
    result = estimators.bar(forward, reverse)
    value, error = centre - float(result["Delta_f"]), float(result["dDelta_f"])
    if reverse_groups is None:
        return Estimate(value, error)
    _, numbers = np.unique(reverse_groups.numpy(), return_inverse=True)
    members = np.split(numbers.argsort(kind="stable"), np.bincount(numbers).cumsum()[:-1])
    if len(members) < 2:
        return Estimate(value, math.nan)
    generator, replicas = np.random.default_rng(0), []
    for _ in range(n_bootstrap):
        drawn = [members[group] for group in generator.integers(len(members), size=len(members))]
        parts = generator.choice(forward, len(forward)), reverse[np.concatenate(drawn)]
        replicas.append(estimators.bar(*parts, compute_uncertainty=False)["Delta_f"])
    return Estimate(value, float(np.std(replicas, ddof=1)))


def import_estimators() -> ModuleType:
    """pymbar's estimators, without the advertisement for JAX that it logs on import."""
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    try:
        from pymbar import other_estimators
    except ImportError as error:
        raise ImportError(
            "Bennett's acceptance ratio needs pymbar: pip install 'boltztilt[analysis]'"
        ) from error
    return other_estimators
