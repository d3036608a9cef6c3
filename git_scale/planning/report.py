"""Text and tables that tell a plan."""

from __future__ import annotations

from collections.abc import Sequence

from git_scale.formatting import GIB, format_duration, format_table
from git_scale.planning.cluster import LIBRARY_BYTES, Cluster
from git_scale.planning.estimate import SettingEstimate
from git_scale.planning.plan import Plan

MEMORY_ROWS = (
    ("model states", "states"),
    ("gathered parameters", "gathered"),
    ("gradients", "gradients"),
    ("activations", "activations"),
    ("logits", "logits"),
    ("communication buffers", "communication"),
)
"""Each row has a part of the highest moment of the forward and backward pass (PhaseMemory)."""


def describe_plan(plan: Plan) -> str:
    """Memory and time of the run's own setting, with and without checkpointing."""
    lines = [
        f"plan for {cluster_in_words(plan.cluster)}: {_setting_in_words(plan)}",
        _memory_table(plan),
        "",
        *_time_lines(plan),
        *_notes(plan),
    ]
    return "\n".join(lines)


def estimates_table(plan: Plan, estimates: Sequence[SettingEstimate]) -> str:
    """A line per setting; the run's own is marked."""
    header = (
        "tp",
        "dp",
        "ZeRO",
        "micro_batch",
        "checkpointing",
        "GiB",
        "step",
        "images/s",
        "MFU",
        "days",
        "GPU-hours",
    )
    rows = [_estimate_row(plan, estimate) for estimate in estimates]
    return format_table(rows, (*header, ""))


def cluster_in_words(cluster: Cluster) -> str:
    nodes = f" in {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    return f"{cluster.world_size} x {cluster.device}{nodes}"


def _setting_in_words(plan: Plan) -> str:
    own = plan.own.setting
    return (
        f"tp {own.tp}, dp {plan.cluster.world_size // own.tp}, ZeRO {own.stage}, micro_batch {own.micro_batch} x"
        f" accumulation {plan.own.accumulation}, checkpointing {_switch(own.checkpointing)}"
    )


def _memory_table(plan: Plan) -> str:
    estimates = (plan.own, plan.switched)
    passes = [estimate.phases[0] for estimate in estimates]
    rows = [(name, *(_gib(getattr(memory, part)) for memory in passes)) for name, part in MEMORY_ROWS]
    names = dict.fromkeys(memory.phase for estimate in estimates for memory in estimate.phases)
    rows += [
        (
            f"all: {name}",
            *(_gib(max(m.total for m in estimate.phases if m.phase == name)) for estimate in estimates),
        )
        for name in names
    ]
    rows.append(("left", *(_gib(plan.cluster.usable - estimate.memory.total) for estimate in estimates)))
    if plan.own.host:
        rows.append(("on the host", *(_gib(estimate.host) for estimate in estimates)))
    other = f"checkpointing {_switch(plan.switched.setting.checkpointing)}"
    return format_table(rows, ("GiB per device", "this run", other))


def _time_lines(plan: Plan) -> list[str]:
    estimate, cluster = plan.own, plan.cluster
    time, batch = estimate.time, plan.run.train.global_batch
    hours = plan.run_seconds(estimate) / 3600
    return [
        f"{plan.flops_per_sample / 1e9:,.1f} GFLOP per sample; {batch / time.total:,.1f} samples/s, MFU"
        f" {plan.utilisation(estimate):.0%}",
        f"step {_seconds(time.total)}: compute {_seconds(time.compute)}, tensor-parallel exchange"
        f" {_seconds(time.tensor)}, data-parallel exchange not hidden {_seconds(time.data)}",
        f"run of {plan.run.train.steps:,} steps: {format_duration(3600 * hours)}, {hours * cluster.world_size:,.0f}"
        " device-hours",
    ]


def _notes(plan: Plan) -> list[str]:
    cluster = plan.cluster
    reserved, memory = LIBRARY_BYTES[cluster.kind] / GIB, cluster.memory / GIB
    lines = [
        f"a model, not a measurement: {cluster.efficiency:.0%} of {cluster.peak / 1e12:.3g} TFLOP/s while computing,"
        f" {8 * cluster.intra / 1e9:,.0f} Gbit/s within and {8 * cluster.inter / 1e9:,.0f} between nodes per device;"
        f" {memory:.1f} GiB less {reserved:.1f} for libraries"
    ]
    if not plan.fits:
        lines.append("DOES NOT FIT")
    elif plan.is_tight:
        lines.append("tight: less than a tenth of the memory is left for fragmentation and evaluation")
    return lines


def _estimate_row(plan: Plan, estimate: SettingEstimate) -> tuple[str, ...]:
    setting, hours = estimate.setting, plan.run_seconds(estimate) / 3600
    return (
        str(setting.tp),
        str(plan.cluster.world_size // setting.tp),
        str(setting.stage),
        f"{setting.micro_batch} x {estimate.accumulation}",
        _switch(setting.checkpointing),
        _gib(estimate.memory.total),
        _seconds(estimate.time.total),
        f"{plan.run.train.global_batch / estimate.time.total:,.0f}",
        f"{plan.utilisation(estimate):.0%}",
        f"{hours / 24:,.1f}",
        f"{hours * plan.cluster.world_size:,.0f}",
        _remark(plan, estimate),
    )


def _remark(plan: Plan, estimate: SettingEstimate) -> str:
    if estimate.memory.total > plan.cluster.usable:
        return "this run: does not fit"
    own = "this run" if estimate.setting == plan.own.setting else ""
    return f"{own}: tight" if estimate.memory.total > plan.cluster.usable_with_margin else own


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _switch(on: bool) -> str:
    return "on" if on else "off"
