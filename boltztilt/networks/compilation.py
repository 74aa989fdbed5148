"""Compiling a network or another function where that is possible."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from boltztilt.parallel import finish_alone

Compilable = TypeVar("Compilable", bound=Callable)

ON_PROCESSORS: Any = {
    "cpp_wrapper": True,  # a thread must not hold Python's lock
    "cpp.threads": 1,  # each runs the whole function alone
    "realize_reads_threshold": 2,  # what two others read is not computed twice: 6 % of a Jacobian
}
"""Options of torch.compile."""


def compiled(function: Compilable, network: nn.Module, wanted: bool) -> Compilable:
    """The network, or a function of it or its layers, through torch.compile if wanted.

    A network with a cutoff, whose shapes change with every batch, is used as it is too.
    """
    if not wanted or getattr(network, "cutoff", None) is not None:
        return function
    return compiled_for(function, next(network.parameters()).device)


def compiled_for(function: Compilable, device: torch.device) -> Compilable:
    """The function through torch.compile, for inputs of fixed shapes on a device.

    Without the C++ compiler that torch.compile needs on a CPU the function is used as it is, with
    a warning: results agree to rounding, only the speed differs.
    """
    on_gpu = device.type == "cuda"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not on_gpu and not compiler:
        warnings.warn(
            "no C++ compiler (g++) found: going on without torch.compile, at half the speed or "
            "less; install one, or set compile = false",
            stacklevel=3,
        )
        return function
    # the compiler's own use of functions that torch deprecates concerns nobody else
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    fast = torch.compile(function, dynamic=False, options=None if on_gpu else ON_PROCESSORS)
    return cast(Compilable, Compiled(fast, function, device))


class Compiled:
    """A compiled function that is safe in `parallel.in_threads`, with its other attributes.

    It compiles on the first call with each kind of inputs, and its gradient on the first backward
    pass, which traces Python's functions for the whole process: no other thread may use any of
    them meanwhile. So the task that makes a first call finishes alone, its backward pass included.
    If that call cannot be compiled, the plain function takes over, with a warning; a gradient that
    cannot be compiled is an error.
    """

    def __init__(self, function: Callable, plain: Callable, device: torch.device) -> None:
        self.function = function
        self.plain = plain
        self.device = device
        self.seen: set[tuple] = set()

    def __call__(self, *inputs: Tensor | nn.Module) -> Any:
        rounded = torch.is_autocast_enabled(self.device.type)
        kind = (torch.is_grad_enabled(), torch.get_num_threads(), rounded, *map(_kind, inputs))
        if kind in self.seen:
            return self.function(*inputs)
        finish_alone()
        try:
            result = self.function(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.function = self.plain
            warnings.warn(_failure(error), stacklevel=2)
            result = self.function(*inputs)
        self.seen.add(kind)
        return result

    def __getattr__(self, name: str) -> Any:
        if name == "function":  # not made yet, as in a copy
            raise AttributeError(name)
        return getattr(self.function, name)


def _failure(error: Exception) -> str:
    reason = str(error).strip().splitlines()[:3]
    return (
        f"torch.compile failed ({' '.join(reason)}): going on without it, at half the speed or "
        "less; check the compiler (g++ on a CPU), or set compile = false"
    )


def _kind(values: Tensor | nn.Module) -> tuple:
    """What inputs share that one compilation serves: networks of one kind, as layers are."""
    if isinstance(values, nn.Module):
        return (type(values),)
    return values.shape, values.stride(), values.dtype, values.requires_grad
