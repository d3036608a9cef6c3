"""The command line over import, export and inspect; each mistake is one message, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from git_scale.checkpoint import folder as folder_module
from git_scale.training.lease import acquire
from tools.convert_checkpoint import main

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"]
pytest.importorskip("transformers", reason="its sources are written by transformers")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GIT as transformers writes it."""
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import GitConfig, GitForCausalLM

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = GitForCausalLM(
        GitConfig(
            vision_config=vision | {"image_size": 32, "patch_size": 8},
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=12,
            bos_token_id=2,
            eos_token_id=3,
            initializer_range=0.2,
        )
    )
    path = tmp_path_factory.mktemp("hub") / "git"
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture
def source(hub: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "hub"
    copy.mkdir()
    for path in hub.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one message of a command that fails."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and "Traceback" not in answer.err
    return answer.err


def test_in_out_and_looked_at(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs, report = tmp_path / "ours", tmp_path / "theirs", tmp_path / "report.json"
    assert main(["import", str(hub), str(ours)]) == 0
    assert "read back with git_scale: largest difference 0" in capsys.readouterr().out
    assert main(["export", str(ours), str(theirs), "--format", "hf", "--json", str(report)]) == 0
    tree = json.loads(report.read_text())
    assert tree["verified_with"].startswith("transformers ") and 0 <= tree["max_abs_diff"] < 1e-4
    assert tree["tensors"] == len(load_file(theirs / "model.safetensors"))
    assert tree["destination"] == str(theirs)
    assert main(["inspect", str(ours)]) == 0
    out = capsys.readouterr().out
    assert "kind       native" in out and "decoder.embedding.words.weight  [7, 32]" in out
    assert f"{tree['parameters']:,}" in out
    assert main(["export", str(ours), str(tmp_path / "again"), "--format", "native"]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        ours / "model.safetensors"
    ).read_bytes()


def test_another_image_size(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(hub), str(tmp_path / "out"), "--image-size", "48"]) == 0
    assert load_file(tmp_path / "out" / "model.safetensors")["encoder.backbone.pos_embed"].shape == (
        1,
        37,
        32,
    )
    for size, near in (
        (4, "nearest is 8"),
        (33, "nearest are 32 and 40"),
        (1_000_000, "at most 4096 pixels"),
    ):
        assert near in fails(capsys, "import", hub, tmp_path / "o", "--image-size", size)


def test_an_encoder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    file = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), file)
    assert "one of timm needs --encoder NAME" in fails(capsys, "import", file, tmp_path / "out")
    assert main(["import", str(file), str(tmp_path / "out"), "--encoder", "resnet10t"]) == 0
    assert "not taken: 2 (timm's classifier)" in capsys.readouterr().out
    error = fails(capsys, "export", tmp_path / "out", tmp_path / "hf", "--format", "hf")
    assert "an image encoder alone" in error


def damage(source: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, source / "model.safetensors", {"format": "pt"})


def spoil(source: Path, kind: str) -> None:
    weights = source / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "vocabulary":
        (source / "vocab.txt").write_text("\n".join([*WORDS, "cat"]) + "\n")
    elif kind == "nan":
        damage(source, lambda state: state["output.bias"].fill_(float("nan")))
    elif kind == "unknown":
        damage(source, lambda state: state.update(gate=torch.ones(1)))
    elif kind == "config":
        (source / "config.json").write_text("{")
    elif kind == "nothing":
        for path in source.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "model.safetensors: damaged or no safetensors file"),
        ("vocabulary", "has 8 pieces, but the word table"),
        ("nan", "decoder.head.bias holds numbers that are not finite"),
        ("unknown", "gate is unknown"),
        ("config", "config.json: cannot be read"),
        ("nothing", "neither a checkpoint nor the folder of a run"),
    ],
)
@pytest.mark.parametrize("force", [True, False])
def test_a_bad_source_leaves_the_destination_alone(
    hub: Path,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    words: str,
    force: bool,
) -> None:
    target = tmp_path / "out"
    if force:
        assert main(["import", str(hub), str(target)]) == 0
    before = {path: path.read_bytes() for path in target.rglob("*")} if force else {}
    spoil(source, kind)
    assert words in fails(capsys, "import", source, target, *(["--force"] if force else []))
    assert {path: path.read_bytes() for path in target.rglob("*")} == before
    assert target.exists() == force
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Code:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def test_code_in_a_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    torch.save({"model": {"x": torch.ones(1)}, "code": Code(str(made))}, tmp_path / "model.pt")
    for command in (["import", tmp_path / "model.pt", tmp_path / "out"], ["inspect", tmp_path / "model.pt"]):
        assert "nothing of it was executed" in fails(capsys, *command)
    assert not made.exists() and not (tmp_path / "out").exists()


def test_an_existing_destination_needs_force(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert main(["import", str(hub), str(target)]) == 0
    assert "exists; choose another destination or add --force" in fails(capsys, "import", hub, target)
    assert main(["import", str(hub), str(target), "--force", "--image-size", "40"]) == 0
    assert "image_size: 40" in (target / "config.yaml").read_text()


def test_a_full_disk(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_module, "write_durably", refuse)
    error = fails(capsys, "import", hub, tmp_path / "out")
    assert "No space left on device" in error and "nothing was changed" in error
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_who_holds_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run without a checkpoint yet."""
    held = acquire(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().out.startswith(f"held by    process {os.getpid()} on ")
    held.release()
