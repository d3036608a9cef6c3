"""A model's folder, published whole or not at all, and its files of tensors, written one tensor after another."""

from __future__ import annotations

import json
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, sync_folder, write_bytes, write_durably
from git_scale.paths import problem_of_folder

MAX_SHARD = 4 << 30  # bytes per file of tensors
WEIGHTS = (".safetensors", ".bin")
OF_A_MODEL = (*WEIGHTS, ".json", ".txt", ".model", ".md", ".jinja")  # files of transformers' folders
SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}  # as safetensors names them


@contextmanager
def new_model_folder(destination: Path, force: bool | None, sources: list[Path]) -> Iterator[Path]:
    """A hidden folder beside `destination` to write to, renamed to it when the block ends well.

    With `force` an existing model's folder is replaced; it stays until the new one is complete. None: the tool has no
    --force, so that nothing is replaced and no message offers it. Raises
    CheckpointError before anything is written when the destination cannot be used.
    """
    destination = Path(os.path.abspath(destination))  # noqa: PTH100 - a link is not to be followed
    _check_destination(destination, force, sources)
    hidden = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.partial")
    try:
        hidden.mkdir(parents=True)
        yield hidden
        for folder in (path for path in (*hidden.rglob("*"), hidden) if path.is_dir()):
            sync_folder(folder)
        _swap(hidden, destination)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot be written: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _check_destination(destination: Path, force: bool | None, sources: list[Path]) -> None:
    if not os.path.lexists(destination):
        if problem := problem_of_folder(destination):
            raise CheckpointError(f"{destination}: {problem}")
        return
    if not force:
        remedy = "" if force is None else " or add --force to replace it"
        raise CheckpointError(f"{destination}: exists; choose another destination{remedy}")
    if any(source.resolve().is_relative_to(destination.resolve()) for source in sources):
        raise CheckpointError(f"{destination}: holds what is to be read; choose another destination")
    if destination.is_symlink() or not destination.is_dir():
        raise CheckpointError(
            f"{destination}: is no model's folder, so --force does not replace it; remove it"
        )
    if reason := _why_not_a_model(destination):
        raise CheckpointError(f"{destination}: {reason}, so --force does not replace it; remove it")


def _why_not_a_model(folder: Path) -> str:
    """Why a folder is not one that an export made, or transformers' of a model; empty when it is."""
    if any((folder / name).exists() for name in (layout.PROGRESS, layout.STATE_FOLDER)):
        return "is the checkpoint of a run"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if layout.has_manifest(folder):
        own = {item.name for item in layout.read_manifest(folder)} | {layout.MANIFEST}
    elif "config.json" in files and any(name.endswith(WEIGHTS) for name in files):
        own = {name for name in files if "/" not in name and name.endswith(OF_A_MODEL)}
    else:
        return "is no model's folder"
    strange = min(files - own, default=None)
    return "" if strange is None else f"holds {strange}, which is no part of a model"


def _swap(new: Path, destination: Path) -> None:
    old = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.old")
    replaces = destination.exists()
    if replaces:
        destination.rename(old)
    try:
        new.rename(destination)
    except OSError:
        if replaces:
            old.rename(destination)
        raise
    sync_folder(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> FileDigest:
    return write_bytes(path, text.encode())


def write_manifest(folder: Path, written: Iterable[FileDigest]) -> None:
    """Of all files in the folder; written last."""
    write_text(folder / layout.MANIFEST, layout.manifest_text(sorted(written, key=lambda item: item.name)))


Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]
Tensors = Iterator[tuple[str, Tensor]]


def write_tensors(
    folder: Path, shapes: Shapes, tensors: Callable[[list[str]], Tensors], max_shard: int = MAX_SHARD
) -> list[FileDigest]:
    """Writes safetensors files: model.safetensors, or shards and their index when one file would be too large.

    `tensors(names)` yields (name, tensor) in the order of `names`; only one of them is in memory at a time.
    """
    shards = _split(shapes, max_shard)
    weight_map: dict[str, str] = {}
    written: list[FileDigest] = []
    for number, names in enumerate(shards, 1):
        file = (
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        writer = tensor_writer({name: shapes[name] for name in names}, tensors(names))
        written.append(write_durably(folder / file, writer))
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_size(*shapes[name]) for name in shapes)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        written.append(write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1)))
    return written


def _split(shapes: Shapes, max_shard: int) -> list[list[str]]:
    """In the order of the names; a tensor that is larger than a shard has one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (shape, dtype) in shapes.items():
        size = _size(shape, dtype)
        if shards[-1] and filled + size > max_shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def tensor_writer(
    shapes: Shapes, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> Callable[[BinaryIO], None]:
    """The safetensors format: length of the header, header, then the numbers in its order."""

    def write(file: BinaryIO) -> None:
        header: dict[str, object] = {
            "__metadata__": {"format": "pt", **(metadata or {})}
        }  # transformers asks for it
        offset = 0
        for name, (shape, dtype) in shapes.items():
            end = offset + _size(shape, dtype)
            header[name] = {
                "dtype": SAFETENSORS_DTYPES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (shape, dtype)), (found, tensor) in zip(shapes.items(), tensors, strict=True):
            if (found, tensor.shape, tensor.dtype) != (name, shape, dtype):
                raise ValueError(
                    f"{found} {tensor.shape} {tensor.dtype} in the place of {name} {shape} {dtype}"
                )
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    return write


def _size(shape: torch.Size, dtype: torch.dtype) -> int:
    return shape.numel() * dtype.itemsize
