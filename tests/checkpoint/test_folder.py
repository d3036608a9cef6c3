"""A folder that appears whole or not at all, and files of tensors that safetensors itself reads."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.checkpoint.folder import new_model_folder, write_manifest, write_tensors, write_text
from git_scale.errors import CheckpointError

TENSORS = {
    "scalar": torch.tensor(2.5),
    "matrix": torch.arange(12.0).view(3, 4),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor([1, -2]),
    "flag": torch.tensor([True, False, True]),
    "\u00fcml\u00e4ut": torch.ones(2),
}
SHAPES = {name: (tensor.shape, tensor.dtype) for name, tensor in TENSORS.items()}


def stream(names: list[str]) -> Iterator[tuple[str, Tensor]]:
    return ((name, TENSORS[name]) for name in names)


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path, SHAPES, stream)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert (tmp_path / "model.safetensors").read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt"}')


@pytest.mark.parametrize(("most", "files"), [(1, 7), (64, 3), (1000, 1)])
def test_shards_hold_no_more_than_they_may(tmp_path: Path, most: int, files: int) -> None:
    write_tensors(tmp_path, SHAPES, stream, max_shard=most)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == files
    found: dict[str, Tensor] = {}
    for shard in shards:
        part = load_file(shard)
        size = sum(tensor.nbytes for tensor in part.values())
        assert size <= most or len(part) == 1
        found |= part
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    if files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == TENSORS.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
        assert shards[0].name == f"model-00001-of-{files:05d}.safetensors"


def test_a_stream_of_something_else_is_a_mistake(tmp_path: Path) -> None:
    for wrong in ({"a": torch.zeros(3)}, {"b": torch.zeros(2)}, {"a": torch.zeros(2).double()}, {}):
        with pytest.raises(ValueError, match=r"in the place of|shorter"):
            write_tensors(
                tmp_path, {"a": (torch.Size([2]), torch.float32)}, lambda _, w=wrong: iter(w.items())
            )
        assert list(tmp_path.iterdir()) == []


def fill(folder: Path, text: str = "new") -> None:
    write_manifest(folder, [write_text(folder / "config.json", text)])


def test_it_appears_at_the_end_with_its_manifest(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    with new_model_folder(target, False, []) as folder:
        fill(folder)
        assert not target.exists() and folder.name.startswith(".out.")
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    files = layout.read_manifest(target)
    assert [item.name for item in files] == ["config.json"]
    assert layout.first_damage(target, files) is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_left_of_what_failed(tmp_path: Path, error: BaseException, exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        with new_model_folder(target, False, []) as folder:
            fill(folder, "old")
    kind = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as caught, new_model_folder(target, exists, []) as folder:
        fill(folder)
        raise error
    if kind is CheckpointError:
        assert "No space left on device" in str(caught.value) and "nothing was changed" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    assert not exists or (target / "config.json").read_text() == "old"


def test_an_existing_folder_is_replaced_when_forced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_model_folder(target, True, []) as folder:
        fill(folder, "old")
    with new_model_folder(target, True, []) as folder:
        fill(folder)
        assert (target / "config.json").read_text() == "old"
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "manifest.json"]
    assert (target / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_destinations_that_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with new_model_folder(model, False, []) as folder:
        fill(folder)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "file").write_text("x")
    noted = tmp_path / "noted"
    shutil.copytree(model, noted)
    (noted / "thesis.txt").write_text("precious")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "config.json").write_text("{}")
    hub = tmp_path / "hub"
    shutil.copytree(checkout, hub)
    (hub / "model.safetensors").write_bytes(b"x")
    (hub / ".git").mkdir()
    (hub / ".git" / "HEAD").write_text("precious")
    training = tmp_path / "training"
    shutil.copytree(model, training)
    (training / "progress.json").write_text("{}")
    cases = [
        (model, False, [], "exists; choose another destination or add --force"),
        (model, None, [], "exists; choose another destination$"),
        (noted, True, [], "holds thesis.txt, which is no part of a model"),
        (checkout, True, [], "is no model's folder"),
        (hub, True, [], "holds .git/HEAD, which is no part of a model"),
        (training, True, [], "is the checkpoint of a run"),
        (model, True, [model / "sub"], "holds what is to be read"),
        (photos, True, [], "is no model's folder"),
        (tmp_path / "link", True, [], "is no model's folder"),
        (tmp_path / "file", True, [], "is no model's folder"),
        (tmp_path / "file" / "out", False, [], "cannot be written"),
    ]
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for target, force, sources, words in cases:
        with pytest.raises(CheckpointError, match=words), new_model_folder(target, force, sources):
            raise AssertionError("not to be reached")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_place_that_takes_no_folder_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, words in ((tmp_path / "file" / "x", "Not a directory"), (Path("/proc/x"), "/proc: ")):
        message = f"^{place}: cannot be written: .*{words}"
        with pytest.raises(CheckpointError, match=message) as refused, new_model_folder(place, False, []):
            raise AssertionError("begun")
        assert ".partial" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
