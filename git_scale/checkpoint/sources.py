"""Files of tensors, read one tensor at a time: safetensors, and torch's own format as far as it holds no code.

Mapped pages of a file count as memory of the process, so files are closed again after FORGET_AFTER bytes.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from git_scale.checkpoint.lookalikes import refuse_lookalike_file
from git_scale.errors import CheckpointError
from git_scale.text_files import parse_json

FORGET_AFTER = 256 << 20  # bytes read before mapped files are closed
MAX_JSON = 64 << 20  # bytes of a configuration or an index; real ones have less than 1 MB
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
STATE_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
)  # where training programs keep a state dict
WRAPPERS = (
    "module.",
    "model.",
    "_orig_mod.",
)  # before every name: DataParallel and DDP, Lightning, torch.compile


class TorchFiles:
    """Maps files of torch.save into memory and holds them open for a while. They are read with weights_only=True."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}
        self._bytes_read = 0

    def load(self, path: Path) -> Any:
        """What the file holds. Raises CheckpointError; nothing in the file is ever executed."""
        if path not in self._open:
            self._open[path] = _load_torch(path)
        return self._open[path]

    def copy(self, part: Tensor, to: Tensor) -> None:
        """Copies a tensor out of a mapped file; forgets all files when their pages have become many."""
        to.copy_(part)
        self._bytes_read += part.nbytes
        if self._bytes_read > FORGET_AFTER:
            self._open.clear()
            self._bytes_read = 0


def _load_torch(path: Path) -> Any:
    try:
        if is_archive := zipfile.is_zipfile(path):
            _refuse_torchscript(path)
        # files of the format before 2020 cannot be mapped
        return torch.load(path, map_location="cpu", mmap=is_archive, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no file of torch.save; nothing of it was"
            f" executed. Save its state dict alone. ({reason})"
        ) from None
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # rubbish makes the unpickler raise nearly anything: IndexError, struct.error, ...
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read: {reason}") from None


def _refuse_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        is_script = any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    if is_script:
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds a program and cannot be read without loading it. Where"
            f" you trust it: torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(), 'w.pt'),"
            " and import w.pt"
        )


class TensorSource:
    """Reads the tensors of some files by their names there; see open_tensors."""

    def __init__(
        self, files: dict[str, Path], shapes: dict[str, torch.Size], prefix: tuple[str, ...]
    ) -> None:
        self.shapes = shapes
        self._files = files
        self._prefix = prefix
        self._torch_files = TorchFiles()

    @property
    def paths(self) -> set[Path]:
        return set(self._files.values())

    def read(self, name: str) -> Tensor:
        """A copy on CPU; floating dtypes as fp32, others as stored."""
        path = self._files[name]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                stored = file.get_tensor(name)
                return torch.empty(stored.shape, dtype=_target(stored)).copy_(stored)
        stored = _descend(self._torch_files.load(path), self._prefix)[name].detach()
        copy = torch.empty(stored.shape, dtype=_target(stored))
        self._torch_files.copy(stored, copy)
        return copy


class UnwrappedTensors:
    """Takes from a source's names what wrappers of modules have put before them (WRAPPERS), once or several times."""

    def __init__(self, source: TensorSource) -> None:
        names = {name: name.replace("_orig_mod.", "") for name in source.shapes}
        while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in names.values())), None):
            names = {theirs: name.removeprefix(wrapper) for theirs, name in names.items()}
        self.shapes = {name: source.shapes[theirs] for theirs, name in names.items()}
        if len(self.shapes) < len(names):
            raise CheckpointError(
                "two tensors have one name but for `_orig_mod.`: save the state dict of one model"
            )
        self._theirs = {name: theirs for theirs, name in names.items()}
        self._source = source

    def read(self, name: str) -> Tensor:
        return self._source.read(self._theirs[name])


def _target(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def open_tensors(path: Path) -> TensorSource:
    """Of one file, or of all files that an index (`*.index.json`) names. Raises CheckpointError."""
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix in (".safetensors", *TORCH_SUFFIXES):
        refuse_lookalike_file(path)
    if path.suffix == ".safetensors":
        shapes = _safetensors_shapes(path)
        return TensorSource(dict.fromkeys(shapes, path), shapes, ())
    if path.suffix in TORCH_SUFFIXES:
        return _open_torch(path)
    raise CheckpointError(f"{path}: tensors are read from .safetensors, {', '.join(TORCH_SUFFIXES)}")


def find_tensors(folder: Path) -> Path | None:
    """The file or index that holds a model's tensors, by the names that Hugging Face gives them."""
    stems = ("model.safetensors", "pytorch_model.bin")
    names = [name for stem in stems for name in (stem, f"{stem}.index.json")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_index(path: Path) -> TensorSource:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: damaged: it has no weight_map")
    _require_files(path, weight_map)
    files, shapes, opened = {}, {}, {}
    for name, file in weight_map.items():
        if file not in opened:
            opened[file] = open_tensors(path.parent / file)
        if name not in opened[file].shapes:
            raise CheckpointError(f"{path}: {file} does not hold {name}")
        files[name], shapes[name] = path.parent / file, opened[file].shapes[name]
    unlisted = [name for source in opened.values() for name in source.shapes if name not in files]
    if unlisted:
        raise CheckpointError(f"{path}: does not list {unlisted[0]}, which its files hold")
    return TensorSource(files, shapes, ())


def _require_files(index: Path, weight_map: dict[str, Any]) -> None:
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: {name}: {file!r} is no plain file name")
    files = sorted(set(weight_map.values()))
    if missing := [file for file in files if not (index.parent / file).is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(files)} files are missing: {', '.join(missing[:3])}{more}; copy or"
            f" download them into {index.parent}"
        )


def _safetensors_shapes(path: Path) -> dict[str, torch.Size]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {error}") from None


def _open_torch(path: Path) -> TensorSource:
    """A state dict, or a dict that holds one under one of STATE_KEYS."""
    tree = _load_torch(path)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, no state dict")
    prefix = next(((key,) for key in STATE_KEYS if isinstance(tree.get(key), dict)), ())
    state = _descend(tree, prefix)
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        raise CheckpointError(f"{path}: no state dict: {wrong[0] if wrong else 'it'} holds no tensor")
    return TensorSource(
        dict.fromkeys(state, path), {name: value.shape for name, value in state.items()}, prefix
    )


def _descend(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError for anything but a JSON object of reasonable size."""
    try:
        refuse_lookalike_file(path)
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes; at most {MAX_JSON} are read")
        tree = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, found {type(tree).__name__}")
    return tree
