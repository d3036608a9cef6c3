"""The keys of a DeepSpeed JSON, at every depth, and the kind of value that each takes.

DeepSpeed itself ignores a key of its JSON that it does not know. Its own models are not asked: a dry run and a plan
would wait seconds for the import. tests/parallel/test_ds_keys.py holds the table against the installed DeepSpeed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

BOOL, COUNT, POSITIVE, SHARE, TEXT, TEXTS = (
    "true or false",
    "a whole number of at least 0",
    "a whole number above 0",
    "a number within [0, 1]",
    "a text",
    "a list of texts",
)
DEVICE = ("none", "cpu", "nvme")

_OFFLOAD = {"device": DEVICE, "nvme_path": TEXT, "buffer_count": COUNT, "pin_memory": BOOL}
ZERO: dict[str, Any] = {
    "stage": COUNT,
    **dict.fromkeys(
        (
            "contiguous_gradients",
            "reduce_scatter",
            "use_multi_rank_bucket_allreduce",
            "allgather_partitions",
            "overlap_comm",
            "compute_grad_norm",
            "load_from_fp32_weights",
            "elastic_checkpoint",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
            "ignore_unused_parameters",
            "legacy_stage1",
            "round_robin_gradients",
            "parameter_alignment",
            "zero_quantized_weights",
            "zero_quantized_nontrainable_weights",
            "zero_quantized_gradients",
            "memory_efficient_linear",
            "pipeline_loading_checkpoint",
            "override_module_apply",
            "log_trace_cache_warnings",
            "enable_sanity_checks",
            "save_muon_momentum_buffer_in_memory",
        ),
        BOOL,
    ),
    **dict.fromkeys(
        (
            "allgather_bucket_size",
            "sub_group_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_model_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_module_granularity_threshold",
        ),
        COUNT,
    ),
    "reduce_bucket_size": POSITIVE,
    "zero_hpz_partition_size": POSITIVE,  # DeepSpeed's bound is 0, which divides nothing
    "offload_param": {**_OFFLOAD, "buffer_size": COUNT, "max_in_cpu": COUNT},
    "offload_optimizer": {
        **_OFFLOAD,
        "pipeline_read": BOOL,
        "pipeline_write": BOOL,
        "fast_init": BOOL,
        "ratio": SHARE,
        "super_offload": BOOL,
        "cpuadam_cores_perc": SHARE,
    },
    "leaf_module": {"classes": TEXTS, "names": TEXTS, "name_suffixes": TEXTS},
}
KEYS: dict[str, Any] = {
    "zero_optimization": ZERO,
    "comms_logger": {"enabled": BOOL, "prof_all": BOOL, "prof_ops": TEXTS, "verbose": BOOL, "debug": BOOL},
    "flops_profiler": {
        "enabled": BOOL,
        "recompute_fwd_factor": SHARE,
        "profile_step": COUNT,
        "module_depth": "a whole number of at least -1",
        "top_modules": COUNT,
        "detailed": BOOL,
        "output_file": TEXT,
    },
    "aio": {
        "block_size": POSITIVE,
        "queue_depth": POSITIVE,
        "intra_op_parallelism": POSITIVE,
        "single_submit": BOOL,
        "overlap_events": BOOL,
        "use_gds": BOOL,
    },
    "timers": {"throughput": {"enabled": BOOL, "synchronized": BOOL}},
    **dict.fromkeys(
        (
            "wall_clock_breakdown",
            "memory_breakdown",
            "dump_state",
            "disable_allgather",
            "disable_python_gc",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
        ),
        BOOL,
    ),
    "log_level": TEXT,
}
# DeepSpeed reads these; here they would have no effect, or one that the loop does not know of.
UNUSED = {
    "activation_checkpointing": "train.activation_checkpointing does it",
    "autotuning": "tools/plan.py finds settings",
    "checkpoint": "checkpoints are git_scale's own",
    "compile": "train.compile does it",
    "compression_training": "leave it out",
    "dataloader_drop_last": "the data's order is git_scale's own",
    "elasticity": "a run goes on with any number of ranks",
    "eigenvalue": "leave it out",
    "expert_parallel": "leave it out",
    "gradient_allreduce_op": "the loss is a mean over the global batch",
    "hybrid_engine": "leave it out",
    "pipeline": "leave it out",
    "progressive_layer_drop": "leave it out",
    "sparse_attention": "leave it out",
    "tensor_parallel": "parallel.tp does it",
    "weight_quantization": "leave it out",
}
UNUSED_IN_ZERO = {
    "zenflow": "its optimizer is another, which checkpoints do not know",
    "cpu_offload": "offload_optimizer is its name now",
    "cpu_offload_param": "offload_param is its name now",
    "cpu_offload_use_pin_memory": "pin_memory of offload_optimizer and offload_param is its name now",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save is its name now",
}

OF_STAGE_3 = (
    *(
        "offload_param",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
    ),
    *(key for key in ZERO if key.startswith("stage3_")),
)


def stage_problems(zero: dict[str, Any], stage: int) -> Iterator[str]:
    """Settings of zero_optimization that have no effect at this stage, without those that switch something off."""
    for key, value in zero.items():
        is_off = (
            value is None or value is False or (isinstance(value, dict) and value.get("device") == "none")
        )
        needed = 1 if stage == 0 and key != "stage" else 3 if stage < 3 and key in OF_STAGE_3 else 0
        if needed and not is_off:
            yield (
                f"zero_optimization.{key} has no effect at ZeRO stage {stage}: leave it out, or set"
                f" zero_optimization.stage={3 if key in OF_STAGE_3 else needed}"
            )


def key_problems(tree: dict[str, Any], known: dict[str, Any] = KEYS, above: str = "") -> Iterator[str]:
    """What is wrong with the keys and the kinds of values of a DeepSpeed JSON, without those that the run owns."""
    for key, value in tree.items():
        dotted, wanted = above + key, known.get(key)
        unused = (UNUSED_IN_ZERO if known is ZERO else UNUSED if known is KEYS else {}).get(key)
        if unused is not None:
            yield f"{dotted!r} is not used here: {unused}"
        elif wanted is None:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {above}{close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
            yield f"{dotted!r}: unknown key{hint}"
        elif isinstance(wanted, dict) and isinstance(value, dict):
            yield from key_problems(value, wanted, f"{dotted}.")
        elif value is not None and not _fits(value, wanted):
            kind = f"one of {', '.join(wanted)}" if isinstance(wanted, tuple) else wanted
            yield f"{dotted}={value!r}: {'an object of settings' if isinstance(wanted, dict) else kind} is needed"


def _fits(value: Any, kind: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and value == value // 1  # 5e8 is a float; neither NaN nor infinity equals its floor
    match kind:
        case "true or false":
            return isinstance(value, bool)
        case "a text":
            return isinstance(value, str)
        case "a list of texts":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "a number within [0, 1]":
            return is_number and 0 <= value <= 1
        case tuple():
            return value in kind
        case dict():
            return False
    return is_whole and value >= {COUNT: 0, POSITIVE: 1}.get(kind, -1)
