"""Files and folders that look like a checkpoint and are none: what they are, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from git_scale.errors import CheckpointError
from git_scale.paths import special_kind
from git_scale.text_files import other_form

ZIP = b"PK"  # torch.save's own form
OTHER_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "*.onnx", "*.gguf")


def refuse_lookalike_file(path: Path) -> None:
    """Raises CheckpointError for an empty or a packed file, a Git LFS pointer and a page of a web server."""
    if kind := special_kind(path):
        raise CheckpointError(f"{path}: {kind}; give a file")
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not start:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    if not start.startswith(ZIP) and (form := other_form(start)):
        raise CheckpointError(f"{path}: {form}")


def refuse_lookalike_folder(folder: Path) -> None:
    """Raises CheckpointError for a peft adapter, and for a Trainer's folder with nothing but its checkpoints."""
    has_model = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if (folder / "adapter_config.json").is_file() and not has_model:
        raise CheckpointError(
            f"{folder}: a peft adapter, which holds changes to a model and not the model. Merge it in Python:"
            " peft's AutoPeftModel.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW), then take NEW"
        )
    inner = _trainer_checkpoints(folder)
    if inner and not has_model:
        raise CheckpointError(
            f"{folder}: the output folder of transformers' Trainer, with {len(inner)} checkpoints and no model of its"
            f" own: take one of them, such as {inner[-1]}"
        )


def refuse_folder_without_tensors(folder: Path) -> NoReturn:
    """Raises CheckpointError: a folder with a config.json has no tensors that are read here."""
    refuse_lookalike_folder(folder)
    others = [path.name for pattern in OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]
    hint = f"; {others[0]} is another format, save it again from torch with save_pretrained" if others else ""
    raise CheckpointError(f"{folder}: has a config.json, but no model.safetensors or pytorch_model.bin{hint}")


def _trainer_checkpoints(folder: Path) -> list[Path]:
    """checkpoint-500/, ..., in the order of their steps."""
    inner = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(
        (path for path in inner if path.is_dir()), key=lambda path: int(path.name.rpartition("-")[2])
    )
