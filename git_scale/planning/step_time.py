"""How long a step takes: a model on peak rate, efficiency, link speeds and latencies, not a measurement.

    compute     FLOPs of both passes with recomputation, from the shapes that run / (peak x efficiency)
    tensor      all-reduces of a tensor-parallel group, over the link within a node if it lies in one; none hidden
    data        gradients and parameters over the data-parallel ranks, in rings through all adapters of the nodes

Under overlap_comm, ZeRO-2 exchanges beside the backward pass and ZeRO-3 beside both passes. Exposed is what takes
longer than its pass, and what has nothing to hide behind: the forward pass waits for what is gathered first, and
nothing is left to compute beside the last bucket of gradients. After the update, ZeRO-3 gathers each persistent
parameter on its own.

Left out: the optimizer's update, loading, evaluation, checkpoints, stragglers, what kernels lose to those of an
exchange beside them, and the time that ZeRO-3's Python takes for each module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from git_scale.planning.cluster import Cluster
from git_scale.planning.memory import ALLREDUCE_ELEMENTS, StepShape
from git_scale.planning.partition_sizes import PartitionSizes
from git_scale.planning.profiling import MicroBatchProfile
from git_scale.planning.zero_config import ZeroConfig

# Seconds of a collective without its bytes, as NCCL itself reckons them for rings in LL, the quickest of its
# protocols (src/graph/tuning.cc): to start it, and for each hop within a node and between nodes.
START_S, HOP_S, NODE_HOP_S = 6.6e-6, 1e-6, 2.7e-6


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; `data` is the exposed part alone."""

    compute: float
    tensor: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.data


@dataclass(frozen=True)
class Ring:
    """Ranks that exchange in a ring, over links of `bandwidth` bytes/s."""

    ranks: int
    nodes: int
    bandwidth: float

    def seconds(self, size: float, count: float, turns: int = 1) -> float:
        """`count` collectives with `size` bytes in all take so long; an all-reduce goes around in two turns."""
        if self.ranks == 1:
            return 0.0
        hops = (self.ranks - self.nodes) * HOP_S + (self.nodes - 1) * NODE_HOP_S
        return (
            count * (START_S + turns * hops) + turns * size * (self.ranks - 1) / self.ranks / self.bandwidth
        )


def step_time(
    sizes: PartitionSizes,
    zero: ZeroConfig,
    profile: MicroBatchProfile,
    shape: StepShape,
    cluster: Cluster,
    tp: int,
) -> StepTime:
    compute = shape.micro_batch * profile.flops / (cluster.peak * cluster.efficiency)
    tp_nodes = -(-tp // cluster.per_node)
    tp_ring = Ring(tp, tp_nodes, cluster.intra if tp_nodes == 1 else cluster.inter)
    tensor = tp_ring.seconds(shape.micro_batch * profile.tp_bytes, profile.tp_exchanges, turns=2)
    dp_ring = Ring(sizes.dp, min(cluster.nodes, sizes.dp), _dp_bandwidth(cluster, tp))
    data = _exposed_per_step(sizes, zero, dp_ring)
    if zero.stage > 1:
        data += shape.accumulation * _exposed_per_micro_batch(sizes, zero, dp_ring, shape, compute)
    return StepTime(shape.accumulation * compute, shape.accumulation * tensor, data)


def _dp_bandwidth(cluster: Cluster, tp: int) -> float:
    """A data-parallel rank is fed at so many bytes/s: its group shares its members' adapters of a node."""
    if cluster.world_size <= cluster.per_node:
        return cluster.intra
    return min(cluster.intra, max(1, cluster.per_node // tp) * cluster.inter)


def _exposed_per_step(sizes: PartitionSizes, zero: ZeroConfig, ring: Ring) -> float:
    """Between the last backward pass and the next forward pass nothing is computed beside an exchange."""
    gradients = sizes.bytes_per_gradient * sizes.trainable
    if zero.stage == 0:
        return ring.seconds(gradients, math.ceil(sizes.trainable / ALLREDUCE_ELEMENTS), turns=2)
    if zero.stage == 3:
        return ring.seconds(0, sizes.persistent_parameters)  # small as they are, their bytes do not count
    buckets = reduce_buckets(sizes, zero)
    updated = ring.seconds(sizes.bytes_per_parameter * sizes.trainable, buckets)
    return updated + (ring.seconds(gradients, buckets, turns=2) if zero.stage == 1 else 0)


def _exposed_per_micro_batch(
    sizes: PartitionSizes, zero: ZeroConfig, ring: Ring, shape: StepShape, compute: float
) -> float:
    """ZeRO-2 and 3 exchange so long for a micro-batch beyond what its `compute` seconds hide."""
    forward = compute / (
        4 if shape.checkpointing else 3
    )  # the backward pass is twice as long, and recomputes
    backward = compute - forward
    if not zero.overlap_comm:
        forward = backward = 0.0
    buckets, size = reduce_buckets(sizes, zero), sizes.bytes_per_gradient * sizes.trainable
    turns = 2 if zero.stage == 2 else 1  # ZeRO-2's are all-reduced (use_multi_rank_bucket_allreduce)
    gradients, last = ring.seconds(size, buckets, turns), ring.seconds(size / buckets, 1, turns)
    if zero.stage == 2:
        return _exposed(gradients, last, backward)
    parameters = ring.seconds(sizes.bytes_per_parameter * sizes.parameters, parameter_gathers(sizes, zero))
    first = ring.seconds(sizes.bytes_per_parameter * min(sizes.parameters, zero.prefetch_bucket_size), 1)
    again = regathered_share(sizes, zero, shape.checkpointing) * parameters
    return _exposed(parameters, first, forward) + _exposed(again + gradients, last, backward)


def _exposed(exchange: float, edge: float, compute: float) -> float:
    """An exchange lasts so long beyond the computation beside it; its `edge` has none beside it."""
    return edge + max(0.0, exchange - edge - compute)


def reduce_buckets(sizes: PartitionSizes, zero: ZeroConfig) -> int:
    """Gradients are exchanged in so many collectives."""
    return math.ceil(sizes.trainable / zero.reduce_bucket_size)


def parameter_gathers(sizes: PartitionSizes, zero: ZeroConfig) -> float:
    """All parameters are gathered in so many collectives: full buckets until max_live_parameters are reached, then
    one matrix as others are released."""
    early = min(sizes.parameters, zero.max_live_parameters)
    late = sizes.gathered_matrices * (1 - early / sizes.parameters)
    return min(sizes.gathered_matrices, math.ceil(early / max(1, zero.prefetch_bucket_size)) + late)


def regathered_share(sizes: PartitionSizes, zero: ZeroConfig, checkpointing: bool) -> float:
    """The backward pass gathers this share of the parameters again; the others are used again soon enough to stay."""
    reused = zero.max_reuse_distance // (3 if checkpointing else 2)
    return 1 - min(sizes.parameters, reused, zero.max_live_parameters) / sizes.parameters
