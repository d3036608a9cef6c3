"""A format of one's own is opened, prepared by parts and trained on like the package's."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import xxhash

from git_scale.config import RunConfig
from git_scale.data.captions import TextRecord
from git_scale.data.loader import build_train_loader
from git_scale.data.store import (
    STORE_FORMATS,
    RawSample,
    SampleStore,
    naming,
    open_store,
    prepare_store,
    problem_of,
)
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import DataError
from git_scale.tasks import build_task

CSV = "captions.csv"


class CsvFolder:
    """A folder of images beside captions.csv (file, caption): what a user's plugin may hold."""

    def problem_of(self, path: Path) -> str:
        return "" if (path / CSV).is_file() else f"no {CSV} inside"

    def prepare(self, path: Path, part: int, parts: int) -> tuple[int, int]:
        return part, parts

    def open(self, path: Path, prepared: Sequence[tuple[int, int]]) -> SampleStore:
        assert [part for part, _ in prepared] == list(range(len(prepared)))
        with (path / CSV).open(newline="") as file:
            return CsvStore(path, list(csv.reader(file)))


class CsvStore:
    def __init__(self, folder: Path, rows: list[list[str]]) -> None:
        self._folder, self._rows = folder, rows
        self.counts = np.array([len(rows)], np.int64)
        digest = xxhash.xxh3_64(repr(rows).encode())
        self.fingerprint = digest.hexdigest()
        self.contents = np.array([digest.intdigest()], np.uint64)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, number: int) -> str:
        return f"{CSV}:{self._rows[number][0]}"

    def read(self, number: int) -> RawSample:
        with naming(self.key(number)):
            path = self._folder / self._rows[number][0]
            if not path.is_file():
                raise DataError("no such image")
            return RawSample(self.key(number), path.read_bytes(), [], self.read_text(number))

    def read_text(self, number: int) -> TextRecord:
        return TextRecord([self._rows[number][1]])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    STORE_FORMATS.add("csv", CsvFolder())
    yield
    del STORE_FORMATS._added["csv"]


@pytest.fixture
def captions(tmp_path: Path, image: Callable) -> Path:
    """Four rows, of which the last has no image."""
    (tmp_path / "csv").mkdir()
    rows = [(f"{number}.jpg", f"image {number}") for number in range(4)]
    for number in range(3):
        (tmp_path / "csv" / f"{number}.jpg").write_bytes(image(number))
    (tmp_path / "csv" / CSV).write_text("".join(f"{name},{text}\n" for name, text in rows))
    return tmp_path / "csv"


def test_the_first_format_that_takes_a_path_opens_it(captions: Path, folder: Path) -> None:
    assert type(open_store(captions)) is CsvStore
    assert type(open_store(folder)) is not CsvStore
    assert problem_of(captions) == problem_of(folder) == ""


def test_a_path_that_no_format_takes_is_refused_by_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = r"empty: no \*\.tar inside; .*; no captions\.csv inside"
    with pytest.raises(DataError, match=said):
        open_store(tmp_path / "empty")
    with pytest.raises(DataError, match=said):
        prepare_store(tmp_path / "empty", 0, 1)


def test_a_source_without_samples_is_refused(captions: Path) -> None:
    (captions / CSV).write_text("")
    with pytest.raises(DataError, match=r"csv: there is no sample in it"):
        open_store(captions)


def test_it_is_prepared_by_parts(captions: Path) -> None:
    parts = [prepare_store(captions, part, 3) for part in range(3)]
    assert len(open_store(captions, parts)) == 4
    with pytest.raises(AssertionError):
        open_store(captions, parts[1:])


def test_it_is_trained_on(captions: Path, tmp_path: Path) -> None:
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "image", *"0123"]) + "\n")
    tokenizer = load_tokenizer(vocab_file)
    run = RunConfig.model_validate(
        {
            "train": {"global_batch": 4, "micro_batch": 4},
            "data": {"workers": 0},
            "model": {"encoder": {"image_size": 16}},
        }
    )
    for batch in islice(
        build_train_loader(run, open_store(captions), build_task("caption", run, tokenizer), 0, 1, 0), 3
    ):
        assert sorted(batch.keys) == [f"{CSV}:{number}.jpg" for number in range(4)]
        assert batch.problems == [f"{CSV}:3.jpg: no such image"]
        learned = set((batch.rows // batch.tokens.shape[-1]).tolist())  # one text per sample
        for b, (key, tokens) in enumerate(zip(batch.keys, batch.tokens, strict=True)):
            if "3.jpg" not in key:
                assert tokenizer.decode(tokens[0].tolist()) == f"image {key[-5]}"
            assert (b in learned) == ("3.jpg" not in key)
