"""The share of a data set's characters that a tokenizer loses."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import webdataset

from git_scale.data.coverage import SAMPLES, coverage_of, report_coverage
from git_scale.data.store import SampleStore, open_store
from git_scale.data.tokenizer import UncoveredText


class Ascii:
    """A tokenizer that knows the letters of English, and has bytes for digits."""

    path, fingerprint, vocab_size, pad_id, bos_id, eos_id = Path("ascii"), "", 0, 0, 0, 0

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        raise NotImplementedError

    def uncovered(self, text: str) -> UncoveredText:
        return UncoveredText([c for c in text if not c.isascii()], [c for c in text if c.isdecimal()])


def test_characters_are_counted_and_named_with_an_example() -> None:
    found = coverage_of(Ascii(), ["caf\u00e9 in the sun", " at 30\u00b0 ", "", "na\u00efve caf\u00e9"])
    assert (found.texts, found.characters) == (3, 12 + 5 + 9)
    assert found.unknown == {"\u00e9": 2, "\u00b0": 1, "\u00ef": 1} and found.in_bytes == {"3": 1, "0": 1}
    assert found.lost == pytest.approx(4 / 26)
    line = found.describe()
    assert line.startswith(
        "15 % of 26 characters are lost, they become the unknown token: '\u00e9' x 2 ('caf\u00e9 in"
    )
    assert "; 7.7 % of 26 characters are spelled in bytes: '3' x 1 ('at 30\u00b0')" in line
    clean = coverage_of(Ascii(), ["a dog"])
    assert clean.describe() == "the vocabulary has pieces for all 4 characters of 1 texts"


def shards_of(folder: Path, texts: list[str]) -> SampleStore:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "s-000000.tar"), encoder=False) as tar:
        for key, text in enumerate(texts):
            said = {"captions": [text], "questions": [{"question": "what?", "answers": [text]}]}
            tar.write({"__key__": f"{key}", "jpg": b"never decoded", "json": json.dumps(said).encode()})
        tar.write({"__key__": "bad", "jpg": b"never decoded", "txt": b"\xff"})
    return open_store(folder)


def test_a_run_says_at_its_start_what_its_tokenizer_loses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        report_coverage(Ascii(), shards_of(tmp_path / "bad", ["caf\u00e9"] * 20), "data.train=bad")
        report_coverage(Ascii(), shards_of(tmp_path / "good", ["a dog"] * (4 * SAMPLES)), "data.train=good")
    bad, good = (record for record in caplog.records if record.name == "git_scale.data.coverage")
    assert bad.levelno == logging.WARNING and good.levelno == logging.INFO
    assert "'\u00e9' x 40" in bad.getMessage() and "tools/train_tokenizer.py" in bad.getMessage()
    texts = 3 * (SAMPLES - 1)  # of a sample, not of all: the last one is unreadable
    assert good.getMessage().endswith(f"has pieces for all {texts // 3 * 13:,} characters of {texts} texts")
