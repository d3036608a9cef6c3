"""The shipped batch scripts on a real SLURM: at their full size, then trained with on two nodes, gloo on CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from slurm_cluster import SlurmCluster, poll

from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import tiny_run

ROOT = Path(__file__).parents[2]
# the waits have limits of their own, which tell what SLURM said
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2400)]

# What a user of CPU nodes types: one task on each of two, or more than one on a node.
CPU = ("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--nodes=2")
ONE_NODE = ("--gpus-per-node=0", "--cpus-per-task=1", "--nodes=1")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project as a user has it, but where logs may lie."""
    for name in ("git_scale", "tools", "slurm", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


RANK = """#!/bin/bash
[[ $1 == -c ]] && exit  # the check of what is installed
echo "rank $SLURM_PROCID/$SLURM_STEP_NUM_TASKS $SLURMD_NODENAME.$SLURM_LOCALID gpus $CUDA_VISIBLE_DEVICES $*"
"""


def test_the_shipped_job_at_its_full_size(full_size: SlurmCluster, checkout: Path) -> None:
    """No option given: 16 nodes with 8 GPUs, each rank sees all of its node's, neighbours share a node."""
    rank = checkout / "rank"
    rank.write_text(RANK)
    rank.chmod(0o755)
    job = full_size.submit("slurm/pretrain_git2.sh", "run_dir=a b", cwd=checkout, GIT_SCALE_PYTHON=str(rank))
    assert full_size.ended(job)["JobState"] == "COMPLETED"
    log = (checkout / f"slurm-git2-{job}.out").read_text().splitlines()
    command = "tools/pretrain.py --config git2 --ds_config ds_configs/zero3_wide.json run_dir=a b"
    assert {line for line in log if line.startswith("rank")} == {
        f"rank {rank}/128 n{rank // 8 + 1}.{rank % 8} gpus 0,1,2,3,4,5,6,7 {command}" for rank in range(128)
    }


@pytest.mark.parametrize("script", ["pretrain_git", "finetune", "evaluate", "study"])
def test_slurm_takes_the_others_as_they_are(full_size: SlurmCluster, checkout: Path, script: str) -> None:
    full_size.submit(f"slurm/{script}.sh", options=("--test-only",), cwd=checkout)


def write_recipe(checkout: Path, squares: Path, steps: int) -> str:
    run = tiny_run(squares, checkout / "run", train={"steps": steps}, log={"every": 1}, data={"workers": 1})
    (checkout / "recipe.yaml").write_text(run.to_yaml())
    return "recipe.yaml"


def progress_of(checkpoint: Path) -> dict[str, int]:
    return json.loads((checkpoint / "progress.json").read_text())


def logged_steps(run_dir: Path) -> list[int]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "train/loss" in line]


def test_two_nodes_train_as_one_run_that_stops_and_goes_on(
    cluster: SlurmCluster, squares: Path, checkout: Path
) -> None:
    steps = 40
    recipe = write_recipe(checkout, squares, steps)
    job = cluster.submit("slurm/pretrain_git2.sh", "--config", recipe, options=CPU, cwd=checkout)
    log, metrics = checkout / f"slurm-git2-{job}.out", checkout / "run" / "metrics.jsonl"
    cluster.runs_until(lambda: metrics.exists() and metrics.stat().st_size > 0, job)
    cluster.signal(job, "USR1")
    ended = cluster.ended(job)
    text = log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    first, last = sorted((checkout / "run" / "checkpoints").iterdir())
    assert 0 < progress_of(first)["step"] < steps
    progress = progress_of(last)
    assert (progress["step"], progress["samples"]) == (steps, 8 * steps)
    assert (progress["world_size"], progress["zero_stage"]) == (2, 3)
    assert logged_steps(checkout / "run") == list(range(1, steps + 1)), "no step is repeated or left out"
    nodes = " ".join(cluster.nodes)
    starts = [text.index(f"job {job} (git2), start {number}: 2 tasks on {nodes}:") for number in (1, 2)]
    assert starts[0] < text.index("asks for a requeue") < starts[1], "one log holds both starts"
    for node in cluster.nodes:
        assert f"launch task StepId={job}.0" in (cluster.folder / f"slurmd-{node}.log").read_text()


def test_a_typo_fails_the_job_at_once(cluster: SlurmCluster, squares: Path, checkout: Path) -> None:
    words = ("--config", write_recipe(checkout, squares, 4), "train.micro_bach=4")
    # from elsewhere, as one may with --chdir
    options = (*CPU, f"--chdir={checkout}")
    job = cluster.submit(str(ROOT / "slurm" / "pretrain_git.sh"), *words, options=options, cwd=ROOT / "tests")
    ended = cluster.ended(job)
    log = (checkout / f"slurm-git-{job}.out").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert log.count("did you mean train.micro_batch?") == 1 and "Traceback" not in log
    assert not (checkout / "run").exists()


def test_finetune_then_evaluate(cluster: SlurmCluster, squares: Path, checkout: Path) -> None:
    write_taught(checkout / "taught")
    small = (
        "data.workers=0",
        "train.steps=2",
        "train.global_batch=8",
        "train.micro_batch=4",
        "eval.images=7",
    )
    recipe = (*small, "train.precision=fp32", "data.max_text_tokens=16", "optimizer.warmup_steps=1")
    data = (f"data.train={squares / 'train'}", f"data.heldout={squares / 'heldout'}", "run_dir=run")
    words = ("init_from=taught", *data, *recipe, "eval.max_new_tokens=8")
    options = (*ONE_NODE, "--ntasks-per-node=2")
    job = cluster.submit("slurm/finetune.sh", *words, options=options, cwd=checkout)
    # submitted at once, as a user would: it waits for the first to have succeeded
    after = (*ONE_NODE, "--ntasks-per-node=1", f"--dependency=afterok:{job}")
    words = ("--checkpoint", "run", "--data", str(squares / "heldout"), "data.workers=0")
    evaluation = cluster.submit("slurm/evaluate.sh", *words, options=after, cwd=checkout)
    assert cluster.ended(job)["JobState"] == "COMPLETED", (
        checkout / f"slurm-git-finetune-{job}.out"
    ).read_text()
    assert progress_of(checkout / "run" / "checkpoints" / "step_00000002")["world_size"] == 2
    assert cluster.ended(evaluation)["JobState"] == "COMPLETED"
    metrics = json.loads((checkout / f"evaluation-{evaluation}" / "metrics.json").read_text())
    assert metrics["eval/texts"] == 7


TASK = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import git_scale.exit
from git_scale.processes import end_with, launcher_processes
from git_scale.stop import StopRequest
with StopRequest() as stop:
    end_with(launcher_processes())
    open(f"ready-{os.environ['SLURM_PROCID']}", "w").close()
    while not stop:
        threading.Event().wait(0.05)
open(f"stopped-{os.environ['SLURM_PROCID']}", "w").close()
"""


def test_tasks_end_with_an_srun_that_is_killed(cluster: SlurmCluster, tmp_path: Path) -> None:
    """SLURM itself leaves them running: their parent is slurmstepd, and the job is still there."""
    (tmp_path / "task.py").write_text(TASK)
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "task.py", str(ROOT)]
    srun = subprocess.Popen(command, cwd=tmp_path, env=cluster.environment)
    poll(lambda: len(list(tmp_path.glob("ready-*"))) == 2, 120, lambda: "the tasks do not start")
    for process in (*psutil.Process(srun.pid).children(), psutil.Process(srun.pid)):
        process.kill()
    srun.wait()
    poll(lambda: len(list(tmp_path.glob("stopped-*"))) == 2, 60, lambda: "the tasks go on")
