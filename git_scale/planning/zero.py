"""What of a DeepSpeed configuration decides memory and traffic, with DeepSpeed 0.19.8's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from git_scale.parallel.ds_config import offloads_optimizer, zero_stage


@dataclass(frozen=True)
class Zero:
    """Sizes count elements, not bytes."""

    stage: int
    overlaps: bool
    """Gradients are exchanged beside the backward pass, and one bucket is filled while the other is exchanged."""
    bucket: int
    """Gradients that are exchanged at once."""
    prefetch: int
    """ZeRO-3: parameters that are gathered together, ahead of their use."""
    live: int
    """ZeRO-3: parameters that may be whole at a time."""
    reuse: int
    """ZeRO-3: gathered parameters stay that are used again within so many."""
    persistent: int
    """ZeRO-3: parameters up to this size are never released."""
    optimizer_on_host: bool
    weights_on_host: bool


def read_zero(ds_config: dict[str, Any], precision: str) -> Zero:
    section = ds_config.get("zero_optimization", {})
    stage = zero_stage(ds_config, precision)
    overlaps = section.get("overlap_comm")
    weights_device = (section.get("offload_param") or {}).get("device", "none")
    return Zero(
        stage=stage,
        overlaps=stage == 3 if overlaps is None else bool(overlaps),
        bucket=int(section.get("reduce_bucket_size", 5e8)),
        prefetch=int(section.get("stage3_prefetch_bucket_size", 5e7)),
        live=int(section.get("stage3_max_live_parameters", 1e9)),
        reuse=int(section.get("stage3_max_reuse_distance", 1e9)),
        persistent=int(section.get("stage3_param_persistence_threshold", 1e5)),
        optimizer_on_host=stage > 0 and offloads_optimizer(ds_config),
        weights_on_host=stage == 3 and str(weights_device) != "none",
    )


def with_stage(ds_config: dict[str, Any], stage: int, precision: str) -> dict[str, Any]:
    """The configuration itself if it has that stage, else the shipped ds_configs/zeroN.json's settings."""
    if zero_stage(ds_config, precision) == stage:
        return ds_config
    if stage < 2:
        return {"zero_optimization": {"stage": stage}}
    return {"zero_optimization": {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}}
