"""What one rank holds of weights, gradients and optimizer: counts of elements, taken from the model's own parameters.

The layout is DeepSpeed 0.19.8's (runtime/zero/stage_1_and_2.py, stage3.py; stage 0, in fp32 alone: torch's AdamW).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from git_scale.planning.local_model import Parameter
from git_scale.planning.zero import Zero

FP32 = 4
BYTES = {"fp32": FP32, "bf16": 2}
MOMENTS = 8
"""Bytes of AdamW's two fp32 moments."""


@dataclass(frozen=True)
class Holding:
    """Elements on one rank of a tensor-parallel group, whole (before ZeRO) and as its part (after it)."""

    element: int
    """Bytes of a weight, and of its gradient as the backward pass makes it: 2 in bf16, 4 in fp32."""
    gradient: int
    """Bytes of a gradient as it is summed over micro-batches and ranks."""
    dp: int
    weights: int
    """All parameters, frozen ones included."""
    learning: int
    largest: int
    """The largest learning parameter."""
    part: int
    """Learning ones whose moments this rank keeps."""
    weights_part: int
    """Of all parameters, this rank's under ZeRO-3."""
    gradient_part: int
    """Gradients that a rank keeps whole under ZeRO-1 and 2 where they are summed in the precision of the weights:
    those that reach into its part."""
    group_part: int
    """This rank's part of the largest group of parameters, which the optimizer updates at once."""
    gathered: int
    """The number of matrices (not of their elements) that ZeRO-3 gathers before a layer uses them. Vectors are not
    counted: they are gathered together with the matrix of their layer."""
    persistent: int
    """Parameters so small that it keeps them whole; it gathers each on its own after an update."""
    lingering: int
    """Whole to the end of a backward pass under ZeRO-3: small ones, and tables, whose input has no gradient that
    would tell DeepSpeed to release them."""

    @property
    def widens(self) -> bool:
        """Gradients are summed in a higher precision than they are made in."""
        return self.gradient > self.element


def hold(parameters: Sequence[Parameter], zero: Zero, dp: int, gradient: int = FP32) -> Holding:
    """Of a rank's parameters (local_model.py) under `zero` over `dp` data-parallel ranks.

    gradient: bytes of a gradient as it is summed.
    """
    learning = [parameter for parameter in parameters if parameter.learns]
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)  # as training/optimizer.py makes them
    for parameter in learning:
        groups[parameter.tower, parameter.ndim >= 2].append(parameter.numel)
    split = 1 if zero.stage == 0 else dp
    return Holding(
        element=parameters[0].element,
        gradient=gradient,
        dp=dp,
        weights=sum(parameter.numel for parameter in parameters),
        learning=sum(parameter.numel for parameter in learning),
        largest=max(parameter.numel for parameter in learning),
        part=sum(math.ceil(parameter.numel / split) for parameter in learning),
        weights_part=sum(math.ceil(parameter.numel / dp) for parameter in parameters),
        gradient_part=_most_touched(list(groups.values()), dp),
        group_part=max(math.ceil(sum(group) / split) for group in groups.values()),
        gathered=sum(p.numel > zero.persistent and p.ndim >= 2 for p in parameters),
        persistent=sum(p.numel <= zero.persistent for p in parameters),
        lingering=sum(p.numel for p in parameters if p.numel <= zero.persistent or p.is_table),
    )


def _most_touched(groups: list[list[int]], dp: int) -> int:
    """Elements of the parameters that reach into a rank's part of each group, for the rank that has most."""
    touched = [0] * dp
    for sizes in groups:
        part = math.ceil(sum(sizes) / dp)
        start = 0
        for size in sizes:
            for rank in range(start // part, (start + size - 1) // part + 1):
                touched[rank] += size
            start += size
    return max(touched)
