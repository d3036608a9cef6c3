"""LMDB databases as scene text recognition publishes them."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import pytest

from git_scale.data.store import open_store, problem_of
from git_scale.errors import DataError


def write_database(
    folder: Path, words: Mapping[int, str], count: object, image: Callable[..., bytes]
) -> Path:
    """`words`: number -> label; image 3 is left out."""
    folder.mkdir(parents=True)
    database = lmdb.open(str(folder), map_size=1 << 24)
    with database.begin(write=True) as transaction:
        for number, word in words.items():
            if number != 3:
                transaction.put(f"image-{number:09d}".encode(), image(number))
            transaction.put(f"label-{number:09d}".encode(), word.encode())
        if count is not None:
            transaction.put(b"num-samples", str(count).encode())
    database.close()
    return folder


@pytest.fixture
def words(tmp_path: Path, image: Callable) -> Path:
    """Two databases below one folder: the third of 3 samples has no image, the second of 2 is gone."""
    write_database(tmp_path / "words" / "MJ" / "train", {1: "Open", 2: "24h", 3: "hole"}, 3, image)
    write_database(tmp_path / "words" / "ST", {1: "caf\u00e9"}, 2, image)
    return tmp_path / "words"


def test_samples_are_read_by_number_over_the_databases(words: Path, image: Callable) -> None:
    store = open_store(words)
    assert store.counts.tolist() == [3, 2] and len(store) == 5
    raw = store.read(1)
    assert (raw.key, raw.image, raw.text.captions) == ("MJ/train:000000002", image(2), ["24h"])
    assert store.read(3).text.captions == ["caf\u00e9"]
    assert open_store(words / "ST").key(0) == "ST:000000001"


def test_links_are_followed_and_empty_databases_are_none(
    words: Path, tmp_path: Path, image: Callable
) -> None:
    write_database(tmp_path / "far", {1: "away"}, 1, image)
    (words / "linked").symlink_to(tmp_path / "far")
    (words / "ST" / "up").symlink_to(words)  # which leads back
    write_database(words / "empty", {}, 0, image)
    store = open_store(words)
    assert store.counts.tolist() == [3, 2, 1] and store.key(5) == "linked:000000001"
    with pytest.raises(DataError, match="there is no sample in it"):
        open_store(words / "empty")


def test_holes_are_samples_that_cannot_be_read(words: Path) -> None:
    store = open_store(words)
    with pytest.raises(DataError, match=r"MJ/train:000000003: no image: a hole in the database"):
        store.read(2)
    assert store.read_text(2).captions == ["hole"]
    with pytest.raises(DataError, match=r"ST:000000002: no image"):
        store.read(4)
    with pytest.raises(DataError, match=r"ST:000000002: no label: a hole in the database"):
        store.read_text(4)


def test_the_same_samples_are_known_again_wherever_they_lie(
    words: Path, tmp_path: Path, image: Callable
) -> None:
    first = open_store(words)
    moved = words.rename(tmp_path / "elsewhere")
    again = open_store(moved)
    assert (again.fingerprint, again.contents.tolist()) == (first.fingerprint, first.contents.tolist())
    other = write_database(tmp_path / "other", {1: "Open", 2: "24H", 3: "hole"}, 3, image)
    assert open_store(other).contents[0] != open_store(moved / "MJ" / "train").contents[0]


def read_key(store: object, number: int) -> str:
    return str(store.read(number).text.captions)  # type: ignore[attr-defined]


def test_it_is_read_by_forked_processes_and_pickles(words: Path) -> None:
    store = open_store(words)
    assert read_key(store, 0) == "['Open']"  # opened here: the child must not use this one
    with mp.get_context("fork").Pool(2) as pool:
        found = pool.starmap(read_key, [(store, 0), (store, 1), (store, 3)])
    assert found == ["['Open']", "['24h']", "['caf\u00e9']"]
    assert read_key(store, 1) == "['24h']"
    assert read_key(pickle.loads(pickle.dumps(store)), 3) == "['caf\u00e9']"


@pytest.mark.parametrize(
    ("count", "said"), [(None, "None"), ("many", "b'many'"), ("9" * 5000, f"b'{'9' * 80}'")]
)
def test_a_database_that_does_not_say_its_size_is_refused(
    tmp_path: Path, image: Callable, count: object, said: str
) -> None:
    folder = write_database(tmp_path / "db", {1: "a"}, count, image)
    with pytest.raises(
        DataError, match=rf"db: its num-samples is {said}, not a number: not an LMDB of words"
    ):
        open_store(folder)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(b"not a database" * 1000)
    assert problem_of(tmp_path / "db") == ""
    with pytest.raises(DataError, match=r"db: .*MDB_INVALID"):
        open_store(tmp_path / "db")


@pytest.mark.parametrize("kept", [4096, 8192, 0.5, 0.99])
def test_a_database_that_is_cut_off_is_refused(tmp_path: Path, image: Callable, kept: float) -> None:
    """Reading a page that is not there would end the process by SIGBUS."""
    folder = write_database(tmp_path / "words", dict.fromkeys(range(1, 60), "word"), 59, image)
    size = (folder / "data.mdb").stat().st_size
    os.truncate(folder / "data.mdb", int(kept if kept > 1 else kept * size))
    with pytest.raises(DataError, match=r"words"):
        open_store(folder)


@pytest.mark.parametrize("count", [10, "9" * 20, "9" * 101])
def test_a_count_that_the_entries_cannot_be_is_refused(
    tmp_path: Path, image: Callable, count: object
) -> None:
    folder = write_database(tmp_path / "words", {1: "a", 2: "b"}, count, image)
    with pytest.raises(
        DataError, match=r"words: its num-samples is .*9|words: its num-samples is 10, but it has 5"
    ):
        open_store(folder)
