"""How many elements of parameters, gradients and optimizer state one rank has, whole and in ZeRO's partitions.

    git_base on 8 GPUs under ZeRO-1: 153,178,170 parameters on every rank, the moments of 19,147,272 on each

The layout is DeepSpeed 0.19.8's (runtime/zero/stage_1_and_2.py, stage3.py; stage 0, in fp32 alone: torch's AdamW).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from git_scale.planning.local_model import ParameterSpec
from git_scale.planning.zero_config import ZeroConfig

FP32_BYTES = 4
MOMENT_BYTES = 8
"""AdamW keeps two moments of 4 bytes for each parameter."""


@dataclass(frozen=True)
class PartitionSizes:
    """Sizes are numbers of elements unless another unit is said; a partition is what ZeRO leaves to one of `dp`."""

    bytes_per_parameter: int
    """A parameter, and its gradient as the backward pass makes it, take 2 in bf16 and 4 in fp32."""
    bytes_per_gradient: int
    """A gradient takes so many as it is summed over micro-batches and ranks."""
    dp: int
    parameters: int
    """All parameters count, frozen ones included."""
    trainable: int
    largest_trainable: int
    """The largest trainable parameter has so many."""
    optimizer_partition: int
    """A rank keeps the moments of so many trainable ones."""
    parameter_partition: int
    """ZeRO-3 leaves so many of all parameters on a rank."""
    params_in_partition: int
    """DeepSpeed's name for the parameters that reach into a rank's partition. Under ZeRO-1 and 2 it keeps the whole
    gradient of each, where gradients are summed in the precision of the parameters."""
    largest_group_partition: int
    """A rank's partition of the largest parameter group, which the optimizer updates at once, has so many."""
    gathered_matrices: int
    """ZeRO-3 gathers so many matrices (not elements) before a layer uses them. Vectors are not counted: they are
    gathered together with the matrix of their layer."""
    persistent_parameters: int
    """So many parameters (not elements) are small enough for ZeRO-3 to keep them whole; it gathers each on its own
    after an update."""
    unreleased: int
    """ZeRO-3 keeps so many whole until a backward pass ends: persistent parameters, and embedding tables, whose input
    has no gradient that would tell DeepSpeed to release them."""
    bytes_beside_weight: int = MOMENT_BYTES
    """Of each that learns a rank keeps so many beside the fp32 weight: moments, and the average of a run with one."""

    @property
    def upcasts_gradients(self) -> bool:
        """Gradients are summed in a higher precision than they are made in."""
        return self.bytes_per_gradient > self.bytes_per_parameter


def partition_sizes(
    parameters: Sequence[ParameterSpec],
    zero: ZeroConfig,
    dp: int,
    bytes_per_gradient: int = FP32_BYTES,
    has_average: bool = False,
) -> PartitionSizes:
    """`parameters` are those of one tensor-parallel rank (local_model.py); has_average: optimizer.ema is set."""
    trainable = [parameter for parameter in parameters if parameter.learns]
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)  # as training/optimizer.py makes them
    for parameter in trainable:
        groups[parameter.tower, parameter.ndim >= 2].append(parameter.numel)
    ranks = 1 if zero.stage == 0 else dp
    threshold = zero.param_persistence_threshold
    return PartitionSizes(
        bytes_per_parameter=parameters[0].element,
        bytes_per_gradient=bytes_per_gradient,
        dp=dp,
        parameters=sum(parameter.numel for parameter in parameters),
        trainable=sum(parameter.numel for parameter in trainable),
        largest_trainable=max(parameter.numel for parameter in trainable),
        optimizer_partition=sum(math.ceil(parameter.numel / ranks) for parameter in trainable),
        parameter_partition=sum(math.ceil(parameter.numel / dp) for parameter in parameters),
        params_in_partition=_most_in_partition(list(groups.values()), dp),
        largest_group_partition=max(math.ceil(sum(group) / ranks) for group in groups.values()),
        gathered_matrices=sum(p.numel > threshold and p.ndim >= 2 for p in parameters),
        persistent_parameters=sum(p.numel <= threshold for p in parameters),
        unreleased=sum(p.numel for p in parameters if p.numel <= threshold or p.is_table),
        bytes_beside_weight=MOMENT_BYTES + (FP32_BYTES if has_average else 0),
    )


def _most_in_partition(groups: list[list[int]], dp: int) -> int:
    """The rank that has most has so many elements in parameters that reach into its partition of each group."""
    reaching = [0] * dp
    for numels in groups:
        partition = math.ceil(sum(numels) / dp)
        start = 0
        for numel in numels:
            for rank in range(start // partition, (start + numel - 1) // partition + 1):
                reaching[rank] += numel
            start += numel
    return max(reaching)
