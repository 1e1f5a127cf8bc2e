"""A device that is not the CPU, for machines without one: its tensors are held on the CPU, by a GPU's rules.

Tensors of both devices must not meet, but in a copy, as an index, or as a CPU's single number. And whatever makes the
host wait for a GPU is noted: a read of its numbers, and a copy to it that `to_device` does not make.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from relinv.devices import to_device

NAME = "elsewhere"
COPIES = {"copy_", "_to_copy", "to"}
INDEXING = ("index", "_index")
# the shape of what they return depends on a tensor's numbers, or else whether they can return it
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "allclose", "bincount", "repeat_interleave",
         "unique_dim", "_unique", "_unique2", "_linalg_eigh", "_linalg_svd", "_linalg_solve_ex", "linalg_inv_ex",
         "linalg_cholesky_ex", "linalg_qr"}  # fmt: skip


@contextmanager
def elsewhere() -> Iterator[list[str]]:
    """Inside the block torch.device("elsewhere") computes; yield the operations, so far, in which a GPU is waited for.

    Tests that need it are skipped if this PyTorch is too old to be told of a device by Python.
    """
    _register()
    reads: list[str] = []
    one_thread = torch.autograd.set_multithreading_enabled(False)  # there is none for this device
    recording = patch("torch.inference_mode", torch.no_grad)  # whose tensors cannot be of a class of one's own
    with _Dispatch(reads), _Making(), one_thread, recording:
        yield reads


@cache
def _register() -> None:
    """Tell PyTorch of the device, once in a process."""
    if not hasattr(torch._C._acc, "register_python_privateuseone_hook"):
        pytest.skip("this PyTorch takes no device from Python")

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())


class _Elsewhere(torch.Tensor):
    """A tensor that says it is elsewhere; `held`, on the CPU, has its numbers."""

    held: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # so that Module.to can put one in a parameter's place
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, torch.Tensor], *_: Any) -> _Elsewhere:
        return _placed(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{op} is called on a tensor that is elsewhere, outside the block")


class _Dispatch(TorchDispatchMode):
    """Runs every operation on the CPU, and puts what it returns where a GPU would have it."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [*_leaves(args), *_leaves(kwargs or {})]
        name = op._schema.name.removeprefix("aten::")
        there = [leaf for leaf in leaves if isinstance(leaf, _Elsewhere)]
        assert not there or _may_meet(name, args, leaves), f"{op} is given tensors of both devices"
        stays = _stays(name, leaves)
        assert not (stays and any(isinstance(leaf, torch.Generator) for leaf in leaves)), f"{op}: a CPU's generator"
        if there and (name in READS or not stays or _is_mask(name, leaves)):
            self.reads.append(str(op))
        sent = name in COPIES or name.startswith(INDEXING)
        if stays and sent and _here(leaves) and not _is_called_by(to_device):
            self.reads.append(f"{op} from the CPU")
        if name == "_fused_sdp_choice":
            return torch.nn.attention.SDPBackend.MATH.value  # the others have kernels for single devices
        made = op(*_mapped(_on_cpu, args), **_mapped(_on_cpu, kwargs or {}))
        changed = {id(tensor.held): tensor for tensor in there}  # in place, and returned as it is

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return changed[id(leaf)] if id(leaf) in changed else _placed(leaf)

        return _mapped(place, made) if stays else made


class _Making(TorchFunctionMode):
    """Makes tensors of Python's numbers, and such numbers of tensors, by calls that the dispatch sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and (device := kwargs.get("device")) is not None:
            return function(*args, **kwargs | {"device": None}).to(device)
        if function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what stands in lists and the like, which PyTorch's own tool takes far longer for."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves([*value.values()])
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, each) for each in value])
    if isinstance(value, dict):
        return {name: _mapped(function, each) for name, each in value.items()}
    return function(value)


def _placed(held: torch.Tensor) -> _Elsewhere:
    shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
    placed = torch.Tensor._make_wrapper_subclass(_Elsewhere, held.shape, **shape, device=torch.device(NAME, 0))
    placed.held = held
    return placed


def _stays(name: str, leaves: Sequence[Any]) -> bool:
    """Return whether an operation's result is elsewhere: where it is told to be, else where its tensors are."""
    for leaf in leaves:
        if isinstance(leaf, torch.device):
            return leaf.type == NAME
    if name == "copy_":
        return isinstance(leaves[0], _Elsewhere)
    return any(isinstance(leaf, _Elsewhere) for leaf in leaves)


def _here(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, _Elsewhere)]


def _may_meet(name: str, args: Sequence[Any], leaves: Sequence[Any]) -> bool:
    """Return whether a GPU takes these tensors together, some of which are its own."""
    if name in COPIES:
        return True
    if name.startswith(INDEXING):  # the indices may be on the CPU, and only where the rest is not
        return all(isinstance(leaf, _Elsewhere) for leaf in (args[0], *args[2:3]))
    into_cpu = name.endswith("_") and not isinstance(args[0], _Elsewhere)
    return not into_cpu and not any(tensor.dim() or name in ("cat", "stack") for tensor in _here(leaves))


def _is_called_by(function: Callable[..., Any]) -> bool:
    """Return whether this is called, at some depth, by the function."""
    frame = inspect.currentframe()
    while frame and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _is_mask(name: str, leaves: Sequence[Any]) -> bool:
    return name.startswith(INDEXING) and any(
        isinstance(leaf, _Elsewhere) and leaf.dtype == torch.bool for leaf in leaves[1:]
    )


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) and leaf.type == NAME:
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, _Elsewhere) else leaf
