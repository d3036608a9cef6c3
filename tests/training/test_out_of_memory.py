"""A device without memory: one message, code 2, the last checkpoint untouched, and no rank that waits for ever."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from git_scale.checkpoint.layout import published
from git_scale.checkpoint.weights import check_files
from git_scale.parallel.topology import free_port
from git_scale.testing.tiny import tiny_run
from git_scale.training.out_of_memory import OutOfMemory, in_phase, ran_out

ROOT = Path(__file__).parents[2]
TOO_MUCH = 1 << 48  # bytes

# Asks for what no machine has, in the third step or while the model is built, on the last rank alone.
TOOL = textwrap.dedent(
    f"""
    import os, sys
    import torch
    from git_scale.exit import run_and_exit
    from git_scale.models.git import GitModel
    from git_scale.training import build, trainer
    from tools.pretrain import main

    where, last = sys.argv.pop(1), os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    def asking(function, when):
        def ask(*args, **kwargs):
            if last and when(*args):
                torch.empty({TOO_MUCH})
            return function(*args, **kwargs)
        return ask
    if where == "step":
        plain = trainer.Trainer.micro_losses
        trainer.Trainer.micro_losses = asking(plain, lambda trainer, batch, counts: trainer.step == 2)
    if where == "start":
        build.parameter_groups = asking(build.parameter_groups, lambda *args: True)
    run_and_exit(main)
    """
)


def run(folder: Path, where: str, world_size: int) -> subprocess.CompletedProcess[str]:
    script = folder / "tool.py"
    script.write_text(TOOL)
    command = [sys.executable, str(script)]
    if world_size > 1:
        launcher = ("torch.distributed.run", f"--nproc-per-node={world_size}", f"--master-port={free_port()}")
        command = [sys.executable, "-m", *launcher, str(script)]
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    given = [where, "--config", str(folder / "recipe.yaml")]
    return subprocess.run([*command, *given], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("where", "world_size"),
    [
        pytest.param("step", 1, marks=pytest.mark.proof),
        pytest.param("start", 1, marks=pytest.mark.proof),
        ("step", 2),
    ],
)
def test_it_ends_with_one_message_and_the_checkpoints_as_they_were(
    squares: Path, tmp_path: Path, where: str, world_size: int
) -> None:
    recipe = tiny_run(squares, tmp_path / "run", train={"steps": 4}, checkpoint={"every": 1})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    ended = run(tmp_path, where, world_size)
    phase = "step 3" if where == "step" else "the start"
    assert f"rank {world_size - 1}: out of memory in {phase}:" in ended.stderr, ended.stderr
    assert "DefaultCPUAllocator" in ended.stderr
    assert "the plan had foreseen" in ended.stderr and "settings near it that need less" in ended.stderr
    assert ended.returncode == (2 if world_size == 1 else 1), "torchrun makes 1 of every code"
    if world_size == 1:
        assert "Traceback" not in ended.stderr
    saved = published(tmp_path / "run")
    assert [path.name for path in saved] == (["step_00000002", "step_00000001"] if where == "step" else [])
    for checkpoint in saved:
        check_files(checkpoint)
    again = run(tmp_path, "nowhere", 1)
    assert again.returncode == 0, again.stderr
    assert published(tmp_path / "run")[0].name == "step_00000004"


def test_the_innermost_phase_is_named() -> None:
    expected = pytest.raises(OutOfMemory, match=r"^out of memory in step 3: .*DefaultCPUAllocator")
    with expected, in_phase("the run"), in_phase("step 3"):
        torch.empty(TOO_MUCH)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_errors_are_left_as_they_are(error: Exception, memory: bool) -> None:
    assert ran_out(error) is memory
    with pytest.raises(OutOfMemory if memory else type(error)), in_phase("the start"):
        raise error
