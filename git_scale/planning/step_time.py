"""How long a step takes: a model on peak rate, efficiency, link speeds and latencies, not a measurement.

    compute     FLOPs of both passes with recomputation, from the shapes that run / (peak x efficiency)
    tensor      all-reduces of a tensor-parallel group, over the link within a node if it lies in one; none hidden
    data        gradients and weights over the data-parallel ranks, in rings through all adapters of the nodes

Under overlap_comm, ZeRO-2 exchanges beside the backward pass and ZeRO-3 beside both passes. What shows is what takes
longer than its pass, and what has nothing to hide behind: the forward pass waits for what is gathered first, and
nothing is left to compute beside the last bucket of gradients. After the update, ZeRO-3 gathers each small parameter
on its own.

Left out: the optimizer's update, loading, evaluation, checkpoints, stragglers, what kernels lose to those of an
exchange beside them, and the time that ZeRO-3's Python takes for each module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from git_scale.planning.activations import Timeline
from git_scale.planning.cluster import Cluster
from git_scale.planning.memory import EXCHANGED_AT_ONCE, Load
from git_scale.planning.states import Holding
from git_scale.planning.zero import Zero

# Seconds of a collective without its bytes, as NCCL itself reckons them for rings in LL, the quickest of its
# protocols (src/graph/tuning.cc): to start it, and for each hop within a node and between nodes.
START, HOP, NODE_HOP = 6.6e-6, 1e-6, 2.7e-6


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; `data` is the part that is not hidden."""

    compute: float
    tensor: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.data


@dataclass(frozen=True)
class Ring:
    """Ranks that exchange over links of `link` bytes/s."""

    ranks: int
    nodes: int
    link: float

    def seconds(self, size: float, count: float, turns: int = 1) -> float:
        """Of `count` collectives with `size` bytes in all: a sum goes around twice, gathering and scattering once."""
        if self.ranks == 1:
            return 0.0
        hops = (self.ranks - self.nodes) * HOP + (self.nodes - 1) * NODE_HOP
        return count * (START + turns * hops) + turns * size * (self.ranks - 1) / self.ranks / self.link


def step_time(
    held: Holding, zero: Zero, timeline: Timeline, load: Load, cluster: Cluster, tp: int
) -> StepTime:
    compute = load.micro_batch * timeline.flops / (cluster.peak * cluster.efficiency)
    spanned = -(-tp // cluster.per_node)
    group = Ring(tp, spanned, cluster.intra if spanned == 1 else cluster.inter)
    tensor = group.seconds(load.micro_batch * timeline.summed, timeline.sums, turns=2)
    ring = Ring(held.dp, min(cluster.nodes, held.dp), _data_link(cluster, tp))
    data = _each_step(held, zero, ring)
    if zero.stage > 1:
        data += load.accumulation * _each_micro_batch(held, zero, ring, load, compute)
    return StepTime(load.accumulation * compute, load.accumulation * tensor, data)


def _data_link(cluster: Cluster, tp: int) -> float:
    """Bytes/s at which a data-parallel rank is fed: its group shares its members' adapters of a node."""
    if cluster.world_size <= cluster.per_node:
        return cluster.intra
    return min(cluster.intra, max(1, cluster.per_node // tp) * cluster.inter)


def _each_step(held: Holding, zero: Zero, ring: Ring) -> float:
    """Seconds between the last backward pass and the next forward pass, beside which nothing is computed."""
    gradients = held.gradient * held.learning
    if zero.stage == 0:
        return ring.seconds(gradients, math.ceil(held.learning / EXCHANGED_AT_ONCE), turns=2)
    if zero.stage == 3:
        return ring.seconds(0, held.persistent)  # small as they are, their bytes do not count
    weights = ring.seconds(held.element * held.learning, buckets(held, zero))
    return weights + (ring.seconds(gradients, buckets(held, zero), turns=2) if zero.stage == 1 else 0)


def _each_micro_batch(held: Holding, zero: Zero, ring: Ring, load: Load, compute: float) -> float:
    """Seconds of ZeRO-2's and 3's exchanges that a micro-batch of `compute` seconds does not hide."""
    forward = compute / (4 if load.checkpointing else 3)  # the backward pass is twice as long, and recomputes
    beside = (forward, compute - forward) if zero.overlaps else (0.0, 0.0)
    count, size = buckets(held, zero), held.gradient * held.learning
    turns = 2 if zero.stage == 2 else 1  # ZeRO-2's are all-reduced (use_multi_rank_bucket_allreduce)
    gradients, last = ring.seconds(size, count, turns), ring.seconds(size / count, 1, turns)
    if zero.stage == 2:
        return _shown(gradients, last, beside[1])
    weights = ring.seconds(held.element * held.weights, gatherings(held, zero))
    first = ring.seconds(held.element * min(held.weights, zero.prefetch), 1)
    again = gathered_again(held, zero, load.checkpointing) * weights
    return _shown(weights, first, beside[0]) + _shown(again + gradients, last, beside[1])


def _shown(whole: float, edge: float, beside: float) -> float:
    """Seconds of an exchange that last beyond `beside`; the `edge` never lies beside it."""
    return edge + max(0.0, whole - edge - beside)


def buckets(held: Holding, zero: Zero) -> int:
    """Exchanges that gradients take."""
    return math.ceil(held.learning / zero.bucket)


def gatherings(held: Holding, zero: Zero) -> float:
    """Collectives that bring all weights: whole buckets until the bound of live parameters is reached, then one
    matrix as others are released."""
    early = min(held.weights, zero.live)
    late = held.gathered * (1 - early / held.weights)
    return min(held.gathered, math.ceil(early / max(1, zero.prefetch)) + late)


def gathered_again(held: Holding, zero: Zero, checkpointing: bool) -> float:
    """Share of the weights that the backward pass gathers again; the others are used again soon enough to stay."""
    return 1 - min(held.weights, zero.reuse // (3 if checkpointing else 2), zero.live) / held.weights
