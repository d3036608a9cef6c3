"""The same data is known again, and other data is not taken for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from git_scale.data import index
from git_scale.data.fingerprint import UNKNOWN, compare_fingerprints, parse_fingerprint
from git_scale.data.indexing import make_indexes
from git_scale.data.listing import list_shards
from git_scale.data.store import open_store

PNG = b"\x89PNG" + bytes(600)


@pytest.fixture
def build(tmp_path: Path, write_shard: Callable, text: Callable) -> Callable[..., str]:
    """Writes a folder of one shard and returns its fingerprint."""

    def write(name: str, image: bytes = PNG, caption: str = "a dog", digests: bool = False) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        path = write_shard(tmp_path / name / "s.tar", [("a", {"png": image, "json": text(caption)})])
        make_indexes([path], digests)
        return open_store(tmp_path / name).fingerprint

    return write


def test_the_older_form_is_a_part_of_it(folder: Path) -> None:
    listing = "\n".join(
        f"{path.name} {path.stat().st_size} {count}"
        for path, count in zip(list_shards(folder).paths, (5, 7, 4), strict=True)
    )
    older = xxhash.xxh3_64_hexdigest(listing.encode())
    fingerprint = open_store(folder).fingerprint
    assert fingerprint.startswith(f"v2:{older}:")
    outcome = compare_fingerprints(older, fingerprint)
    assert (outcome.difference, outcome.known) == ("", fingerprint) and "older form" in outcome.note
    assert "other shards" in compare_fingerprints("0" * 16, fingerprint).difference


def test_exchanged_captions_of_the_same_size_are_noticed(build: Callable) -> None:
    first, second = build("one"), build("two", caption="a cat")
    assert (
        parse_fingerprint(first).listing == parse_fingerprint(second).listing
    )  # all that was compared before
    assert "texts or images" in compare_fingerprints(first, second).difference
    assert compare_fingerprints(first, build("three")) == ("", "", first)


def test_exchanged_images_of_the_same_size_are_noticed_by_their_ends(build: Callable) -> None:
    other = PNG[:-10] + b"other ends"
    assert "texts or images" in compare_fingerprints(build("one"), build("two", other)).difference


def test_a_byte_inside_an_image_is_noticed_where_both_sides_have_digests(build: Callable) -> None:
    other = PNG[:100] + b"x" + PNG[101:]
    light, whole = build("one"), build("two", digests=True)
    assert "images" in compare_fingerprints(whole, build("three", other, digests=True)).difference
    assert compare_fingerprints(light, build("four", other)).difference == ""  # what a scan does not read
    assert parse_fingerprint(light).digests == UNKNOWN


def test_digests_that_are_filled_in_later_make_no_other_data(build: Callable) -> None:
    light, whole = build("one"), build("two", digests=True)
    assert light != whole
    assert compare_fingerprints(light, whole) == ("", "", whole)
    assert compare_fingerprints(whole, light) == ("", "", whole)  # and what was known is not forgotten


def test_a_copy_with_other_times_is_the_same_data_and_keeps_its_digests(
    build: Callable, tmp_path: Path
) -> None:
    whole = build("one", digests=True)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    shard = tmp_path / "copy" / "s.tar"
    later = index.sidecar_of(shard).stat().st_mtime_ns + 10**9
    os.utime(shard, ns=(later, later))
    assert index.load(shard) is None
    assert open_store(tmp_path / "copy").fingerprint == whole


def test_an_index_of_the_older_form_leaves_the_content_uncompared(build: Callable, tmp_path: Path) -> None:
    first = build("one")
    shard = tmp_path / "one" / "s.tar"
    made = index.load(shard)
    assert made is not None
    older = np.zeros(len(made.table), index.older_dtype_of(1))
    for name in older.dtype.names:
        older[name] = made.table[name]
    np.save(index.sidecar_of(shard), older)
    outcome = compare_fingerprints(first, open_store(tmp_path / "one").fingerprint)
    assert (outcome.difference, outcome.known) == ("", first) and "not compared" in outcome.note
