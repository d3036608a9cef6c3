"""What is said beside the work never ends it."""

from __future__ import annotations

import io
import os

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
