"""Folders of classes, as torchvision and ImageNet have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.data.builders.classes import class_names, names_of, read_classes
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.data.class_names import NAMES_FILE, class_names_text, read_named_classes
from git_scale.errors import DataError


def given(source: Path, **options: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("names", "labels", "unlabelled", "shots", "seed"))
    return {"source": source, **nothing, **options}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, files in {"red_fox": "ab", "n02113186": "cde", "empty": ""}.items():
        (tmp_path / "src" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "src" / name / f"{file}.JPEG").write_bytes(b"x")
    (tmp_path / "src" / "red_fox" / "notes.txt").write_text("no image")
    return tmp_path / "src"


def test_each_image_has_the_name_of_its_folder(folders: Path) -> None:
    note, *rows = read_classes(given(folders))
    assert note == Skipped("red_fox/notes.txt", "not named as a JPEG, PNG or WebP image")
    assert rows[0] == Skipped("empty", "class without an image", "class")
    assert rows[1] == SourceRow("n02113186/c.JPEG", ("n02113186",), {"image_id": "c", "class": "n02113186"})
    assert [row.captions for row in rows[4:]] == [("red fox",), ("red fox",)]  # type: ignore[union-attr]
    assert class_names(given(folders)) == {
        "class_names.txt": "empty\tempty\nn02113186\tn02113186\nred_fox\tred fox\n"
    }


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("map.txt", "n02113186 Cardigan, Cardigan Welsh corgi\nred_fox red fox, Vulpes\nempty nothing\n"),
        ("map.tsv", "n02113186\tCardigan\nred_fox\tred fox\nempty\tnothing\n"),
        ("map.json", json.dumps({"n02113186": "Cardigan", "red_fox": "red_fox", "empty": "nothing"})),
        (
            "map.json",
            json.dumps(
                {"0": ["n02113186", "Cardigan"], "1": ["red_fox", "red_fox"], "2": ["empty", "nothing"]}
            ),
        ),
    ],
)
def test_names_of_every_form(folders: Path, tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    names = names_of(["empty", "n02113186", "red_fox"], tmp_path / file)
    assert names == {"n02113186": "cardigan dog", "red_fox": "red fox", "empty": "nothing"}, (
        "GIT's readable name"
    )


def test_two_classes_of_one_name_and_classes_without_one_are_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a crane\nb Crane\n")
    with pytest.raises(DataError, match=r"the classes 'a' and 'b' are both named 'Crane'"):
        names_of(["a", "b"], tmp_path / "names.txt")
    with pytest.raises(DataError, match=r"no name for 2 classes of the folder, as 'c'"):
        names_of(["c", "d"], tmp_path / "names.txt")
    with pytest.raises(
        DataError, match=r"no folders of classes in it; for one folder of images give --labels"
    ):
        read_classes(given(folders / "red_fox"))


def test_a_few_images_of_each_class_by_the_seed(folders: Path) -> None:
    def drawn(**options: Any) -> list[str]:
        return [row.file for row in read_classes(given(folders, **options)) if isinstance(row, SourceRow)]

    assert [name.split("/")[0] for name in drawn(shots=1)] == ["n02113186", "red_fox"]
    assert drawn(shots=1) == drawn(shots=1, seed=0)
    assert len({tuple(drawn(shots=1, seed=seed)) for seed in range(20)}) > 3
    assert len(drawn(shots=5)) == 5, "all where there are fewer"


@pytest.mark.parametrize(
    "content",
    [
        "ImageId,PredictionString\nILSVRC_1,n1 1 2 3 4 n1 5 6 7 8\nILSVRC_2,n0 1 2 3 4 \n",
        "ILSVRC_1.JPEG n1\nILSVRC_2.JPEG\tn0\n",
        "ILSVRC_1.JPEG,n1\n\nILSVRC_2.JPEG,n0\n",
    ],
)
def test_one_folder_with_a_list_of_labels(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    (tmp_path / "names.txt").write_text("n0 tench, Tinca tinca\nn1 goldfish\n")
    rows = read_classes(given(tmp_path, labels=tmp_path / "labels.csv", names=tmp_path / "names.txt"))
    assert rows == [
        SourceRow("ILSVRC_2.JPEG", ("tench",), {"image_id": "ILSVRC_2", "class": "n0"}),
        SourceRow("ILSVRC_1.JPEG", ("goldfish",), {"image_id": "ILSVRC_1", "class": "n1"}),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "ImageId,PredictionString\ntest_2,n9 0 0 1 1\ntest_1,n1 0 0 1 1 n0 0 0 1 1\ntest_2,n1 0 0 1 1\n",
        "test_2 1\ntest_1 2\n\ntest_2 3\n",
        "test_2.JPEG\ntest_1\ntest_2\n",
    ],
)
def test_images_without_labels_are_kept_as_listed_and_get_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    (tmp_path / "names.txt").write_text("n0 tench, Tinca tinca\nn1 goldfish\n")
    options = given(tmp_path, unlabelled=tmp_path / "list.csv", names=tmp_path / "names.txt")
    assert read_classes(options) == [
        Skipped("test_2.JPEG", "listed again"),
        SourceRow("test_2.JPEG", (), {"image_id": "test_2"}, is_asked=True, is_measured=True),
        SourceRow("test_1.JPEG", (), {"image_id": "test_1"}, is_asked=True, is_measured=True),
    ]
    assert class_names(options) == {"class_names.txt": "n0\ttench\nn1\tgoldfish\n"}
    assert class_names({**options, "names": None}) == {}
    with pytest.raises(DataError, match=r"list.csv and --shots: images without labels have no class"):
        read_classes({**options, "shots": 1})


def test_the_names_that_a_build_writes_are_read_by_the_next(tmp_path: Path) -> None:
    names = {"n0": "tench", "red_fox": "red fox", "n02113186": "cardigan dog"}
    (tmp_path / NAMES_FILE).write_text(class_names_text(names))
    assert names_of([], tmp_path / NAMES_FILE) == names
    assert read_named_classes(tmp_path / NAMES_FILE) == list(names.items())
    (tmp_path / "old.txt").write_text("tench\n\nred fox\n n0 \t tench \n")
    assert read_named_classes(tmp_path / "old.txt") == [("", "tench"), ("", "red fox"), ("n0", "tench")]
    assert class_names_text({"a\tb\nc": "fox"}) == "a b c\tfox\n"


def test_a_line_without_a_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a.jpg n1\nb.jpg\n")
    with pytest.raises(DataError, match=r"labels.txt, line 2: FILE and CLASS are expected, found 'b.jpg'"):
        read_classes(given(tmp_path, labels=tmp_path / "labels.txt"))


@pytest.mark.parametrize(
    "content",
    [
        "0.jpg,great white shark\n1.jpg,great horned owl\n",
        "0.jpg great white shark\r\n1.jpg great horned owl\r\n",
        "0.jpg\tgreat white shark\n1.jpg\tgreat horned owl\n",
        '"0.jpg","great white shark"\n"1.jpg","great horned owl"\n',
    ],
)
def test_a_class_may_have_blanks(tmp_path: Path, content: str) -> None:
    """Both were "great"."""
    (tmp_path / "labels.csv").write_text(content)
    options = given(tmp_path, labels=tmp_path / "labels.csv")
    assert {row.file: row.captions for row in read_classes(options) if isinstance(row, SourceRow)} == {
        "0.jpg": ("great white shark",),
        "1.jpg": ("great horned owl",),
    }
    written = class_names(options)["class_names.txt"]
    assert written == "great horned owl\tgreat horned owl\ngreat white shark\tgreat white shark\n"


def test_what_is_no_image_of_a_class_is_counted(folders: Path) -> None:
    for name in ("red_fox/b.bmp", "red_fox/sub/a.gif", "n02113186/c.tiff", "readme.md", ".cache/a.jpg"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_bytes(b"x")
    rows = read_classes(given(folders))
    assert [row for row in rows if isinstance(row, Skipped) and row.unit == "image"] == [
        Skipped(".cache", "hidden, or no folder of a class"),
        Skipped("n02113186/c.tiff", "not named as a JPEG, PNG or WebP image"),
        Skipped("readme.md", "hidden, or no folder of a class"),
        Skipped("red_fox/b.bmp", "not named as a JPEG, PNG or WebP image"),
        Skipped("red_fox/notes.txt", "not named as a JPEG, PNG or WebP image"),
        Skipped("red_fox/sub/a.gif", "not named as a JPEG, PNG or WebP image"),
    ]
    assert len([row for row in rows if isinstance(row, SourceRow)]) == 5


def test_an_image_that_is_listed_twice_is_taken_once_or_contradicts_itself(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg,cat\nb.jpg,dog\n./a.jpg,cat\n")
    assert read_classes(given(tmp_path, labels=labels)) == [
        Skipped("a.jpg", "listed again"),
        SourceRow("a.jpg", ("cat",), {"image_id": "a", "class": "cat"}),
        SourceRow("b.jpg", ("dog",), {"image_id": "b", "class": "dog"}),
    ]
    labels.write_text("a.jpg,cat\na.jpg,dog\n")
    with pytest.raises(DataError, match=r"txt, line 2: 'a.jpg' is of the class 'dog', and of 'cat' above"):
        read_classes(given(tmp_path, labels=labels))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "n0 tench\nn0 goldfish\n"),
        ("names.tsv", "n0\ttench\nn1\tfox\nn0\tgoldfish\n"),
        ("names.json", json.dumps({"0": ["n0", "tench"], "1": ["n0", "goldfish"]})),
    ],
)
def test_a_class_of_two_names_is_refused(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=rf"{file}: the class 'n0' is named 'tench' and 'goldfish'; remove"):
        names_of(["n0"], tmp_path / file)
    (tmp_path / "same.txt").write_text("n0 tench\nn0 tench\n")
    assert names_of(["n0"], tmp_path / "same.txt") == {"n0": "tench"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a.jpg,cat\nb.jpg,"dog\nc.jpg,fox\n', r"labels\.csv, lines 2 to 3: unexpected end of data; mend"),
        ('a.jpg,"' + "x" * 200_000 + '"\n', r"labels\.csv, line 1: a cell of more than 131,072 characters"),
    ],
)
@pytest.mark.parametrize("option", ["labels", "unlabelled"])
def test_quotes_that_are_amiss_are_refused(tmp_path: Path, option: str, content: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_classes(given(tmp_path, **{option: tmp_path / "labels.csv"}))
