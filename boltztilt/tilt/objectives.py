"""Regression objectives whose minimiser is the velocity field of the tilted law.

| symbol | variable | meaning |
|---|---|---|
| I_t, İ_t | bridge.positions, bridge.rates | interpolant of a pair drawn at level a, and its rate |
| b_a | old | frozen field at level a, evaluated at I_t |
| b̂ | new | trained field at I_t |
| w | weights | exp(h r(x1)) over its mean |
| c | control_variate | any constant, or function of (t, I_t) |

The exact tilted field is the Esscher transform b_{a+h} = E[w İ | I_t] / E[w | I_t].

Reference:
    Tilt Matching, https://arxiv.org/abs/2512.21829 (explicit and implicit tilt matching, weighted
    flow matching, proposition 7 on their gradient variance).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Field = Float[Tensor, "batch atoms dims"]
PerSample = Float[Tensor, "batch"]


def tilt_weights(scaled_rewards: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """exp(h r) over its mean from the products h r, in log space; non-finite rewards weigh zero."""
    log_weights = torch.where(torch.isfinite(scaled_rewards), scaled_rewards, -math.inf)
    if not torch.isfinite(log_weights).any():
        raise ValueError(f"none of {len(log_weights)} samples has a finite reward")
    return log_weights.softmax(dim=0) * len(log_weights)


def implicit_target(
    old: Field, new: Field, rates: Field, weights: PerSample, control_variate: float = 1.0
) -> Field:
    """ITM target b̂ + w (İ - b̂) - c (İ - b_a), without gradient through b̂.

    For c = 1 it reads b_a + (w - 1)(İ - b̂), the target of the paper; for c = 0 the regression
    has the gradient of weighted flow matching. Because E[İ | I_t] = b_a, its mean exceeds b̂ by
    E[w (İ - b̂) | I_t] whatever c is: the fixed point is the exact tilted field for any h.
    """
    current = new.detach()
    return current + _wide(weights) * (rates - current) - control_variate * (rates - old)


def explicit_target(
    old: Field,
    rates: Field,
    scaled_rewards: PerSample,
    baseline: float = 0.0,
) -> Field:
    """ETM target b_a + (h r - c)(İ - b_a), first order in h; `scaled_rewards` are h r."""
    if not torch.isfinite(scaled_rewards).all():
        raise ValueError(
            "explicit tilt matching met an infinite reward: it needs E|r| finite, which a singular "
            "core does not give near a = 0; use objective 'itm' or 'wfm', whose weights exp(h r) "
            "stay bounded"
        )
    return old + _wide(scaled_rewards - baseline) * (rates - old)


def _wide(values: PerSample) -> Tensor:
    return values[:, None, None]
