"""What of a DeepSpeed configuration decides memory and traffic, by DeepSpeed's own names and with 0.19.8's defaults.

DeepSpeed's class DeepSpeedZeroConfig has the same fields and more; importing it takes seconds, which a dry run saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from git_scale.parallel.ds_config import offloads_optimizer, zero_stage


@dataclass(frozen=True)
class ZeroConfig:
    """Sizes are numbers of elements; those from `prefetch_bucket_size` on are ZeRO-3's alone."""

    stage: int
    overlap_comm: bool
    """Gradients are exchanged beside the backward pass, and one bucket is filled while the other is exchanged."""
    reduce_bucket_size: int
    """So many gradients are exchanged at once."""
    prefetch_bucket_size: int
    """So many parameters are gathered together, ahead of their use."""
    max_live_parameters: int
    """So many parameters may be whole at a time."""
    max_reuse_distance: int
    """A gathered parameter stays if fewer than so many others are used before it is used again."""
    param_persistence_threshold: int
    """A parameter of up to this size is persistent: it is never released."""
    offload_optimizer: bool
    """Master weights and moments lie in host memory."""
    offload_param: bool
    """Parameters lie in host memory."""


def read_zero_config(ds_config: dict[str, Any], precision: str) -> ZeroConfig:
    section = ds_config.get("zero_optimization", {})
    stage = zero_stage(ds_config, precision)
    overlap_comm = section.get("overlap_comm")
    offload_param = section.get("offload_param") or {}
    return ZeroConfig(
        stage=stage,
        overlap_comm=stage == 3 if overlap_comm is None else bool(overlap_comm),
        reduce_bucket_size=int(section.get("reduce_bucket_size", 5e8)),
        prefetch_bucket_size=int(section.get("stage3_prefetch_bucket_size", 5e7)),
        max_live_parameters=int(section.get("stage3_max_live_parameters", 1e9)),
        max_reuse_distance=int(section.get("stage3_max_reuse_distance", 1e9)),
        param_persistence_threshold=int(section.get("stage3_param_persistence_threshold", 1e5)),
        offload_optimizer=stage > 0 and offloads_optimizer(ds_config),
        offload_param=stage == 3 and str(offload_param.get("device", "none")) != "none",
    )


def with_zero_stage(ds_config: dict[str, Any], stage: int, precision: str) -> dict[str, Any]:
    """The configuration itself if it has that stage, else the shipped ds_configs/zeroN.json's settings."""
    if zero_stage(ds_config, precision) == stage:
        return ds_config
    if stage < 2:
        return {"zero_optimization": {"stage": stage}}
    return {"zero_optimization": {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}}
