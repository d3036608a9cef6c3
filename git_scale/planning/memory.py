"""The highest memory of one rank over the phases of a step, and what it is made of.

    forward and backward   states + the timeline of activations + gradients + buckets + gathered parameters
    exchange               gradients that are exchanged after the backward pass (ZeRO 0, 1), and kept from it (2)
    update                 states + gradients + what the optimizer copies and converts of its largest group

What DeepSpeed 0.19.8 allocates was read in its source and held against measurements (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from git_scale.planning.activations import Timeline
from git_scale.planning.kernels import Kind
from git_scale.planning.states import FP32, MOMENTS, Holding
from git_scale.planning.zero import Zero

EXCHANGED_AT_ONCE = 500_000_000  # elements; DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE of stage 0
FP64 = 8  # in which DeepSpeed takes the norm of one gradient after the other


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the highest moment of `phase`."""

    phase: str
    states: int
    """Weights, fp32 master weights, moments, and ZeRO-3's gradients."""
    gathered: int = 0
    """ZeRO-3: parameters that are whole for their use or on their way."""
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    communication: int = 0
    """Buckets and copies made for exchange."""
    update: int = 0
    """Copies made for the norm and the optimizer."""

    @property
    def total(self) -> int:
        return (
            self.states
            + self.gathered
            + self.gradients
            + self.activations
            + self.logits
            + self.communication
            + self.update
        )


@dataclass(frozen=True)
class Load:
    """What a step asks of a rank."""

    kind: Kind
    micro_batch: int
    accumulation: int
    checkpointing: bool
    inputs: int
    """Bytes of one sample as it comes from the loader."""


def on_host(held: Holding, zero: Zero) -> int:
    """Bytes of host memory per rank that offloading takes."""
    optimizer = held.part * (FP32 + MOMENTS + FP32 + held.element) if zero.optimizer_on_host else 0
    return optimizer + (held.weights_part * held.element if zero.weights_on_host else 0)


def phases(held: Holding, zero: Zero, timeline: Timeline, load: Load) -> Iterator[Memory]:
    """The highest moments of a step; the first is that of the forward and backward pass."""
    states = _states(held, zero, load)
    yield _pass(states, held, zero, timeline, load)
    if zero.stage < 3:
        yield from _exchange(states, held, zero, load)
    yield _update(states, held, zero, load)


def _states(held: Holding, zero: Zero, load: Load) -> int:
    size = held.element
    weights = (held.weights_part if zero.stage == 3 else held.weights) * size
    if zero.weights_on_host:
        weights = 0
    master = 0 if zero.stage == 0 else held.part * FP32
    optimizer = 0 if zero.optimizer_on_host else master + held.part * MOMENTS
    gradients = held.part * size if zero.stage == 3 and not zero.optimizer_on_host else 0
    # On a CPU all batches of a step lie where the model lies.
    waiting = (load.accumulation - 1) * load.micro_batch * load.inputs if load.kind == "cpu" else 0
    return weights + optimizer + gradients + waiting


def _pass(states: int, held: Holding, zero: Zero, timeline: Timeline, load: Load) -> Memory:
    """One micro-batch, at its highest moment."""
    activations = timeline.fixed + load.micro_batch * timeline.per_sample
    gradients = _kept_gradients(held, zero, timeline.gradients, load)
    communication = _buckets(held, zero, timeline.gradients, load)
    gathered = _gathered(held, zero, timeline)
    moment = int((activations + gradients + communication + gathered).argmax())
    logits = load.micro_batch * int(timeline.logits[moment])
    return Memory(
        "forward and backward",
        states,
        int(gathered[moment]),
        int(gradients[moment]),
        int(activations[moment]) - logits,
        logits,
        int(communication[moment]),
    )


def _kept_gradients(held: Holding, zero: Zero, done: Tensor, load: Load) -> Tensor:
    """Bytes after `done` parameters have their gradients."""
    size, again = held.element, load.accumulation > 1
    if zero.stage < 2:
        return size * (torch.full_like(done, held.learning) if again else done)
    if zero.stage == 3 or zero.optimizer_on_host:
        return torch.zeros_like(done)
    # Copied out of the bucket once that was exchanged.
    filled = min(zero.bucket, held.learning)
    exchanged = (done - 1).clamp(min=0) // filled * filled
    part = size * held.gradient_part
    return part * exchanged // held.learning + again * part


