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
    # master weights, moments, gradients for the update, and gradients as they are summed (3) or weights on their way
    passing = held.gradient if zero.stage == 3 else held.element
    optimizer = held.part * (FP32 + MOMENTS + FP32 + passing) if zero.optimizer_on_host else 0
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
    gradients = held.part * held.gradient if zero.stage == 3 and not zero.optimizer_on_host else 0
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
    size, again = held.gradient, load.accumulation > 1
    if zero.stage < 2:
        return size * (torch.full_like(done, held.learning) if again else done)
    filled = min(zero.bucket, held.learning)
    if zero.stage == 2 and held.widens:  # a vector of this rank's part, from the first exchange of a step on
        return size * held.part * (torch.ones_like(done) if again else (done > filled).long())
    if zero.stage == 3 or zero.optimizer_on_host:
        return torch.zeros_like(done)
    # Copied out of the bucket once that was exchanged.
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
    # ZeRO-2's bucket is filled as the gradients come, the others with their sums or for their exchange.
    size = held.element if zero.stage == 2 else held.gradient
    copies = _exchange_copies(held, zero, load) if zero.stage > 1 else 0
    return size * buckets + copies * filled * (done >= filled)


def _exchange_copies(held: Holding, zero: Zero, load: Load) -> int:
    """Bytes per element of a full bucket that are there again while it is exchanged."""
    if zero.stage == 3:  # interleaved by rank; gloo's reduce-scatter copies its input
        return held.gradient * (2 if load.kind == "cpu" else 1)
    if not held.widens:
        return held.element * (held.dp > 1)
    # Laid one behind the other as they come (ZeRO-2's in the weights' precision, then widened).
    return held.gradient + (held.element if zero.stage == 2 else 0)


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
    size, learning = held.gradient, held.learning
    if zero.stage == 0:
        copied = min(learning, EXCHANGED_AT_ONCE + held.largest)
        yield Memory("exchange", states, gradients=size * learning, communication=size * copied)
        return
    filled = min(zero.bucket, learning)
    buckets = zero.bucket if load.kind == "cuda" else filled
    bucket_bytes = buckets * (held.element if zero.stage == 2 else size)
    own = _own_gradients(held, zero, load)
    yield Memory("exchange", states, gradients=size * own, communication=bucket_bytes)
    if zero.stage == 1:
        copies = _exchange_copies(held, zero, load) * filled
        first = learning - filled + (own if held.widens else 0)
        earlier = own * (learning - filled) // learning
        for gradients in (first, earlier):
            yield Memory("exchange", states, gradients=size * gradients, communication=bucket_bytes + copies)


def _own_gradients(held: Holding, zero: Zero, load: Load) -> int:
    """Elements of gradients that ZeRO-1 or 2 keep for the update on the device."""
    if held.widens:
        return held.part
    if zero.optimizer_on_host:
        return 0
    return held.gradient_part * (1 + (zero.stage == 2 and load.accumulation > 1))


def _update(states: int, held: Holding, zero: Zero, load: Load) -> Memory:
    size = held.gradient
    if zero.stage == 0:
        return Memory("update", states, gradients=size * held.learning)
    bucket = zero.bucket if load.kind == "cuda" else min(zero.bucket, held.learning)
    communication = size * bucket if zero.stage == 3 else 0  # ZeRO-3's stays
    in_place = held.widens and zero.stage < 3  # a vector of fp32 already, as the optimizer wants it
    gradients = 0  # ZeRO-3's are among the states
    if in_place:
        gradients = size * held.part
    elif zero.stage < 3 and not zero.optimizer_on_host:
        gradients = size * held.gradient_part
    if zero.optimizer_on_host:
        return Memory("update", states, gradients=gradients, communication=communication)
    norm = FP64 * min(held.largest, held.group_part)
    copied = 0 if in_place else held.group_part * (size + (0 if size == FP32 else FP32))
    return Memory(
        "update", states, gradients=gradients, communication=communication, update=max(norm, copied)
    )
