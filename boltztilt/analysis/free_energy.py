"""Free energies: log Z from both directions of a flow."""

from __future__ import annotations

import logging
from types import ModuleType

from jaxtyping import Float64
from torch import Tensor

from boltztilt.sampling.estimate import Estimate, log_mean_exp

NEGLIGIBLE_WORK = 500.0  # kT: exp(-500) adds nothing; pymbar's error bar overflows above 700


def bar(
    forward_log_weights: Float64[Tensor, "forward"], reverse_log_weights: Float64[Tensor, "reverse"]
) -> Estimate:
    """log Z by Bennett's acceptance ratio, from log w at samples of q and at samples of the target.

    log w = -U - log q in both. Samples of infinite energy belong here: they carry no overlap, but
    count.

    Reference: Bennett (1976), doi:10.1016/0021-9991(76)90078-4; computed by pymbar, Shirts &
        Chodera (2008), doi:10.1063/1.2978177.
    """
    estimators = import_estimators()
    centre = log_mean_exp(forward_log_weights, n_bootstrap=0).value
    works = (centre - forward_log_weights, reverse_log_weights - centre)
    forward, reverse = (work.clamp(max=NEGLIGIBLE_WORK).numpy() for work in works)
    result = estimators.bar(forward, reverse)
    return Estimate(centre - float(result["Delta_f"]), float(result["dDelta_f"]))


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