def _buckets(held: Holding, zero: Zero, done: Tensor, load: Load) -> Tensor:
    """Bytes of the buckets that gradients are copied to, and of what exchanging a full one takes."""
    if zero.stage == 0:
        return torch.zeros_like(done)
    filled = min(zero.bucket, held.learning)
    count = 2 if zero.overlaps and zero.stage < 3 else 1
    if load.kind == "cuda":
        buckets = torch.full_like(done, count * zero.bucket)
    elif zero.stage == 3:  # stays between the steps
        buckets = torch.full_like(done, filled)
    elif zero.stage == 2 or zero.overlaps:  # what is never written takes no memory on a CPU
        buckets = done.clamp(max=filled) + (done - filled).clamp(0, (count - 1) * filled)
    else:
        buckets = torch.zeros_like(done)
    if zero.stage > 1:
        buckets = buckets + _exchange_copies(held, zero, load) * filled * (done >= filled)
    return held.element * buckets


def _exchange_copies(held: Holding, zero: Zero, load: Load) -> int:
    """How often a full bucket is there again while it is exchanged."""
    if zero.stage == 3:
        return 2 if load.kind == "cpu" else 1  # interleaved by rank; gloo's reduce-scatter copies its input
    return int(held.dp > 1)


def _gathered(held: Holding, zero: Zero, timeline: Timeline) -> Tensor:
    done = timeline.gradients
    if zero.stage < 3 or (held.dp == 1 and not zero.weights_on_host):
        return torch.zeros_like(done)
    # Gathering runs ahead until so many are there. What comes together also lies in the buffer it came in, until the
    # last of it was used; that is before there are logits, unless the backward pass has to gather again.
    live = min(held.weights, zero.live)
    remaining = (held.weights - done).clamp(min=held.lingering, max=live)
    before_logits = (done == 0) & (timeline.logits == 0)
    arriving = min(held.weights, zero.prefetch) * (before_logits | (held.weights > live))
    return held.element * (remaining + arriving)


def _exchange(states: int, held: Holding, zero: Zero, load: Load) -> Iterator[Memory]:
    """When the backward pass has ended, with all gradients there: from the first full bucket to the last."""
    size, learning = held.element, held.learning
    if zero.stage == 0:
        copied = min(learning, EXCHANGED_AT_ONCE + held.largest)
        yield Memory("exchange", states, gradients=size * learning, communication=size * copied)
        return
    filled = min(zero.bucket, learning)
    buckets = zero.bucket if load.kind == "cuda" else filled
    own = (
        0
        if zero.optimizer_on_host
        else held.gradient_part * (1 + (zero.stage == 2 and load.accumulation > 1))
    )
    yield Memory("exchange", states, gradients=size * own, communication=size * buckets)
    if zero.stage == 1:
        copies = _exchange_copies(held, zero, load) * filled
        earlier = own * (learning - filled) // learning
        for gradients in (learning - filled, earlier):
            yield Memory(
                "exchange", states, gradients=size * gradients, communication=size * (buckets + copies)
            )


def _update(states: int, held: Holding, zero: Zero, load: Load) -> Memory:
    size = held.element
    if zero.stage == 0:
        return Memory("update", states, gradients=size * held.learning)
    bucket = zero.bucket if load.kind == "cuda" else min(zero.bucket, held.learning)
    communication = size * bucket if zero.stage == 3 else 0  # ZeRO-3's stays
    if zero.optimizer_on_host:
        return Memory("update", states, communication=communication)
    norm = FP64 * min(held.largest, held.group_part)
    copied = held.group_part * (size + (0 if size == FP32 else FP32))
    gradients = 0 if zero.stage == 3 else size * held.gradient_part  # ZeRO-3's are among the states
    return Memory(
        "update", states, gradients=gradients, communication=communication, update=max(norm, copied)
    )
