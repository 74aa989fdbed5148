"""The field of another sampler, with which polishing begins."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from boltztilt.checkpoint import load_weights
from boltztilt.networks.build import with_defaults
from boltztilt.networks.unrolled import UnrolledField
from boltztilt.sampling.weights_files import find_weights


class Start(NamedTuple):
    """Weights, no longer kept once they are in use, and the record of how they were made."""

    weights: dict[str, Tensor]
    metadata: dict[str, Any]


def read_start(target: str, field: nn.Module, network: Mapping[str, Any]) -> Start:
    """The weights of a system, run folder or file, for a field made with the given settings.

    Those of a local-density field become the first layer of an unrolled one, and those of an
    unrolled field with fewer layers the first ones; see `UnrolledField.started_from`.

    Raises:
        FileNotFoundError: there are no weights at the target.
        ValueError: they belong to a field made otherwise, or their training did not reach a = 1.
    """
    weights, metadata = load_weights(find_weights(target)[0])
    other = metadata.get("recipe", {}).get("network", {})
    given, wanted = (with_defaults(settings) for settings in (other, network))
    deepened = isinstance(field, UnrolledField) and depth(given) < wanted["n_layers"]
    if deepened:
        given |= {name: wanted[name] for name in ("kind", "n_layers", "n_throughout")}
    different = sorted(name for name in given | wanted if given.get(name) != wanted.get(name))
    if different:
        words = ", ".join(f"{name} = {given.get(name)}" for name in different)
        raise ValueError(
            f"recipe: start_from = {target!r} has a network with {words}; set the same"
        )
    if not metadata.get("a", 0.0) >= 1.0:
        raise ValueError(
            f"recipe: start_from = {target!r} was trained up to a = {metadata.get('a')} only; "
            "finish its training first"
        )
    try:
        if deepened:
            assert isinstance(field, UnrolledField)
            weights = field.started_from(weights)
        else:
            copy.deepcopy(field).load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"recipe: the field of start_from = {target!r} was made for other kinds of atoms"
        ) from error
    return Start(weights, metadata)


def depth(network: Mapping[str, Any]) -> float:
    """Layers of a network, as far as an unrolled field can begin with them; else infinite."""
    if network["kind"] == "unrolled":
        return float(network["n_layers"])
    return 1.0 if network["kind"] == "local_density" else math.inf
