"""Files of tensors: read one at a time, never executed, never led outside of their folder."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from git_scale.checkpoint.sources import find_tensors, open_tensors, read_json
from git_scale.errors import CheckpointError

STATE = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def write(path: Path) -> Path:
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin", "x.pth"])
def test_tensors_come_as_fp32_copies(tmp_path: Path, name: str) -> None:
    source = open_tensors(write(tmp_path / name))
    assert source.shapes == {key: value.shape for key, value in STATE.items()}
    for key, value in STATE.items():
        found = source.read(key)
        assert found.dtype == (torch.int64 if key == "count" else torch.float32)
        assert torch.equal(found, value.to(found.dtype))
    source.read("a").zero_()
    assert torch.equal(source.read("a"), STATE["a"])


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_state_dict_one_level_down(tmp_path: Path, key: str) -> None:
    torch.save({key: STATE, "epoch": 3}, tmp_path / "x.pt")
    source = open_tensors(tmp_path / "x.pt")
    assert torch.equal(source.read("a"), STATE["a"])


def test_the_format_before_zip_files(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(open_tensors(tmp_path / "x.pt").read("a"), STATE["a"])


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "made"
    torch.save({**STATE, "code": Code(target)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        open_tensors(tmp_path / "x.pt")
    assert not target.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert target.is_dir()  # it would have


def test_a_torchscript_archive_is_refused_in_words(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"TorchScript.*torch\.jit\.load\('x\.pt', .*\)\.state_dict\(\)"
    ):
        open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.safetensors", b"rubbish"),
        ("x.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        ("x.pt", b"rubbish"),
        ("x.pt", b""),
        ("x.pt", b"PK\x05\x06" + bytes(18)),
        ("x.npy", b""),
    ],
)
def test_rubbish_is_a_checkpoint_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_an_error(tmp_path: Path, name: str, keep: float) -> None:
    data = write(tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=name):
        open_tensors(tmp_path / name).read("a")


@pytest.mark.parametrize("value", [[1], {"a": 3}, {}, {"model": {}}])
def test_what_is_no_state_dict(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no state dict"):
        open_tensors(tmp_path / "x.pt")


def shard(folder: Path, weight_map: Any) -> Path:
    save_file({"a": STATE["a"]}, folder / "one.safetensors")
    save_file({"half": STATE["half"], "count": STATE["count"]}, folder / "two.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_shards_are_one_source(tmp_path: Path) -> None:
    names = {"a": "one.safetensors", "half": "two.safetensors", "count": "two.safetensors"}
    path = shard(tmp_path, names)
    assert find_tensors(tmp_path) == path
    source = open_tensors(path)
    assert all(
        torch.equal(source.read(key), value.to(source.read(key).dtype)) for key, value in STATE.items()
    )


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../one.safetensors"}, "'../one.safetensors' is no plain file name"),
        ({"a": "/etc/passwd"}, "no plain file name"),
        ({"a": 3}, "3 is no plain file name"),
        ({"a": "two.safetensors"}, "two.safetensors does not hold a"),
        ({"a": "none.safetensors"}, "none.safetensors"),
        ({"half": "two.safetensors"}, "does not list count"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_tensors(shard(tmp_path, weight_map))


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "\ud800"])
def test_a_json_file_is_an_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Of 160 MiB in tensors of 20 MiB, no page stays mapped when a tensor has been read; without closing all do.

    Counted from the file's own mappings: the process's whole memory also moves when the kernel reclaims pages.
    """
    torch.save({f"w{n}": torch.full((5, 1 << 20), float(n)) for n in range(8)}, tmp_path / "weights.pt")
    code = r"""
import re, sys
from pathlib import Path
from git_scale.checkpoint import sources

def mapped():  # KiB of the file in this process
    maps = Path("/proc/self/smaps").read_text()
    return sum(int(size) for size in re.findall(r"weights\.pt\n(?:.*\n)*?Rss: +(\d+)", maps))

sources.FORGET_AFTER = int(sys.argv[2])
weights = sources.open_tensors(Path(sys.argv[1]))
most = 0
for number in range(8):
    assert float(weights.read(f"w{number}")[4, -1]) == number
    most = max(most, mapped())
print(most)
"""
    most = {}
    for bound in (1, 50 << 20, 1 << 40):
        command = [sys.executable, "-c", code, str(tmp_path / "weights.pt"), str(bound)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        most[bound] = int(answer.stdout) / 1024  # MiB
    assert most[1] == 0
    assert 20 <= most[50 << 20] <= 60  # closed after each third tensor
    assert most[1 << 40] > 100
