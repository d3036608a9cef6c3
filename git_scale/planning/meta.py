"""Models on torch's meta device, quickly: nothing is computed there, but torch's Python for it is slow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from git_scale.parallel.comm import Group
from git_scale.planning.kernels import flops_of


def on_meta() -> ExitStack:
    """Within it, modules are built on `meta`, their initialisers passed over: 4 times as fast for GIT2."""
    stack = ExitStack()
    stack.enter_context(torch.device("meta"))
    stack.enter_context(_SkipWrites())
    return stack


class GroupOnMeta(Group):
    """A tensor-parallel group of which no other rank is there, for sequence parallelism on `meta`."""

    def __init__(self, size: int) -> None:
        super().__init__(is_alone=True)
        self._size = size
        self.exchanged: list[int] = []
        """The bytes of each exchange, as those of a sum that costs as much: a gathering of B bytes as B / 2."""

    @property
    def size(self) -> int:
        return self._size

    def start_gathering(self, own: Tensor) -> tuple[Tensor, Any]:
        everyones = own.new_empty(self.size * len(own), *own.shape[1:])
        self.exchanged.append(everyones.nbytes // 2)
        return everyones, _Done()

    def start_summing(self, partial: Tensor) -> tuple[Tensor, Any]:
        self.exchanged.append(partial.nbytes // 2)
        return partial.new_empty(len(partial) // self.size, *partial.shape[1:]), _Done()


class _Done:
    def wait(self) -> None: ...


class _SkipWrites(TorchDispatchMode):
    """Skips operations that write values in place, as initialisers do; a shape that changes in place does change."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        writes = func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags
        if writes and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class OperationCache:
    """Remembers the shapes and FLOPs that operations on `meta` result in: blocks repeat, and torch is slow there."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[list[tuple[Any, ...]] | None, int]] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        """What `func` returns, and its FLOPs."""
        if func.is_view:  # two thirds of all; to know one again takes as long as to make it
            return func(*args, **kwargs), 0
        key = (func, _signature(args), _signature(tuple(kwargs.items())) if kwargs else ())
        known = self._known.get(key)
        if known is None:
            result = func(*args, **kwargs)
            self._known[key] = known = _layouts(result, (args, kwargs)), flops_of(func, args, kwargs, result)
            return result, known[1]
        layouts, flops = known
        if layouts is None:
            return func(*args, **kwargs), flops
        made = [
            torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in layouts
        ]
        return made[0] if len(made) == 1 else tuple(made), flops


run_cached = OperationCache()
"""One for all, as the next setting of a run is made of the same operations."""


class CachedOperations(TorchDispatchMode):
    """Within it, operations on `meta` are carried out by `run_cached`, and their FLOPs counted."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, flops = run_cached(func, args, kwargs or {})
        self.flops += flops
        return result


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return type(value), value


def _layouts(result: Any, inputs: Any) -> list[tuple[Any, ...]] | None:
    """Of new tensors, and nothing but tensors; None: this kind of call must be made each time."""
    tensors = [result] if isinstance(result, Tensor) else result
    if not isinstance(tensors, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    old = {leaf.untyped_storage()._cdata for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if not tensors or any(tensor.untyped_storage()._cdata in old for tensor in tensors):
        return None
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
