"""The DeepSpeed JSON: what it may hold, and what the run writes into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.parallel.ds_keys import key_problems, stage_problems
from git_scale.text_files import read_json

# DeepSpeed key -> where the run holds that value. A second owner could only disagree.
OWNED_BY_THE_RUN = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch (accumulation is derived)",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer.*",
    "scheduler": "optimizer.warmup_steps and train.steps",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "communication_data_type": "train.gradient_precision",
    "data_types": "train.gradient_precision",
    "gradient_allreduce_op": "train.global_batch (gradients are summed, whatever the ranks)",
    "prescale_gradients": "train.global_batch (gradients are summed, whatever the ranks)",
    "gradient_predivide_factor": "train.global_batch (gradients are summed, whatever the ranks)",
    "steps_per_print": "log.every",
    "tensorboard": "run_dir (TensorBoard is always written)",
    "wandb": "run_dir (TensorBoard is always written)",
    "csv_monitor": "run_dir (metrics.jsonl is always written)",
    "data_efficiency": "data.*",
    "curriculum_learning": "data.*",
}


def read_ds_config(path: str | Path | None) -> dict[str, Any]:
    """DeepSpeed's own settings; none: plain data parallelism, ZeRO stage 0 in fp32 and 1 in bf16.

    Raises ConfigError for a missing or broken file and for every value that the run owns.
    """
    if path is None:
        return {}
    path = Path(path)
    try:
        tree = read_json(path)
    except OSError:
        raise ConfigError([f"--ds_config {path}: no such file; ds_configs/ holds ready ones"]) from None
    except ValueError as error:
        raise ConfigError([f"--ds_config {path}: not valid JSON: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"--ds_config {path}: a DeepSpeed configuration is an object of settings"])
    problems = [
        f"{path}: {key!r} belongs to the run: set {owner} in the recipe and leave it out here"
        for key, owner in OWNED_BY_THE_RUN.items()
        if key in tree
    ]
    zero = tree.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        problems.append(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, found {zero!r}")
        zero = {}
    others = {key: value for key, value in tree.items() if key not in OWNED_BY_THE_RUN}
    problems += [f"{path}: {problem}" for problem in key_problems({**others, "zero_optimization": zero})]
    if problems:
        raise ConfigError(problems)
    return tree


def zero_stage(ds_config: dict[str, Any], precision: str) -> int:
    """The stage that a run at `precision` fp32 or bf16 has: in bf16 at least 1.

    Master weights are needed there in any case, and ZeRO-1 keeps them once for all ranks. DeepSpeed's own optimizer
    for stage 0 (runtime/fp16/unfused_optimizer.py) begins with a step on zero gradients, which makes the first update
    0.744 of Adam's, and leaves the gradients of split weights out of the norm on all tensor-parallel ranks but one.
    """
    stage = int(ds_config.get("zero_optimization", {}).get("stage", 0))
    return max(stage, 1) if precision == "bf16" else stage


def offloads_optimizer(ds_config: dict[str, Any]) -> bool:
    offload = ds_config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return str(offload.get("device", "none")) != "none"


def check_ds_config(ds_config: dict[str, Any], run: RunConfig, world_size: int, has_gpu: bool) -> None:
    """Raises ConfigError for settings that these ranks cannot run under, before DeepSpeed fails in its own words."""
    zero, tp = ds_config.get("zero_optimization", {}), run.parallel.tp
    stage = zero_stage(ds_config, run.train.precision)
    problems = list(stage_problems(zero, stage))
    if run.train.compile and stage == 3:
        problems.append(
            "train.compile=true with ZeRO stage 3, which takes weights away between the layers of a block: set"
            " train.compile=false or take ds_configs/zero1.json or zero2.json"
        )
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device") == "nvme":
            problems.append(
                f"zero_optimization.{part}.device='nvme': checkpoints read states from memory; use 'cpu'"
            )
    nodes_share = zero.get("zero_hpz_partition_size", 1)
    if world_size % nodes_share:
        problems.append(
            f"zero_optimization.zero_hpz_partition_size={nodes_share} does not divide {world_size} ranks: set it to"
            " the GPUs of a node"
        )
    # DeepSpeed makes both kinds of groups of neighbouring ranks, which under tensor parallelism hold different things
    grouped = [
        key
        for key, off in (("zero_hpz_partition_size", 1), ("zero_quantized_gradients", False))
        if zero.get(key, off) != off
    ]
    if tp > 1 and grouped:
        problems.append(
            f"zero_optimization.{' and .'.join(grouped)}: DeepSpeed does not know of parallel.tp={tp} there and would"
            " mix the shares of different ranks: set parallel.tp=1 or leave them out"
        )
    quantised = [key for key in ("zero_quantized_weights", "zero_quantized_gradients") if zero.get(key)]
    if quantised and not has_gpu:
        problems.append(f"zero_optimization.{' and .'.join(quantised)}: DeepSpeed quantises on CUDA only")
    if problems:
        raise ConfigError(problems)


def averages_gradients(stage: int) -> bool:
    """Whether DeepSpeed divides the sum of gradients over the data-parallel ranks by their number.

    It has to under stage 3. Elsewhere it would divide before the sum, under stage 2 in bf16: 0.2 % of rounding
    where the number of ranks is no power of two.
    """
    return stage == 3


def merge_ds_config(ds_config: dict[str, Any], run: RunConfig, dp: int) -> dict[str, Any]:
    """The effective DeepSpeed configuration: its own settings and the run's values."""
    zero = ds_config.get("zero_optimization", {})
    stage = zero_stage(ds_config, run.train.precision)
    return {
        **ds_config,
        "zero_optimization": {**zero, "stage": stage},
        "train_batch_size": run.train.global_batch,
        "train_micro_batch_size_per_gpu": run.train.micro_batch,
        "gradient_accumulation_steps": run.accumulation(dp),
        "gradient_clipping": run.optimizer.clip_norm,
        "bf16": {"enabled": run.train.precision == "bf16"},
        "data_types": {"grad_accum_dtype": run.train.gradient_precision},
        # The kernel that quantises gradients reads fp16 whatever it is given (csrc/quantization/pt_binding.cpp).
        "communication_data_type": "fp16"
        if zero.get("zero_quantized_gradients")
        else run.train.gradient_precision,
        "gradient_allreduce_op": "mean" if averages_gradients(stage) else "sum",
        "steps_per_print": None,
    }
