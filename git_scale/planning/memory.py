"""The highest memory of one rank in each phase of a step, and what it is made of.

    forward and backward   states + activations of the profile + gradients + buckets + gathered parameters
    exchange               gradients that are exchanged after the backward pass (ZeRO 0, 1), and kept from it (2)
    update                 states + gradients + what the optimizer copies and converts of its largest group

What DeepSpeed 0.19.8 allocates was read in its source and held against measurements; docs/planning.md has an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from git_scale.planning.kernels import DeviceKind
from git_scale.planning.partition_sizes import FP32_BYTES, PartitionSizes
from git_scale.planning.profiling import MicroBatchProfile
from git_scale.planning.zero_config import ZeroConfig

ALLREDUCE_ELEMENTS = 500_000_000  # DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE of stage 0
FP64_BYTES = 8  # in which DeepSpeed takes the norm of one gradient after the other


@dataclass(frozen=True)
class PhaseMemory:
    """The bytes on one rank at the highest moment of `phase`."""

    phase: str
    states: int
    """Parameters, fp32 master weights, their average, moments, and ZeRO-3's gradients stay throughout a step."""
    gathered: int = 0
    """ZeRO-3's parameters are whole for their use, or on their way."""
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    communication: int = 0
    """Buckets, and copies made for exchange."""
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
class StepShape:
    """How many samples a rank puts through a step, in which portions."""

    kind: DeviceKind
    micro_batch: int
    accumulation: int
    checkpointing: bool
    sample_bytes: int
    """The loader hands over so many for one sample."""


def host_bytes(sizes: PartitionSizes, zero: ZeroConfig) -> int:
    """Offloading takes so much host memory per rank."""
    parameters = sizes.parameter_partition * sizes.bytes_per_parameter if zero.offload_param else 0
    if not zero.offload_optimizer:
        return parameters
    # master weights, moments (and an average), gradients for the update, and gradients as they are summed (3) or
    # weights on their way
    passing = sizes.bytes_per_gradient if zero.stage == 3 else sizes.bytes_per_parameter
    return parameters + sizes.optimizer_partition * (
        FP32_BYTES + sizes.bytes_beside_weight + FP32_BYTES + passing
    )


def phase_peaks(
    sizes: PartitionSizes, zero: ZeroConfig, profile: MicroBatchProfile, shape: StepShape
) -> Iterator[PhaseMemory]:
    """The highest moments of a step; the first is that of the forward and backward pass."""
    states = _state_bytes(sizes, zero, shape)
    yield _forward_backward_peak(states, sizes, zero, profile, shape)
    if zero.stage < 3:
        yield from _exchange_peaks(states, sizes, zero, shape)
    yield _update_peak(states, sizes, zero, shape)


def _state_bytes(sizes: PartitionSizes, zero: ZeroConfig, shape: StepShape) -> int:
    parameters, per_trainable = sizes.parameters, sizes.bytes_beside_weight
    if zero.stage > 0:
        per_trainable += FP32_BYTES  # the master weights
    if zero.stage == 3:
        parameters = sizes.parameter_partition
        per_trainable += sizes.bytes_per_gradient
    # On a CPU all batches of a step lie where the model lies.
    waiting = (shape.accumulation - 1) * shape.micro_batch * shape.sample_bytes if shape.kind == "cpu" else 0
    return (
        (0 if zero.offload_param else parameters * sizes.bytes_per_parameter)
        + (0 if zero.offload_optimizer else sizes.optimizer_partition * per_trainable)
        + waiting
    )


def _forward_backward_peak(
    states: int, sizes: PartitionSizes, zero: ZeroConfig, profile: MicroBatchProfile, shape: StepShape
) -> PhaseMemory:
    """One micro-batch, at its highest moment."""
    activations = profile.fixed + shape.micro_batch * profile.per_sample
    gradients = _gradient_bytes(sizes, zero, profile.gradients_done, shape)
    communication = _bucket_bytes(sizes, zero, profile.gradients_done, shape)
    gathered = _gathered_bytes(sizes, zero, profile)
    moment = int((activations + gradients + communication + gathered).argmax())
    logits = shape.micro_batch * int(profile.logits[moment])
    return PhaseMemory(
        "forward and backward",
        states,
        int(gathered[moment]),
        int(gradients[moment]),
        int(activations[moment]) - logits,
        logits,
        int(communication[moment]),
    )


def _gradient_bytes(sizes: PartitionSizes, zero: ZeroConfig, done: Tensor, shape: StepShape) -> Tensor:
    """A rank keeps so many of gradients once `done` parameters have theirs."""
    size, again = sizes.bytes_per_gradient, shape.accumulation > 1
    if zero.stage < 2:
        return size * (torch.full_like(done, sizes.trainable) if again else done)
    bucket = min(zero.reduce_bucket_size, sizes.trainable)
    if zero.stage == 2 and sizes.upcasts_gradients:
        # A vector of this rank's partition, from the first exchange of a step on.
        return size * sizes.optimizer_partition * (torch.ones_like(done) if again else (done > bucket).long())
    if zero.stage == 3 or zero.offload_optimizer:
        return torch.zeros_like(done)
    # Copied out of the bucket once that was exchanged.
    exchanged = (done - 1).clamp(min=0) // bucket * bucket
    own = size * sizes.params_in_partition
    return own * exchanged // sizes.trainable + again * own


