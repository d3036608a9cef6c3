"""A profile of one micro-batch: what its passes have in memory at every moment, from the real model run on `meta`.

No formula: every tensor that an operation makes is followed until it is freed, so that dropout masks, softmax in
fp32, the recomputation of activation checkpointing, temporary tensors of the backward pass and any timm architecture
come out as they are, and so do the FLOPs. Nothing is computed. Not seen: what a kernel allocates within itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from git_scale.config import RunConfig
from git_scale.objectives.training_loss import loss_alone
from git_scale.planning.kernels import DeviceKind, device_kernels
from git_scale.planning.local_model import (
    LocalModel,
    ParameterSpec,
    build_local,
    largest_image,
    parameters_of,
)
from git_scale.planning.longest_text import batch_on_meta, share_with_images
from git_scale.planning.meta import run_cached
from git_scale.precision import DTYPES

PRIME_BATCH = 1_000_003
"""The batch that is run is a multiple of it: so large a prime that it divides no size but those that grow with it."""


@dataclass(frozen=True)
class MicroBatchProfile:
    """Memory, FLOPs and tensor-parallel traffic of one micro-batch on one rank.

    The tensors are int64 [n] with an entry per operation that allocates. They hold neither parameters nor the
    gradients that are kept for the update.
    """

    fixed: Tensor
    """So many bytes are there whatever the batch: gradients of weights while they are made."""
    per_sample: Tensor
    """Each sample of the micro-batch takes so many bytes."""
    logits: Tensor
    """So many of `per_sample` belong to tensors as wide as the vocabulary."""
    gradients_done: Tensor
    """So many elements of parameters have their whole gradient."""
    tp_bytes: int
    """A tensor-parallel group sums so many bytes per sample over its ranks: outputs of row layers (with checkpointing
    twice) and gradients of the inputs of column layers. What sequence parallelism gathers or divides counts half."""
    tp_exchanges: int
    """It does so in so many collectives."""
    parameters: tuple[ParameterSpec, ...]
    """One rank of a tensor-parallel group has these."""
    flops: int
    """Products, convolutions and attention of both passes take so many per sample, recomputation included."""


def profile_micro_batch(run: RunConfig, kind: DeviceKind) -> MicroBatchProfile:
    """Texts and images are taken at their largest. Profiles are cached.

    Raises ConfigError when parallel.tp cannot split the model.
    """
    unrelated = {"steps": 1, "global_batch": 1, "micro_batch": 1}
    return _profile(run.model_copy(update={"train": run.train.model_copy(update=unrelated)}).to_yaml(), kind)


@lru_cache(maxsize=64)
def _profile(recipe: str, kind: DeviceKind) -> MicroBatchProfile:
    import yaml

    run = RunConfig.model_validate(yaml.safe_load(recipe))
    local = build_local(run)
    tracker = _AllocationTracker(local.model)
    ranks = local.group.size  # over which images are divided
    share = share_with_images(run)
    samples = ranks * PRIME_BATCH * share.denominator
    with device_kernels(kind), tracker:
        with _tp_sums(local, run.train.activation_checkpointing) as summed:
            loss = _forward(local.model, run, samples, max(1, int(share * samples)))
        loss.backward()
    summed += local.group.exchanged
    tracker.note_moment()
    fixed, per_sample, logits, gradients_done = torch.tensor(tracker.entries).unbind(1)
    return MicroBatchProfile(
        fixed,
        per_sample * PRIME_BATCH // samples,
        logits * PRIME_BATCH // samples,
        gradients_done,
        tp_bytes=sum(summed) // samples,
        tp_exchanges=len(summed),
        parameters=parameters_of(local.model),
        flops=tracker.flops // samples,
    )


def _forward(model: Any, run: RunConfig, samples: int, images: int) -> Tensor:
    """The loss of a micro-batch, as the trainer computes it; nothing but that keeps the batch in memory."""
    batch = batch_on_meta(run, samples, images, *largest_image(run))
    return loss_alone(run, model, batch, DTYPES[run.train.precision])


@contextmanager
def _tp_sums(local: LocalModel, twice: bool) -> Iterator[list[int]]:
    """Collects the bytes of each all-reduce of the tensor-parallel group; `twice`: those of the forward pass."""
    sizes: list[int] = []

    def note(tensor: Tensor, times: int) -> None:
        sizes.extend(times * [tensor.numel() * tensor.element_size()])

    hooks = [row.register_forward_hook(lambda _, __, output: note(output, 1 + twice)) for row in local.rows]
    hooks += [column.register_forward_pre_hook(lambda _, args: note(args[0], 1)) for column in local.columns]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


class _AllocationTracker(TorchDispatchMode):
    """Follows storages from the operation that makes them until nothing refers to them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.entries: list[list[int]] = []
        self.flops = 0
        self._live = [0, 0, 0]  # fixed, per sample, logits
        self._gradients = 0
        self._known: dict[int, Any] = {}
        self._vocabulary = model.decoder.head.weight.shape[0]
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = None
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, flops = run_cached(func, args, kwargs or {})
        self.flops += flops
        tensors = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        if sum(isinstance(tensor, Tensor) and self._note(tensor) for tensor in tensors):
            self.note_moment()
        return result

    def _note(self, tensor: Tensor) -> bool:
        """True when the tensor lies in a storage not seen before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        per_sample, rest = divmod(storage.nbytes(), PRIME_BATCH)
        if rest:
            change = (storage.nbytes(), 0, 0)
        else:
            is_logits = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
            change = (0, per_sample, per_sample if is_logits else 0)
        self._add(change, 1)

        def free(_: Any) -> None:
            del self._known[key]
            self._add(change, -1)

        self._known[key] = weakref.ref(storage, free)
        return True

    def _add(self, change: tuple[int, int, int], sign: int) -> None:
        for place, size in enumerate(change):
            self._live[place] += sign * size

    def note_moment(self) -> None:
        self.entries.append([*self._live, self._gradients])

    def _take_gradient(self, parameter: Tensor) -> None:
        self._gradients += parameter.numel()
        parameter.grad = None
