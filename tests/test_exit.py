"""The end of a tool's process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, sys
from git_scale.exit import run_and_exit

class Held:
    def __del__(self):
        print("torn down")

held = Held()
atexit.register(print, "handlers ran")
print("written")
{end}
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True, timeout=60
    )


def test_the_code_and_all_output_come_through_without_a_tear_down() -> None:
    done = run("run_and_exit(lambda: 75)")
    assert (done.returncode, done.stdout.split("\n")) == (75, ["written", "handlers ran", ""])


def test_a_usual_exit_tears_down() -> None:
    assert "torn down" in run("sys.exit(75)").stdout


LATE_SIGNAL = """
import atexit, os, signal, sys
from git_scale.exit import run_and_exit
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGINT)])
run_and_exit(lambda: 0)
"""

HANGING = """
import atexit, threading
import git_scale.exit
git_scale.exit.LIMIT_S = 0.1
atexit.register(threading.Event().wait)
git_scale.exit.run_and_exit(lambda: 75)
"""


def test_a_signal_behind_the_end_changes_no_code() -> None:
    done = subprocess.run([sys.executable, "-c", LATE_SIGNAL], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_exit_handler_that_hangs_holds_nobody_back() -> None:
    assert subprocess.run([sys.executable, "-c", HANGING], timeout=60).returncode == 75
