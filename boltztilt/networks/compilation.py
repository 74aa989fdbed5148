"""Compiling a network where that is possible."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn

Compilable = TypeVar("Compilable", bound=Callable)


def compiled(function: Compilable, network: nn.Module, wanted: bool) -> Compilable:
    """The network, or a method of it, through torch.compile if wanted, else as it is.

    Without the C++ compiler that torch.compile needs on a CPU the network is used as it is, with a
    warning: results agree to rounding, only the speed differs. A network with a cutoff, whose
    shapes change with every batch, is used as it is too.
    """
    if not wanted or getattr(network, "cutoff", None) is not None:
        return function
    on_gpu = next(network.parameters()).is_cuda
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not on_gpu and not compiler:
        warnings.warn(
            "no C++ compiler (g++) found: training goes on without torch.compile, about half as "
            "fast; install one, or set compile = false in the recipe",
            stacklevel=2,
        )
        return function
    # the compiler's own use of functions that torch deprecates concerns nobody else
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    # on a processor each thread runs the whole function alone, and must not hold Python's lock
    options: Any = None if on_gpu else {"cpp_wrapper": True, "cpp.threads": 1}
    return cast(Compilable, torch.compile(function, dynamic=False, options=options))
