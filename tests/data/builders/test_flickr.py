"""Flickr token files."""

from __future__ import annotations

from pathlib import Path

import pytest

from git_scale.data.builders.flickr import read_flickr
from git_scale.data.builders.pictures import Row
from git_scale.errors import DataError


def test_captions_of_a_picture_are_gathered(tmp_path: Path) -> None:
    path = tmp_path / "t.token"
    path.write_text("b.jpg#0\tA dog .\nb.jpg#1\tThe\u2028dog\twaits .\r\n\na#1.jpg#0\t\n", encoding="utf-8")
    assert read_flickr(path) == [Row("b.jpg", ("A dog .", "The\u2028dog\twaits .")), Row("a#1.jpg", ("",))]


@pytest.mark.parametrize("line", ["b.jpg#0 A dog", "b.jpg\tA dog"])
def test_another_form_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.token"
    path.write_text(f"a.jpg#0\tA cat .\n{line}\n")
    with pytest.raises(DataError, match=r"t\.token, line 2: expected FILE#n<TAB>caption, found 'b.jpg"):
        read_flickr(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.token: not a readable token file"):
        read_flickr(tmp_path / "gone.token")
