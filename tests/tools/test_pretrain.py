"""The command line as users type it: alone, under torchrun, deepspeed and srun's variables; then captions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from git_scale.config import RunConfig
from git_scale.parallel.topology import free_port
from git_scale.testing.subprocesses import started
from git_scale.testing.tiny import tiny_run

ROOT = Path(__file__).parents[2]
PRETRAIN = str(ROOT / "tools" / "pretrain.py")
DS_CONFIG = str(ROOT / "ds_configs" / "zero3.json")
LIMIT_S = 600


def environment(**more: str) -> dict[str, str]:
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def write_recipe(run: RunConfig, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(run.to_yaml())
    return str(path)


def check_finished(run_dir: Path, world_size: int, step: int = 4) -> None:
    progress = json.loads((run_dir / "checkpoints" / f"step_{step:08d}" / "progress.json").read_text())
    assert (progress["world_size"], progress["step"], progress["samples"]) == (world_size, step, 8 * step)


@pytest.fixture
def recipe(squares: Path, tmp_path: Path) -> str:
    return write_recipe(tiny_run(squares, tmp_path / "run", train={"steps": 4}), tmp_path)


def run_tool(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.distributed
def test_alone_and_again(recipe: str, tmp_path: Path) -> None:
    command = (sys.executable, PRETRAIN, "--config", recipe, "--ds_config", DS_CONFIG)
    first = run_tool(*command)
    assert first.returncode == 0, first.stderr
    check_finished(tmp_path / "run", 1)
    again = run_tool(*command, "train.steps=6")  # the same command goes on
    assert again.returncode == 0, again.stderr
    check_finished(tmp_path / "run", 1, step=6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 4, 5, 6]

    photo = tmp_path / "photo.png"
    photo.write_bytes(_a_square())
    broken = tmp_path / "broken.png"
    broken.write_bytes(_a_square()[:60])
    caption = (sys.executable, str(ROOT / "tools" / "caption.py"), "--checkpoint", str(tmp_path / "run"))
    answer = run_tool(*caption, "--json", str(photo), str(broken), str(tmp_path / "missing.png"))
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["image"] == str(photo)
    assert "broken.png" in answer.stderr and "missing.png" in answer.stderr


def _a_square() -> bytes:
    from git_scale.testing.tiny import draw_square

    return draw_square("red", "big")


@pytest.mark.distributed
def test_split_over_two_ranks_and_on_with_one(recipe: str, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    tool = (PRETRAIN, "--config", recipe, "--ds_config", DS_CONFIG)
    split = run_tool(*torchrun, *tool, "parallel.tp=2")
    assert split.returncode == 0, split.stderr
    check_finished(tmp_path / "run", 2)
    alone = run_tool(sys.executable, *tool, "train.steps=6")
    assert alone.returncode == 0, alone.stderr
    check_finished(tmp_path / "run", 1, step=6)
    refused = run_tool(sys.executable, *tool, "parallel.tp=2")
    assert refused.returncode == 2
    assert "parallel.tp=2 does not divide the 1 processes: set parallel.tp=1" in refused.stderr


@pytest.mark.proof  # as the next but for the program that starts the ranks, which the demo starts as well
@pytest.mark.distributed
def test_under_torchrun(recipe: str, tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run_tool(*launcher, PRETRAIN, "--config", recipe, "--ds_config", DS_CONFIG)
    assert done.returncode == 0, done.stderr
    check_finished(tmp_path / "run", 2)


@pytest.mark.distributed
def test_under_the_deepspeed_launcher(recipe: str, tmp_path: Path) -> None:
    launcher = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2")
    port = ("--master_port", str(free_port()))
    done = run_tool(*launcher, *port, PRETRAIN, "--config", recipe, "--ds_config", DS_CONFIG)
    assert done.returncode == 0, done.stderr
    check_finished(tmp_path / "run", 2)


@pytest.mark.distributed
def test_with_the_variables_of_srun(recipe: str, tmp_path: Path) -> None:
    job = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, PRETRAIN, "--config", recipe, "--ds_config", DS_CONFIG]
    first, second = (
        started(command, env=environment(SLURM_PROCID=task, SLURM_LOCALID=task, **job)) for task in "01"
    )
    with first as one, second as other:
        assert [task.wait(timeout=LIMIT_S) for task in (one, other)] == [0, 0]
    check_finished(tmp_path / "run", 2)


@pytest.mark.distributed
def test_a_stop_signal_ends_with_code_75_and_the_same_command_goes_on(squares: Path, tmp_path: Path) -> None:
    run = tiny_run(squares, tmp_path / "run", train={"steps": 100_000}, log={"every": 1})
    command = (sys.executable, PRETRAIN, "--config", write_recipe(run, tmp_path), "--ds_config", DS_CONFIG)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT_S
    with started(command, env=environment()) as process:
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a pause that leaves the core to the run
                pytest.fail(f"ended with code {process.wait(timeout=0.1)}")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=LIMIT_S) == 75
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    again = run_tool(*command, f"train.steps={step + 1}", "optimizer.warmup_steps=0")
    assert again.returncode == 0, again.stderr
    check_finished(tmp_path / "run", 1, step=step + 1)


@pytest.mark.parametrize("recipe_name", ["demo", "git_base", "git_large", "git_huge", "git2"])
def test_dry_run_of_every_recipe(recipe_name: str, tmp_path: Path) -> None:
    from git_scale.training.arguments import parse_training_arguments
    from git_scale.training.cli import run_training

    arguments = ["--config", recipe_name, "--dry-run", "--world-size", "2"]
    arguments += ["--ds_config", DS_CONFIG, f"run_dir={tmp_path / 'x'}"]
    assert run_training(parse_training_arguments("", arguments)) == 0
    assert not (tmp_path / "x").exists()


def test_wrong_usage_is_one_message_and_code_2(tmp_path: Path) -> None:
    owner = tmp_path / "owner.json"
    owner.write_text('{"train_batch_size": 8}')
    wrong = run_tool(
        sys.executable, PRETRAIN, "--config", "demo", "train.micro_bach=3", "optimizer.encoder_lr=fast"
    )
    assert wrong.returncode == 2
    assert (
        "problems in the configuration" in wrong.stderr and "did you mean train.micro_batch?" in wrong.stderr
    )
    assert "optimizer.encoder_lr='fast'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    refused = run_tool(sys.executable, PRETRAIN, "--config", "demo", "--ds_config", str(owner))
    assert refused.returncode == 2
    assert "set train.global_batch in the recipe" in refused.stderr
    second_rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    silent = run_tool(sys.executable, PRETRAIN, "--config", "demo", "--ds_config", str(owner), **second_rank)
    assert (silent.returncode, silent.stderr.count("train.global_batch")) == (2, 0), "the first rank speaks"
