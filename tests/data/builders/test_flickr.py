"""Flickr token files."""

from __future__ import annotations

from pathlib import Path

import pytest

from git_scale.data.builders.flickr import read_flickr
from git_scale.data.builders.source_images import SourceRow
from git_scale.errors import DataError


def test_captions_of_an_image_are_gathered(tmp_path: Path) -> None:
    path = tmp_path / "t.token"
    path.write_text("b.jpg#0\tA dog .\nb.jpg#1\tThe\u2028dog\twaits .\r\n\na#1.jpg#0\t\n", encoding="utf-8")
    assert read_flickr(path) == [
        SourceRow("b.jpg", ("A dog .", "The\u2028dog\twaits .")),
        SourceRow("a#1.jpg", ("",)),
    ]


@pytest.mark.parametrize("line", ["b.jpg#0 A dog", "b.jpg\tA dog", "b.jpg#\tA dog", "b.jpg#x\tA dog"])
def test_another_form_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.token"
    path.write_text(f"a.jpg#0\tA cat .\n{line}\n")
    with pytest.raises(DataError, match=r"t\.token, line 2: expected FILE#n<TAB>caption, found 'b.jpg"):
        read_flickr(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_end_a_line(tmp_path: Path, end: str) -> None:
    """With \\r alone the whole file was one caption."""
    path = tmp_path / "t.token"
    path.write_bytes(end.join(["a.jpg#0\tone", "", "b.jpg#0\ttwo", "./a.jpg#1\tthree"]).encode())
    assert read_flickr(path) == [SourceRow("a.jpg", ("one", "three")), SourceRow("b.jpg", ("two",))]


def test_a_number_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.token"
    path.write_text("a.jpg#0\tone\nb.jpg#0\ttwo\na.jpg#0\tthree\n")
    with pytest.raises(DataError, match=r"line 3: 'a\.jpg#0' stands on line 1 already"):
        read_flickr(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.token").write_bytes("a.jpg#0\tone\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"wide\.token: not a readable token file: it is UTF-16"):
        read_flickr(tmp_path / "wide.token")
    with pytest.raises(DataError, match=r"gone\.token: not a readable token file"):
        read_flickr(tmp_path / "gone.token")
