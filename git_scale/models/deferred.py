"""First values without a whole model in memory: construction on `meta` is recorded and replayed tensor by tensor.

A model of 5 billion parameters must not exist whole in any process, but the first values of its tensors are whatever
the constructors of timm and torch do, in hundreds of places. So the model is built on the meta device, where nothing
is computed, while every operation is noted down; the value of one tensor is then had by carrying out the operations
that led to it, and those alone. Random ones draw from a generator seeded by (seed, name): a tensor's first value is
the same whatever else is built, in whatever order, on whatever number of ranks.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

META = torch.device("meta")

# Of torch.nn.init, these look at the device themselves and leave a meta tensor alone, so that the recorder below
# would see nothing (torch 2.13). They are noted down as whole calls.
_SILENT_ON_META = ("_no_grad_trunc_normal_", "orthogonal_", "dirac_", "sparse_")


class DeferredModel:
    """Builds a module on `meta`, and gives the first values of its tensors."""

    def __init__(self, build: Callable[[], nn.Module], seed: int) -> None:
        """Raises whatever `build` raises."""
        self._seed = seed
        self._tape = _Tape()
        with torch.inference_mode(False), self._tape.recording():  # under it, views pass the recorder by
            self.module: Any = build()
        self._tensors = {
            **dict(self.module.named_parameters(remove_duplicate=False)),
            **dict(self.module.named_buffers(remove_duplicate=False)),
        }

    def first_value(self, name: str) -> Tensor:
        """The parameter or buffer of that name as its constructors would leave it, on CPU.

        A parameter with two names has one value, that of the name that comes first.
        """
        target = self._tensors[name]
        first_name = next(other for other, tensor in self._tensors.items() if tensor is target)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            torch.default_generator.manual_seed(self.seed_of(first_name))  # leaves the GPUs' alone
            return self._tape.replay(target)

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape

    def seed_of(self, name: str) -> int:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def _fill_computed_buffers(self) -> None:
        """Gives the buffers that no state dict holds, such as tables of relative positions, their values on CPU."""
        for path, module in self.module.named_modules():
            for name in module._non_persistent_buffers_set:
                if module._buffers[name] is not None:
                    module._buffers[name] = self.first_value(f"{path}.{name}" if path else name)

    def filled(self, values: Callable[[str], Tensor]) -> Any:
        """The module with the values of these names, whole on CPU."""
        self._fill_computed_buffers()
        state = {name: values(name) for name in self.module.state_dict()}
        self.module.load_state_dict(state, assign=True)
        return self.module

    def blank_value(self, name: str) -> Tensor:
        """Zeros for a parameter, which something else is to fill; the first value of a buffer."""
        tensor = self._tensors[name]
        if isinstance(tensor, nn.Parameter):
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return self.first_value(name)


@dataclass
class _Tape:
    """The operations of a construction, with their arguments."""

    calls: list[tuple[Callable[..., Any], Any, Any, Any]] = field(default_factory=list)
    """Function, arguments, keyword arguments, result. All tensors stay alive: memory addresses name them."""
    writers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Storage -> the calls whose result lies in it."""

    def recording(self) -> ExitStack:
        stack = ExitStack()
        for name in _SILENT_ON_META:
            function = functools.partial(self._note, getattr(nn.init, name))
            stack.enter_context(mock.patch.object(nn.init, name, function))
        stack.enter_context(META)
        stack.enter_context(_Constants(self))
        stack.enter_context(_Recorder(self))
        return stack

    def _note(self, function: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tensor.device == META:
            self.add(function, (tensor, *args), kwargs, tensor)
            return tensor
        return function(tensor, *args, **kwargs)

    def add(self, function: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        outputs = _meta_tensors(result)
        for tensor in outputs:
            self.writers[_storage(tensor)].append(len(self.calls))
        if outputs:
            self.calls.append((function, args, kwargs, result))

    def replay(self, target: Tensor) -> Tensor:
        made: dict[Any, Tensor] = {}

        def real(value: Any) -> Any:
            if isinstance(value, Tensor) and value.device == META:
                return made[_place(value)]
            return torch.device("cpu") if isinstance(value, torch.device) and value == META else value

        for number in self._leading_to(target):
            function, args, kwargs, result = self.calls[number]
            value = function(*tree_map(real, args), **tree_map(real, kwargs))
            for ours, theirs in zip(tree_leaves(result), tree_leaves(value), strict=True):
                if isinstance(ours, Tensor):
                    made[_place(ours)] = theirs
        return made[_place(target)]

    def _leading_to(self, target: Tensor) -> list[int]:
        """The calls that the target's value depends on, in their order."""
        needed: set[int] = set()
        seen = {_storage(target)}
        unresolved = [_storage(target)]
        while unresolved:
            for number in set(self.writers[unresolved.pop()]) - needed:
                needed.add(number)
                storages = {_storage(tensor) for tensor in _meta_tensors(self.calls[number][1:])}
                unresolved += storages - seen
                seen |= storages
        return sorted(needed)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._tape.add(func, args, kwargs, result)
        return result


class _Constants(TorchFunctionMode):
    """torch.tensor(7) carries its number past the dispatcher."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor):
            self._tape.add(func, args, kwargs or {}, result)
        return result


def _meta_tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.device == META]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> Any:
    """What two tensors share when they are the same numbers: a Parameter wraps its tensor without an operation."""
    return _storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()
