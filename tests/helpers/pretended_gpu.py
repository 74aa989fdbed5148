"""A GPU that is pretended: tensors that tell "cuda:0" and are as hard to mix as those of a GPU.

They lie in ordinary memory, and the processor works on them, so that what goes to a GPU and what
comes back is tested where there is none. What a GPU would refuse is refused: operations on tensors
of both devices, NumPy on those of the GPU, random numbers for them from a processor's generator.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE, TOTAL = 2**30, 2**31
MAY_MIX = (
    "copy_",
    "__getitem__",
    "__setitem__",
    "index_put_",
    "__set__",
    "backward",
    "_make_subclass",
)


class OnGpu(torch.Tensor):
    """A tensor that pretends to lie on the GPU."""


class PretendedGpu(TorchFunctionMode):
    """While it is entered, `device="cuda"` can be used."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            return self.called(function, function.__name__, args, kwargs)

    def called(self, function, name, args, kwargs):
        given = list(found_in((args, kwargs), torch.Tensor))
        found = any(map(on_gpu, given))
        if name == "__get__" and function.__self__ in (torch.Tensor.device, torch.Tensor.is_cuda):
            return (CUDA if found else CPU) if function.__self__ is torch.Tensor.device else found
        if name in ("to", "cpu"):
            return moved(function, name, args, kwargs)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            refuse_generators(name, args, kwargs)
            return to_gpu(function(*args, **{**kwargs, "device": CPU}))
        if not found:
            return function(*args, **kwargs)
        return self.on_gpu(function, name, given, args, kwargs)

    def on_gpu(self, function, name, given, args, kwargs):
        """A call with a tensor of the GPU among its arguments."""
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "__reduce_ex__":
            return to_cpu(args[0]).__reduce_ex__(*args[1:])
        if name == "__deepcopy__":
            return copied(*args)
        refuse_generators(name, args, kwargs)
        elsewhere = [each for each in given if each.dim() > 0 and not on_gpu(each)]
        if elsewhere and (name not in MAY_MIX or not on_gpu(args[0])):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        result = function(*args, **kwargs)
        return result if isinstance(result, torch.Size) else to_gpu(result)


def found_in(values, kind):
    """What is of a kind among values, and in tuples, lists and dictionaries of them."""
    if isinstance(values, kind):
        yield values
    elif isinstance(values, tuple | list):
        for each in values:
            yield from found_in(each, kind)
    elif isinstance(values, dict):
        yield from found_in(list(values.values()), kind)


def on_gpu(tensor):
    """Whether it is on the GPU: parameters of networks, which stay what they are, have a mark."""
    return isinstance(tensor, OnGpu) or getattr(tensor, "marked_on_gpu", False)


def to_gpu(values):
    """Tensors, or what holds some, on the GPU."""
    if isinstance(values, torch.Tensor):
        return values if on_gpu(values) else values.as_subclass(OnGpu)
    return tree_map(to_gpu, values) if isinstance(values, tuple | list | dict) else values


def to_cpu(tensor):
    """A tensor brought back."""
    return torch.Tensor.as_subclass(tensor, torch.Tensor) if on_gpu(tensor) else tensor


def moved(function, name, args, kwargs):
    """Calls of `to` and `cpu`, with whatever else these change."""
    tensor, *rest = args
    wanted = kwargs.pop("device", None)
    if name == "cpu":
        wanted = CPU
    elif rest and isinstance(rest[0], str | torch.device):
        wanted = rest.pop(0)
    elif rest and isinstance(rest[0], torch.Tensor):
        wanted, rest[0] = CUDA if on_gpu(rest[0]) else CPU, rest[0].dtype
    wanted = (CUDA if on_gpu(tensor) else CPU) if wanted is None else torch.device(wanted)
    changed = function(tensor, *rest, **kwargs) if name == "to" and (rest or kwargs) else tensor
    return to_gpu(changed) if wanted.type == "cuda" else to_cpu(changed)


def copied(tensor, memo):
    """A deep copy, kept in the memo."""
    memo[id(tensor)] = to_gpu(to_cpu(tensor).detach().clone().requires_grad_(tensor.requires_grad))
    return memo[id(tensor)]


def refuse_generators(name, args, kwargs):
    """A processor's generator makes no random numbers on a GPU."""
    if any(found_in((args, kwargs), torch.Generator)):
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")


def module_to(module, device):
    """What `nn.Module.to` does with a device."""
    there = torch.device(device).type == "cuda"
    for each in module.modules():
        for parameter in each.parameters(recurse=False):
            parameter.marked_on_gpu = there
        for name, buffer in each.named_buffers(recurse=False):
            setattr(each, name, to_gpu(buffer) if there else to_cpu(buffer))
    return module


@contextmanager
def pretended_gpu(monkeypatch):
    """A context in which there is a GPU, with little memory, that has no compiler."""
    monkeypatch.setattr(torch.nn.Module, "to", module_to)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (FREE, TOTAL))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Pretended GPU")
    rounded = torch.autocast.__init__
    monkeypatch.setattr(
        torch.autocast,
        "__init__",
        lambda self, kind, *args, **how: rounded(self, "cpu", *args, **how),
    )
    with PretendedGpu():
        yield
