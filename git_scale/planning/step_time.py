"""How long a step takes: a model on peak rate, efficiency and link speeds, not a measurement.

    compute     FLOPs of both passes with recomputation, from the shapes that run / (peak x efficiency)
    tensor      all-reduces of a tensor-parallel group, over the link within a node; none hidden
    data        gradients and weights over the data-parallel ranks, in rings through all adapters of the nodes; what
                overlap_comm runs beside the computation shows only where it takes longer than that

Left out: the optimizer's update, loading, evaluation, checkpoints, stragglers.
"""

from __future__ import annotations

from dataclasses import dataclass

from git_scale.planning.activations import Timeline
from git_scale.planning.cluster import Cluster
from git_scale.planning.memory import Load
from git_scale.planning.states import Holding
from git_scale.planning.zero import Zero


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; `data` is the part that is not hidden."""

    compute: float
    tensor: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.data


def step_time(
    held: Holding, zero: Zero, timeline: Timeline, load: Load, cluster: Cluster, tp: int
) -> StepTime:
    compute = load.micro_batch * timeline.flops / (cluster.peak * cluster.efficiency)
    tensor = _ring(2 * load.micro_batch * timeline.summed, tp, cluster.intra)
    link = _data_link(cluster, tp)
    each_micro, each_step = (_ring(size, held.dp, link) for size in _traffic(held, zero, load))
    if zero.overlaps:
        each_micro = max(0.0, each_micro - compute)
    count = load.accumulation
    return StepTime(count * compute, count * tensor, count * each_micro + each_step)


def _ring(size: float, ranks: int, link: float) -> float:
    """Seconds for a ring to pass on `size` bytes per rank."""
    return size * (ranks - 1) / ranks / link


def _data_link(cluster: Cluster, tp: int) -> float:
    """Bytes/s at which a data-parallel rank is fed: its group shares its members' adapters of a node."""
    if cluster.world_size <= cluster.per_node:
        return cluster.intra
    return min(cluster.intra, max(1, cluster.per_node // tp) * cluster.inter)


def _traffic(held: Holding, zero: Zero, load: Load) -> tuple[int, int]:
    """Bytes that each rank passes on for a micro-batch, and once more for a step."""
    gradients, weights = held.element * held.learning, held.element * held.weights
    if zero.stage == 0:
        return 0, 2 * gradients
    if zero.stage == 1:
        return 0, 2 * gradients + weights
    if zero.stage == 2:  # buckets are all-reduced here as well (use_multi_rank_bucket_allreduce)
        return 2 * gradients, weights
    # What is used again soon enough is not gathered again for the backward pass.
    passes = 3 if load.checkpointing else 2
    kept = held.element * min(held.weights, zero.reuse // passes, zero.live)
    return 2 * weights - kept + gradients, 0
