"""Paths as users write them, and what lies there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from git_scale.checkpoint.sources import open_tensors
from git_scale.checkpoint.sources import read_json as read_foreign_config
from git_scale.config import DataConfig
from git_scale.data.builders.coco import read_coco
from git_scale.data.builders.flickr import read_flickr
from git_scale.data.builders.tables import read_table
from git_scale.data.builders.vqa import read_vqa
from git_scale.data.clips import prepare_clip
from git_scale.data.tokenizer import load_tokenizer
from git_scale.data.video import read_frames
from git_scale.errors import UserError
from git_scale.parallel.ds_config import read_ds_config
from git_scale.paths import expanded, special_kind
from git_scale.text_files import read_text


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert special_kind(tmp_path / "s") == "a socket"
    assert special_kind(tmp_path / "pipe") == special_kind(tmp_path / "link") == "a named pipe"
    assert special_kind(Path("/dev/null")) == "a device"
    for path in (tmp_path, tmp_path / "file", tmp_path / "gone", tmp_path / "a\0b"):
        assert special_kind(path) == ""


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_coco, "c.json"),
        (read_vqa, "q.json"),
        (read_flickr, "c.token"),
        (read_table, "c.csv"),
        (load_tokenizer, "t.model"),
        (load_tokenizer, "vocab.txt"),
        (lambda path: prepare_clip(path, 1, DataConfig(), 16), "a.jpg"),
        (lambda path: read_frames(path, 1), "a.mp4"),
        (read_ds_config, "zero.json"),
        (read_foreign_config, "config.json"),
        (open_tensors, "model.safetensors"),
    ],
)
def test_no_reader_waits_for_a_named_pipe(tmp_path: Path, read: Callable[[Path], Any], name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: .*a named pipe; give a file"):
        read(tmp_path / name)


def test_what_a_shell_hands_over_is_read() -> None:
    """`--captions <(zcat captions.json.gz)` is the path of a pipe."""
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    assert read_text(Path(f"/dev/fd/{reader}")) == "text"
    os.close(reader)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in ("loop", "loop/inside"):
        with pytest.raises(ValueError, match="a link that leads to itself; remove it"):
            expanded(str(tmp_path / path))
    (tmp_path / "dangling").symlink_to("not there yet")
    assert expanded(str(tmp_path / "dangling")) == str(tmp_path / "dangling")
