"""How far an estimate is from the truth."""

from boltztilt.sampling.estimate import Estimate


def z_score(estimate: Estimate, truth: float) -> float:
    """The deviation of the estimate in its standard errors."""
    return (estimate.value - truth) / estimate.error
