"""What is said beside the work never ends it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from git_scale.progress import CalmStream, progress, remark


def test_a_closed_pipe_and_a_closed_stream_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        remark("lost")
        assert list(progress(range(3), 3, "sample")) == [0, 1, 2]
    remark("closed")


def test_what_can_be_written_is(capsys: pytest.CaptureFixture[str]) -> None:
    remark("left out: x")
    assert capsys.readouterr().err == "left out: x\n"
    assert CalmStream(io.StringIO()).isatty() is False


def test_a_full_disk_drops_lines_and_later_ones_are_written(tmp_path: Path) -> None:
    """The operating system's own limit, as a disk that is full for a while; in the place of standard error."""
    program = """
import resource, sys
from git_scale.progress import progress, remark
remark("before")
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
remark("not to be had")
assert list(progress(range(9), 9, "sample", mininterval=0)) == list(range(9))
if sys.argv[1] == "freed":
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    remark("behind")
"""
    for way, end in (("freed", "behind\n"), ("full", "")):
        with (tmp_path / way).open("w") as log:
            done = subprocess.run([sys.executable, "-c", program, way], stderr=log, timeout=120, check=False)
        text = (tmp_path / way).read_text()
        assert done.returncode == 0
        assert text.startswith("before\n") and text.endswith(end)
