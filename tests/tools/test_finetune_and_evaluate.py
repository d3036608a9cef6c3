"""Fine-tuning and evaluation as users type them: from a model folder to metrics, predictions and an export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from git_scale.testing.taught import write_taught

ROOT = Path(__file__).parents[2]
TINY = [
    *("--config", "finetune_vqa", "data.max_text_tokens=24", "data.workers=0", "data.texts_per_image=2"),
    *("train.steps=4", "train.global_batch=8", "train.micro_batch=4", "train.precision=fp32"),
    *(
        "optimizer.warmup_steps=1",
        "eval.max_new_tokens=8",
        "eval.images=7",
        "eval.every=4",
        "checkpoint.every=4",
    ),
]


def tool(name: str, *arguments: str | Path, processes: int = 0) -> subprocess.CompletedProcess[str]:
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in foreign}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * bool(
        processes
    )
    command = [sys.executable, *launcher, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.distributed
def test_finetune_evaluate_and_export(squares: Path, tmp_path: Path) -> None:
    taught = write_taught(tmp_path / "taught")
    data = [
        f"data.train={squares / 'train'}",
        f"data.heldout={squares / 'heldout'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    stage3 = ("--ds_config", ROOT / "ds_configs" / "zero3.json")
    done = tool("finetune", *stage3, *TINY, f"init_from={taught}", *data, processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == "step_00000004"

    best, out = tmp_path / "run" / "checkpoints" / "best", tmp_path / "out"
    done = tool(
        "evaluate", "--checkpoint", best, "--data", squares / "heldout", "--out", out, "data.workers=0"
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["eval/texts"] == 12 and 0 <= metrics["eval/vqa_accuracy"] <= 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    in_training = [line for line in map(json.loads, lines) if "eval/vqa_accuracy" in line]
    assert in_training[-1]["eval/vqa_accuracy"] == metrics["eval/vqa_accuracy"]
    assert {frozenset(row) for row in json.loads((out / "results.json").read_text())} == {
        frozenset(["question_id", "answer"])
    }

    again = tool("evaluate", "--checkpoint", best, "--data", squares / "heldout", "--out", out)
    assert again.returncode == 2 and "exists already; --force" in again.stderr

    done = tool("convert_checkpoint", "export", best, tmp_path / "native", "--format", "native")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "native" / "README.md").read_text()
    assert "vqa_accuracy" in card and "finetune" not in done.stderr


def test_finetune_needs_something_to_start_from(tmp_path: Path) -> None:
    done = tool("finetune", "--config", "finetune_vqa", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "init_from is not set" in done.stderr
    done = tool("finetune", "--config", "finetune_vqa", f"init_from={tmp_path / 'nowhere'}")
    assert done.returncode == 2 and str(tmp_path / "nowhere") in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_evaluate_says_what_is_missing(tmp_path: Path, squares: Path) -> None:
    done = tool(
        "evaluate", "--checkpoint", tmp_path, "--data", squares / "heldout", "--out", tmp_path / "out"
    )
    assert done.returncode == 2 and str(tmp_path) in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
