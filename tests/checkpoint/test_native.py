"""git_scale's own model folder: what goes in comes out, and damage is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from git_scale.checkpoint import layout
from git_scale.checkpoint.card import METRICS
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_encoder, load_model
from git_scale.config import ModelConfig, RunConfig
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import CheckpointError, DataError
from git_scale.models.build import build_model
from git_scale.models.git import GitModel

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "batch_norm": {
        "name": "resnet10t",
        "image_size": 32,
        "options": {"channels": [8, 8, 16, 16], "stem_width": 8},
    },
    "computed_buffers": {
        "name": "swin_tiny_patch4_window7_224",
        "image_size": 32,
        "options": {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 2], "window_size": 4},
    },
}


class ModelWeights:
    def __init__(self, model: GitModel) -> None:
        self.model = model
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.shapes = {name: tensor.shape for name, tensor in self.state.items()}
        self.dropped = {"old": "for no reason"}

    def read(self, name: str) -> torch.Tensor:
        return self.state[name]


@pytest.fixture
def make(vocab_file: Path) -> Callable[..., OpenedCheckpoint]:
    def build(
        encoder: str = "vit", tied: bool = True, vocab_size: int = 29, attention: str = "joint"
    ) -> OpenedCheckpoint:
        sizes = {"layers": 1, "width": 16, "heads": 2, "ffn": 24, "positions": 12}
        tree = {
            "encoder": ENCODERS[encoder],
            "decoder": {**sizes, "tied": tied, "attention": attention},
            "vocab_size": vocab_size,
        }
        torch.manual_seed(0)
        model = build_model(ModelConfig.model_validate(tree))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
            elif name in model.state_dict():
                buffer.fill_(7)
        run = RunConfig.model_validate(
            {"model": tree, "seed": 5, "data": {"tokenizer": "data/deep/vocab.txt"}}
        )
        weights = ModelWeights(model.eval())
        return OpenedCheckpoint("training", vocab_file.parent / "run", run, vocab_file, weights, 40)

    return build


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("encoder", "attention"), [*((name, "joint") for name in ENCODERS), ("vit", "cross")]
)
def test_what_goes_in_comes_out(
    make: Callable[..., OpenedCheckpoint], tmp_path: Path, encoder: str, attention: str, tied: bool
) -> None:
    opened = make(encoder, tied, attention=attention)
    report = export_native(opened, tmp_path / "out")
    assert (report.max_abs_diff, report.verified_with) == (0.0, "git_scale")
    assert report.dropped == {"old": "for no reason"}
    back = open_checkpoint(tmp_path / "out")
    assert (back.kind, back.step, back.path) == ("native", 40, tmp_path / "out")
    assert back.run.model == opened.run.model and back.run.seed == 5
    assert back.weights.shapes == opened.weights.shapes
    for name, tensor in opened.weights.state.items():
        found = back.weights.read(name)
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype, name
    model = load_model(back).eval()
    assert (model.decoder.head.weight is model.decoder.embedding.words.weight) == tied
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert ("decoder.head.weight" in stored) == (not tied)
    assert sum(p.numel() for p in model.parameters()) == report.parameters
    assert back.tokenizer is not None and load_tokenizer(back.tokenizer).vocab_size == 29
    images = torch.rand(1, 3, 32, 32)
    expected = opened.weights.model.encoder(images)  # built as its constructors build it, buffers and all
    assert torch.equal(load_encoder(back).eval()(images), expected)
    assert torch.equal(model.encoder(images), expected)


def test_its_files_are_those_of_its_manifest(make: Callable[..., OpenedCheckpoint], tmp_path: Path) -> None:
    export_native(make(), tmp_path / "out")
    names = {item.name for item in layout.read_manifest(tmp_path / "out")}
    assert names == {"README.md", "config.yaml", "model.safetensors", "origin.json", "vocab.txt"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"manifest.json"}
    assert layout.find_checkpoint(tmp_path / "out") == tmp_path / "out"
    assert RunConfig.model_validate(layout.read_config(tmp_path / "out")).data.tokenizer == "vocab.txt"
    for name in names:
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(tmp_path / "out")
        path.write_bytes(content)
    open_checkpoint(tmp_path / "out")


def test_files_that_the_manifest_does_not_list_are_not_read(
    make: Callable[..., OpenedCheckpoint], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export_native(make(), folder)
    (folder / "metrics.json").write_text('{"eval/cider": 9.0}')
    (folder / "notes.txt").write_text("no harm")
    (folder / "config.json").write_text(
        '{"model_type": "git"}'
    )  # it is no model of transformers because of that
    assert open_checkpoint(folder).kind == "native"
    export_native(open_checkpoint(folder), tmp_path / "again")
    assert (
        "9" not in (tmp_path / "again" / "README.md").read_text().split("## Measured")[1].split("## Use")[0]
    )
    tree = json.loads((folder / "manifest.json").read_text())
    for lacking in ("model.safetensors", "config.yaml", "vocab.txt"):
        files = [item for item in tree["files"] if item["name"] != lacking]
        (folder / "manifest.json").write_text(json.dumps(tree | {"files": files}))
        if lacking == "vocab.txt":
            assert open_checkpoint(folder).tokenizer is None
        else:
            with pytest.raises(CheckpointError, match=f"{lacking} is not in manifest.json"):
                open_checkpoint(folder)


def test_the_card_tells_what_was_measured_at_this_step(
    make: Callable[..., OpenedCheckpoint], tmp_path: Path
) -> None:
    opened = make()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000040"
    checkpoint.mkdir(parents=True)
    lines = [
        {"step": 20, "eval/cider": 0.1},
        {"step": 40, "train/loss": 1.0, "time": 3},
        {"step": 40, "eval/cider": 0.25, "eval/note": "text"},
    ]
    log = "\n".join(map(json.dumps, lines)) + '\n{"step": 40, "eval/ci'
    (tmp_path / "run" / "metrics.jsonl").write_text(log)
    opened = OpenedCheckpoint("training", checkpoint, opened.run, opened.tokenizer, opened.weights, 40)
    export_native(opened, tmp_path / "one")
    assert json.loads((tmp_path / "one" / METRICS).read_text()) == {"eval/cider": 0.25}
    export_native(open_checkpoint(tmp_path / "one"), tmp_path / "two")
    for folder in ("one", "two"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "| eval/cider | 0.25 |" in card and "step 40" in card and "seed: 5" in card


def test_a_tokenizer_that_does_not_fit(make: Callable[..., OpenedCheckpoint], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 29 pieces, but the word table .* 30 rows"):
        export_native(make(vocab_size=30), tmp_path / "out")
    bare = make()
    bare = OpenedCheckpoint("microsoft", bare.path, bare.run, None, bare.weights, None)
    with pytest.raises(CheckpointError, match=r"no tokenizer beside it; name the .*--tokenizer FILE"):
        export_native(bare, tmp_path / "out")
    with pytest.raises(DataError, match=r"none\.txt"):
        export_native(bare, tmp_path / "out", tokenizer_file=tmp_path / "none.txt")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_the_recipe(make: Callable[..., OpenedCheckpoint], tmp_path: Path) -> None:
    for change, words in (
        (lambda w: w.shapes.pop("projection.0.bias"), "projection.0.bias is missing"),
        (lambda w: w.shapes.update(extra=torch.Size([1])), "extra is unknown"),
        (
            lambda w: w.shapes.update({"projection.0.bias": torch.Size([3])}),
            r"projection.0.bias has the shape \[3\] instead of \[16\]",
        ),
        (lambda w: w.state["projection.0.bias"].fill_(float("nan")), "projection.0.bias holds numbers"),
    ):
        opened = make()
        change(opened.weights)
        with pytest.raises(CheckpointError, match=words):
            export_native(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_anything_else_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint nor the folder of a run"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


def test_an_exported_folder_knows_no_path_of_this_machine(
    make: Callable[..., OpenedCheckpoint], tmp_path: Path
) -> None:
    opened = make()
    data = opened.run.data.model_copy(
        update={"train": "/home/someone/secret/train", "heldout": "~/secret/held"}
    )
    run = opened.run.model_copy(update={"run_dir": str(tmp_path / "secret" / "run"), "data": data})
    export_native(replace(opened, run=run), tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert b"secret" not in content and str(tmp_path).encode() not in content, file.name
    found = open_checkpoint(tmp_path / "out").run
    assert (found.data.train, found.data.heldout, found.run_dir) == ("train", "held", "run")
