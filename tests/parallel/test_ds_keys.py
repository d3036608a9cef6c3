"""The table of DeepSpeed's keys against the installed DeepSpeed, and what is said of a key that it does not hold."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

from git_scale.errors import ConfigError
from git_scale.parallel.ds_config import OWNED_BY_THE_RUN, read_ds_config
from git_scale.parallel.ds_keys import (
    BOOL,
    COUNT,
    DEVICE,
    KEYS,
    POSITIVE,
    SHARE,
    TEXT,
    TEXTS,
    UNUSED,
    UNUSED_IN_ZERO,
    ZERO,
)


def table_of(model: Any) -> dict[str, Any]:
    """The keys that a pydantic model of DeepSpeed reads, with kinds as the table has them."""
    found = {}
    for name, field in model.model_fields.items():
        kind = next((arg for arg in get_args(field.annotation) if arg is not type(None)), field.annotation)
        found[field.alias or name] = kind_of(kind, field)
    return found


def kind_of(kind: Any, field: Any) -> Any:
    if hasattr(kind, "model_fields"):
        return table_of(kind)
    if kind is bool:
        return BOOL
    if kind is float:
        return SHARE
    if kind in (str, Path):
        return TEXTS if "List" in str(field.annotation) else TEXT
    if kind is list:
        return TEXTS
    if isinstance(kind, type) and issubclass(kind, Enum) and not issubclass(kind, int):
        return tuple(str(item.value) for item in kind)
    return POSITIVE if "Gt(gt=0)" in str(field.metadata) else COUNT


def test_the_table_of_zero_is_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = table_of(DeepSpeedZeroConfig)
    assert theirs.keys() == ZERO.keys() | UNUSED_IN_ZERO.keys()
    theirs["zero_hpz_partition_size"] = POSITIVE  # 0 divides no number of ranks
    assert set(theirs["offload_param"]["device"]) == set(DEVICE)
    for part in ("offload_param", "offload_optimizer"):
        theirs[part]["device"] = DEVICE
    assert {key: theirs[key] for key in ZERO} == ZERO


def test_the_other_tables_are_deepspeeds() -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.config import get_aio_config
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    assert table_of(CommsLoggerConfig) == KEYS["comms_logger"]
    assert table_of(DeepSpeedThroughputTimerConfig) == KEYS["timers"]["throughput"]
    assert get_aio_config({"aio": {}}).keys() == KEYS["aio"].keys()
    profiler = DeepSpeedFlopsProfilerConfig({})
    assert vars(profiler).keys() == KEYS["flops_profiler"].keys()


def test_deepspeed_reads_no_other_key() -> None:
    """Every name that its configuration looks up at the top is in the table, the run's, or refused by name."""
    import deepspeed

    text = (Path(deepspeed.__file__).parent / "runtime" / "constants.py").read_text()
    for key in KEYS.keys() - {"zero_optimization", "comms_logger", "flops_profiler", "aio", "timers"}:
        assert f'"{key}"' in text or f"'{key}'" in text, key
    assert not KEYS.keys() & (OWNED_BY_THE_RUN.keys() | UNUSED.keys())


def problems_of(tmp_path: Path, content: str | bytes | dict[str, Any]) -> list[str]:
    path = tmp_path / "ds.json"
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_ds_config(path)
    return [problem.partition(f"{path}: ")[2] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (
            {"zero_optimisation": {"stage": 3}},
            "'zero_optimisation': unknown key; did you mean zero_optimization?",
        ),
        (
            {"zero_optimization": {"stage": 3, "overlap_com": True}},
            "'zero_optimization.overlap_com': unknown key; did you mean zero_optimization.overlap_comm?",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memry": True}}},
            "'zero_optimization.offload_optimizer.pin_memry': unknown key; did you mean"
            " zero_optimization.offload_optimizer.pin_memory?",
        ),
        (
            {"zero_optimization": {"prefetch_bucket_size": 5}},
            "'zero_optimization.prefetch_bucket_size': unknown key; did you mean"
            " zero_optimization.stage3_prefetch_bucket_size?",
        ),
        (
            {"zero_optimization": {"cpu_offload": True}},
            "'zero_optimization.cpu_offload' is not used here: offload_optimizer is its name now",
        ),
        ({"tensor_parallel": {}}, "'tensor_parallel' is not used here: parallel.tp does it"),
        (
            {"zero_optimization": {"overlap_comm": "true"}},
            "zero_optimization.overlap_comm='true': true or false is needed",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "auto"}},
            "zero_optimization.reduce_bucket_size='auto': a whole number above 0 is needed",
        ),
        (
            {"zero_optimization": {"zero_hpz_partition_size": 0}},
            "zero_optimization.zero_hpz_partition_size=0: a whole number above 0 is needed",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            "zero_optimization.offload_optimizer.device='gpu': one of none, cpu, nvme is needed",
        ),
        (
            {"zero_optimization": {"offload_param": "cpu"}},
            "zero_optimization.offload_param='cpu': an object of settings is needed",
        ),
        ({"wall_clock_breakdown": 1}, "wall_clock_breakdown=1: true or false is needed"),
    ],
)
def test_what_deepspeed_would_pass_over_is_refused(
    tree: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert problems_of(tmp_path, tree) == [problem]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1.5", "-1", "true"])
def test_no_whole_number(number: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, f'{{"zero_optimization": {{"allgather_bucket_size": {number}}}}}')
    assert "allgather_bucket_size" in problem and "at least 0 is needed" in problem


def test_all_are_reported_at_once(tmp_path: Path) -> None:
    assert len(problems_of(tmp_path, {"bf16": {}, "zero": {}, "aio": {"block": 1}, "dump_state": 0})) == 4


@pytest.mark.parametrize(
    "content",
    [
        '{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 3}}',
        '{"zero_optimization": {"stage": 1, "stage": 3}}',
    ],
)
def test_a_key_that_stands_twice(content: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, content)
    assert "stands twice in one object" in problem


def test_a_byte_order_mark_and_floats_of_whole_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(b'\xef\xbb\xbf{"zero_optimization": {"reduce_bucket_size": 5e8, "overlap_comm": null}}')
    assert read_ds_config(path)["zero_optimization"]["reduce_bucket_size"] == 5e8
