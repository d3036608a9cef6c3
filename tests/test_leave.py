"""The end of a tool's process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, sys
from git_scale.leave import leave

class Held:
    def __del__(self):
        print("torn down")

held = Held()
atexit.register(print, "handlers ran")
print("written")
{end}(75)
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True, timeout=60
    )


def test_the_code_and_all_output_come_through_without_a_tear_down() -> None:
    done = run("leave")
    assert (done.returncode, done.stdout.split("\n")) == (75, ["written", "handlers ran", ""])


def test_a_usual_exit_tears_down() -> None:
    assert "torn down" in run("sys.exit").stdout