def _bucket_bytes(sizes: PartitionSizes, zero: ZeroConfig, done: Tensor, shape: StepShape) -> Tensor:
    """The buckets that gradients are copied to take so many, and exchanging a full one."""
    if zero.stage == 0:
        return torch.zeros_like(done)
    bucket = min(zero.reduce_bucket_size, sizes.trainable)
    count = 2 if zero.overlap_comm and zero.stage < 3 else 1
    if shape.kind == "cuda":
        filled = torch.full_like(done, count * zero.reduce_bucket_size)
    elif zero.stage == 3:  # stays between the steps
        filled = torch.full_like(done, bucket)
    elif zero.stage == 2 or zero.overlap_comm:  # what is never written takes no memory on a CPU
        filled = done.clamp(max=bucket) + (done - bucket).clamp(0, (count - 1) * bucket)
    else:
        filled = torch.zeros_like(done)
    # ZeRO-2's bucket is filled as the gradients come, the others with their sums or for their exchange.
    size = sizes.bytes_per_parameter if zero.stage == 2 else sizes.bytes_per_gradient
    copies = _exchange_copies(sizes, zero, shape) if zero.stage > 1 else 0
    return size * filled + copies * bucket * (done >= bucket)


def _exchange_copies(sizes: PartitionSizes, zero: ZeroConfig, shape: StepShape) -> int:
    """While a full bucket is exchanged, copies of it take so many bytes per element."""
    if zero.stage == 3:  # interleaved by rank; gloo's reduce-scatter copies its input
        return sizes.bytes_per_gradient * (2 if shape.kind == "cpu" else 1)
    if not sizes.upcasts_gradients:
        return sizes.bytes_per_parameter * (sizes.dp > 1)
    # Laid one behind the other as they come (ZeRO-2's in the parameters' precision, then upcast).
    return sizes.bytes_per_gradient + (sizes.bytes_per_parameter if zero.stage == 2 else 0)


def _gathered_bytes(sizes: PartitionSizes, zero: ZeroConfig, profile: MicroBatchProfile) -> Tensor:
    done = profile.gradients_done
    if zero.stage < 3 or (sizes.dp == 1 and not zero.offload_param):
        return torch.zeros_like(done)
    # Gathering runs ahead until so many are there. What comes together also lies in the buffer it came in, until the
    # last of it was used; that is before there are logits, unless the backward pass has to gather again.
    live = min(sizes.parameters, zero.max_live_parameters)
    remaining = (sizes.parameters - done).clamp(min=sizes.unreleased, max=live)
    before_logits = (done == 0) & (profile.logits == 0)
    prefetched = min(sizes.parameters, zero.prefetch_bucket_size)
    return sizes.bytes_per_parameter * (remaining + prefetched * (before_logits | (sizes.parameters > live)))


def _exchange_peaks(
    states: int, sizes: PartitionSizes, zero: ZeroConfig, shape: StepShape
) -> Iterator[PhaseMemory]:
    """When the backward pass has ended, with all gradients there: from the first full bucket to the last."""

    def peak(gradients: int, communication: int) -> PhaseMemory:
        return PhaseMemory("exchange", states, gradients=size * gradients, communication=communication)

    size, trainable = sizes.bytes_per_gradient, sizes.trainable
    if zero.stage == 0:
        yield peak(trainable, size * min(trainable, ALLREDUCE_ELEMENTS + sizes.largest_trainable))
        return
    bucket = min(zero.reduce_bucket_size, trainable)
    allocated = zero.reduce_bucket_size if shape.kind == "cuda" else bucket
    bucket_bytes = allocated * (sizes.bytes_per_parameter if zero.stage == 2 else size)
    own = _own_gradients(sizes, zero, shape)
    yield peak(own, bucket_bytes)
    if zero.stage == 1:
        copies = _exchange_copies(sizes, zero, shape) * bucket
        yield peak(trainable - bucket + (own if sizes.upcasts_gradients else 0), bucket_bytes + copies)
        yield peak(own * (trainable - bucket) // trainable, bucket_bytes + copies)


def _own_gradients(sizes: PartitionSizes, zero: ZeroConfig, shape: StepShape) -> int:
    """ZeRO-1 or 2 keep so many elements of gradients for the update on the device."""
    if sizes.upcasts_gradients:
        return sizes.optimizer_partition
    if zero.offload_optimizer:
        return 0
    return sizes.params_in_partition * (1 + (zero.stage == 2 and shape.accumulation > 1))


def _update_peak(states: int, sizes: PartitionSizes, zero: ZeroConfig, shape: StepShape) -> PhaseMemory:
    size = sizes.bytes_per_gradient
    if zero.stage == 0:
        return PhaseMemory("update", states, gradients=size * sizes.trainable)
    bucket = (
        zero.reduce_bucket_size if shape.kind == "cuda" else min(zero.reduce_bucket_size, sizes.trainable)
    )
    communication = size * bucket if zero.stage == 3 else 0  # ZeRO-3's stays
    in_place = (
        sizes.upcasts_gradients and zero.stage < 3
    )  # a vector of fp32 already, as the optimizer wants it
    gradients = 0  # ZeRO-3's are among the states
    if in_place:
        gradients = size * sizes.optimizer_partition
    elif zero.stage < 3 and not zero.offload_optimizer:
        gradients = size * sizes.params_in_partition
    if zero.offload_optimizer:
        return PhaseMemory("update", states, gradients=gradients, communication=communication)
    group = sizes.largest_group_partition
    norm = FP64_BYTES * min(sizes.largest_trainable, group)
    copied = 0 if in_place else group * (size + (0 if size == FP32_BYTES else FP32_BYTES))
    return PhaseMemory(
        "update", states, gradients=gradients, communication=communication, update=max(norm, copied)
    )
