"""The optimisers of a field: Muon for hidden matrices with AdamW for the rest, or AdamW alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from boltztilt.tilt.recipe import Recipe


class FieldOptimiser:
    """One or two torch optimisers that step together on one field.

    Reference: K. Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks,
    https://kellerjordan.github.io/posts/muon/
    """

    def __init__(self, field: nn.Module, recipe: Recipe) -> None:
        self.parameters = list(field.parameters())
        self.gradient_clip = recipe.gradient_clip
        if recipe.optimiser == "adamw":
            self.parts = [_adamw(self.parameters, recipe)]
            return
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"optimiser 'muon' needs torch >= 2.9 but torch {torch.__version__} is installed; "
                "upgrade torch or set optimiser = 'adamw'"
            )
        matrices = list(hidden_matrices(field))
        chosen = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in self.parameters if id(parameter) not in chosen]
        muon = torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=0.0,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        self.parts = [muon, _adamw(others, recipe)]

    def step(self, learning_rate: float) -> bool:
        """One update with clipped gradients; False, and no update, where they are not finite."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        finite = bool(torch.isfinite(norm))
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            if finite:
                part.step()
            part.zero_grad()
        return finite

    def state(self) -> list[dict]:
        """The states of all parts."""
        return [part.state_dict() for part in self.parts]

    def restore(self, states: list[dict]) -> None:
        """Sets the states of all parts."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def hidden_matrices(field: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices that act on learned features: all but those of the time features."""
    for name, parameter in field.named_parameters():
        if parameter.dim() == 2 and "time_features" not in name:
            yield parameter


def update_average(average: nn.Module, field: nn.Module, decay: float, n_updates: int) -> None:
    """Moves the average towards the field; early on the decay is smaller, (1 + k) / (10 + k)."""
    decay = min(decay, (1 + n_updates) / (10 + n_updates))
    with torch.no_grad():
        for mean, value in zip(average.parameters(), field.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def _adamw(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
