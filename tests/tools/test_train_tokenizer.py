from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from types import ModuleType

import pytest
import webdataset

from git_scale.data.tokenizer import load_tokenizer

TOOL = Path(__file__).parents[2] / "tools" / "train_tokenizer.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_tokenizer", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Each kind of text has letters of its own, so that a kind left out is a letter left out."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "s-000000.tar"), encoder=False) as tar:
        for key in range(30):
            text = {
                "captions": [f"aab ab {'ab' * (key % 5)}", "ba"],
                "clip_captions": ["cd dc cdc"],
                "questions": [{"question": "ef fe", "answers": ["gh", "hg"]}],
            }
            tar.write({"__key__": f"{key}", "jpg": b"never decoded", "json": json.dumps(text).encode()})
        tar.write({"__key__": "txt", "jpg": b"never decoded", "txt": b"ij ji"})
        tar.write({"__key__": "bad", "jpg": b"never decoded", "txt": b"\xff"})
    return folder


def test_every_kind_of_text_is_learned(
    tool: ModuleType, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "t.model"
    assert tool.main([str(shards), str(destination), "--vocab-size", "20"]) == 0
    tokenizer = load_tokenizer(destination)
    assert tokenizer.vocab_size == 20
    unknown = 1
    assert unknown not in tokenizer.encode("abcdefghij")
    assert unknown in tokenizer.encode("xyz")  # the negative control
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "20 tokens, from 32 samples" in lines[0]
    assert lines[1:4] == [
        "  left out: 1 samples (3.1 %) without a readable text",
        "  no byte fallback below --vocab-size 1000: its 256 pieces would take most of the vocabulary;"
        " a character that these texts do not have is lost",
        "  the vocabulary has pieces for all 784 characters of 181 texts",
    ]
    assert len(lines) == 7 and all(" tokens: " in line for line in lines[4:])
    assert err.count("left out: s-000000.tar:bad: the text is not UTF-8") == 1


def test_a_model_that_is_there_stays(
    tool: ModuleType, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.model").write_text("keep")
    assert tool.main([str(shards), str(tmp_path / "t.model"), "--vocab-size", "20"]) == 2
    assert "t.model: exists; runs may depend on it" in capsys.readouterr().err
    assert (tmp_path / "t.model").read_text() == "keep"


def test_a_stop_ends_it_with_130_and_nothing_left(
    tool: ModuleType, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = iter([True])

    def stopped(_record: object) -> list[str]:
        if next(
            first, False
        ):  # in a thread of the training: a second one could come behind the first's handler
            signal.raise_signal(signal.SIGTERM)
        return ["a text"]

    monkeypatch.setattr(tool, "texts_of", stopped)
    assert tool.main([str(shards), str(tmp_path / "t.model"), "--vocab-size", "20"]) == 130
    assert not list(tmp_path.glob("*t.model*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "t.model", "--vocab-size", "20"], "no such folder"),
        (["shards", "t.txt", "--vocab-size", "20"], "ends in .model"),
        (["shards", "t.model", "--vocab-size", "9000"], "fill at most"),
    ],
)
def test_wrong_usage(
    tool: ModuleType,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tool.main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]
