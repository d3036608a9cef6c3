"""The model folder of git_scale: what a checkpoint holds, without what only training needs.

FOLDER/manifest.json                    every file below with size and xxh3; written last
FOLDER/config.yaml                      the recipe that the model was trained with
FOLDER/tokenizer.model | vocab.txt      none beside an image encoder alone
FOLDER/model.safetensors                fp32; or model-0000i-of-0000n.safetensors and their index
FOLDER/origin.json                      the kind of source and its step
FOLDER/metrics.json                     what was measured of it, if anything was
FOLDER/README.md                        model card
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from git_scale.checkpoint.card import (
    METRICS,
    USE_ENCODER,
    USE_NATIVE,
    read_metrics,
    without_local_paths,
    write_card,
)
from git_scale.checkpoint.folder import new_model_folder, write_manifest, write_tensors, write_text
from git_scale.checkpoint.layout import CONFIG, MANIFEST
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, read_run, tokenizer_of
from git_scale.checkpoint.probe import ExportReport, compare, probe
from git_scale.checkpoint.sources import TensorSource, find_tensors, open_tensors, read_json
from git_scale.checkpoint.weights import TIED_NAME, TIED_TO, check_files, read_finite
from git_scale.data.tokenizer import Tokenizer, WordPieceTokenizer
from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, write_bytes
from git_scale.models.build import build_encoder, build_model
from git_scale.models.git import count_parameters

ORIGIN = "origin.json"


class NativeWeights:
    """Reads the weights of a model folder; a tied head is the word table, which is stored once."""

    def __init__(self, source: TensorSource, tied: bool) -> None:
        self.dropped: dict[str, str] = {}
        self.shapes = dict(source.shapes)
        self._source, self._tied = source, tied and TIED_TO in source.shapes
        if self._tied:
            self.shapes[TIED_NAME] = self.shapes[TIED_TO]

    def read(self, name: str) -> Tensor:
        return self._source.read(TIED_TO if self._tied and name == TIED_NAME else name)


def open_native(folder: Path, listed: set[str]) -> OpenedCheckpoint:
    """Raises CheckpointError. The caller has compared the `listed` files with their manifest; no other is read."""
    tensors = find_tensors(folder)
    if tensors is None:
        raise CheckpointError(f"{folder}: model.safetensors is missing")
    source = open_tensors(tensors)
    run = read_run(folder)
    tokenizer = folder / Path(run.data.tokenizer).name
    if strange := {path.name for path in (folder / CONFIG, tensors, *source.paths)} - listed:
        raise CheckpointError(
            f"{folder}: {strange.pop()} is not in {MANIFEST}, so no part of this model: move it away"
        )
    step = read_json(folder / ORIGIN).get("step")
    weights = NativeWeights(source, run.model.decoder.tied)
    return OpenedCheckpoint(
        kind="native",
        path=folder,
        run=run,
        tokenizer=tokenizer if tokenizer.name in listed else None,
        weights=weights,
        step=step if isinstance(step, int) else None,
    )


def export_native(
    opened: OpenedCheckpoint, destination: Path, force: bool = False, tokenizer_file: Path | None = None
) -> ExportReport:
    """Writes a model folder of anything that was opened, whole or not at all.

    What was written is read back and compared on a probe before it is published. Raises CheckpointError or
    DataError; the destination is then as it was.
    """
    tokenizer = None if opened.holds_encoder_only else tokenizer_of(opened, tokenizer_file)
    with torch.device("meta"):
        config = opened.run.model
        module = build_encoder(config.encoder) if opened.holds_encoder_only else build_model(config)
    prefix = "encoder." if opened.holds_encoder_only else ""
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    if config.decoder.tied:
        state.pop(TIED_NAME, None)
    expected = probe(opened)  # first: it finds what does not fit before anything is written
    with new_model_folder(destination, force, [opened.path]) as folder:
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        written = write_tensors(folder, shapes, lambda names: _read(opened, names))
        written += _write_rest(folder, opened, tokenizer)
        write_manifest(folder, written)
        difference = compare(opened.path, expected, lambda: probe(open_native(folder, check_files(folder))))
    return ExportReport(
        destination=destination,
        tensors=len(shapes),
        parameters=count_parameters(module),
        dropped=opened.weights.dropped,
        max_abs_diff=difference,
        verified_with="git_scale",
    )


def _read(opened: OpenedCheckpoint, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield name, read_finite(opened.weights, name)


def _write_rest(folder: Path, opened: OpenedCheckpoint, tokenizer: Tokenizer | None) -> list[FileDigest]:
    run, written = opened.run, []
    if tokenizer is not None:
        written.append(write_tokenizer(tokenizer, folder))
        name = written[0].name
        run = run.model_copy(update={"data": run.data.model_copy(update={"tokenizer": name})})
    texts = {
        CONFIG: without_local_paths(run).to_yaml(),
        ORIGIN: json.dumps({"source": opened.kind, "step": opened.step}),
        "README.md": write_card(opened, USE_ENCODER if opened.holds_encoder_only else USE_NATIVE),
    }
    if metrics := read_metrics(opened):
        texts[METRICS] = json.dumps(metrics, indent=1)
    return written + [write_text(folder / name, text) for name, text in texts.items()]


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> FileDigest:
    """Its file, as vocab.txt or tokenizer.model."""
    if isinstance(tokenizer, WordPieceTokenizer):
        return write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in tokenizer.vocabulary))
    return write_bytes(folder / "tokenizer.model", tokenizer.path.read_bytes())
