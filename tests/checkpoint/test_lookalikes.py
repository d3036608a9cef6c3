"""What looks like a checkpoint and is none: each has its own message with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.sources import open_tensors
from git_scale.errors import CheckpointError
from tools.convert_checkpoint import main

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(LFS, r"a Git LFS pointer.*git lfs pull"), (PAGE, "a web page"), ("", "the file is empty")],
    ids=["lfs", "html", "empty"],
)
def test_files(
    tmp_path: Path, name: str, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        open_tensors(tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    assert main(["import", str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert (
        main(["import", str(tmp_path / name), str(tmp_path / "out"), "--encoder", "vit_tiny_patch16_224"])
        == 2
    )
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_pointer_in_the_place_of_a_configuration(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(LFS)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"peft adapter.*merge_and_unload"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("with_config", [False, True])
def test_a_folder_of_trainer_checkpoints(tmp_path: Path, with_config: bool) -> None:
    for step in (500, 1000, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    with pytest.raises(CheckpointError, match=r"3 checkpoints and no model.*checkpoint-1000"):
        open_checkpoint(tmp_path)


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "git"}))
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no model.safetensors .*tf_model.h5 is another format"):
        open_checkpoint(tmp_path)


def test_an_index_with_missing_files(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"2 of its 3 files are missing: three.safetensors, two.safetensors"
    ):
        open_tensors(tmp_path / "model.safetensors.index.json")
