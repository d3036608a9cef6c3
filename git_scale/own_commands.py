"""The project's commands, run one after the other as a user would type them on a machine of two cores.

call("tools/prepare_data.py", "digits", "runs/demo-data")
call_on_all("tools/pretrain.py", "--config", "demo")
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from git_scale.checkpoint.layout import find_checkpoint
from git_scale.errors import UserError

PROCESSES = 2
DEMO = Path("runs/demo")
DEMO_DATA = Path("runs/demo-data")
DS_CONFIG = "ds_configs/zero3.json"

# Two processes share two cores: one thread each, no spinning while one waits for the other, and memory that
# glibc keeps instead of handing every large tensor back to the kernel (a sixth of the time otherwise).
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 36),
}


def call(*arguments: str) -> None:
    """Runs one command, printed before it; ends this process with the command's code if it fails."""
    sys.stdout.write(f"\n$ python {shlex.join(arguments)}\n")
    sys.stdout.flush()
    code = subprocess.run([sys.executable, *arguments], env={**os.environ, **ENVIRONMENT}).returncode
    if code:
        sys.exit(code)


def call_on_all(*arguments: str) -> float:
    """Runs a tool on two processes under ZeRO stage 3; returns the seconds of the whole command."""
    started = time.monotonic()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    call(*launcher, *arguments, "--ds_config", DS_CONFIG)
    return time.monotonic() - started


def refuse_without_demo() -> None:
    """Raises UserError where there is no checkpoint of `make demo` to begin from."""
    try:
        find_checkpoint(DEMO)
    except UserError as error:
        raise UserError(f"{error}; `make demo` trains it") from None


def build_demo_data(vocab_size: int) -> None:
    """The demo's scenes and a tokenizer of that many pieces, unless they were made before."""
    if not DEMO_DATA.exists():
        call("tools/prepare_data.py", "digits", str(DEMO_DATA), "--train", "20000", "--heldout", "1000")
    tokenizer = DEMO_DATA / "tokenizer.model"
    if not tokenizer.exists():
        size = ("--vocab-size", str(vocab_size))
        call("tools/train_tokenizer.py", str(DEMO_DATA / "train"), str(tokenizer), *size)
