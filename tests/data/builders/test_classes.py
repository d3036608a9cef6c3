"""Folders of classes, as torchvision and ImageNet have them."""

from __future__ import annotations

import json
import os
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


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


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
    touch(tmp_path, "ILSVRC_1.JPEG", "ILSVRC_2.JPEG")
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
    touch(tmp_path, "0.jpg", "1.jpg")
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
    touch(tmp_path, "a.jpg", "b.jpg")
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


@pytest.mark.parametrize("half", ["caf\udce9", "x\ud800"])
def test_a_class_that_utf8_cannot_write_is_refused_before_the_work(tmp_path: Path, half: str) -> None:
    """The first was a traceback after all shards were written: a folder's name in Latin-1 has that form."""
    names = tmp_path / "names.json"
    for tree in ({"dog": "a dog", half: "coffee"}, {"dog": half}):
        names.write_text(json.dumps(tree))
        with pytest.raises(
            DataError, match=r"names.json: '(caf\\udce9|x\\ud800)' cannot be written as UTF-8"
        ):
            names_of(["dog"], names)
    folder = tmp_path / "src" / "dog"
    folder.mkdir(parents=True)
    assert names_of(["dog"], None) == {"dog": "dog"}
    if half.startswith("caf"):
        folder.rename(tmp_path / "src" / half)
        assert os.listdir(os.fsencode(tmp_path / "src")) == [b"caf\xe9"]  # noqa: PTH208 - in bytes
        with pytest.raises(
            DataError, match=r"folders: 'caf\\udce9' cannot be written as UTF-8; give it another"
        ):
            read_classes(given(tmp_path / "src"))


@pytest.mark.parametrize(
    ("content", "files"),
    [
        ("my photo.jpg\nmy other.JPG\nplain.jpg\n", ["my photo.jpg", "my other.JPG", "plain.jpg"]),
        ("my photo.jpg 0\nmy other.jpg sea snake.png\n", ["my photo.jpg", "my other.jpg"]),
        ("my photo.jpg\t0\nmy other.jpg\nmy third\n", ["my photo.jpg", "my other.jpg", "my.JPEG"]),
        ("dog, brown.jpg\ntest_1,n1\n", ["dog, brown.jpg", "test_1.JPEG"]),
        ("file\na.jpg\n", ["a.jpg"]),
        ("id\tlabel\na\t1\n", ["a.JPEG"]),
        ("image_id x\nmy photo.jpg\n", ["my photo.jpg"]),
    ],
)
def test_names_with_blanks_are_read_to_their_ending(tmp_path: Path, content: str, files: list[str]) -> None:
    """Two names that began with one word were one image."""
    (tmp_path / "list.txt").write_text(content)
    rows = read_classes(given(tmp_path, unlabelled=tmp_path / "list.txt"))
    assert [row.file for row in rows if isinstance(row, SourceRow)] == files
    assert len(rows) == len(files), "nothing is listed again"


def labelled(tmp_path: Path, content: str) -> dict[str, tuple[str, ...]]:
    (tmp_path / "labels.txt").write_text(content)
    rows = read_classes(given(tmp_path, labels=tmp_path / "labels.txt"))
    return {row.file: row.captions for row in rows if isinstance(row, SourceRow)}


@pytest.mark.parametrize(
    "content",
    [
        "plain.jpg\ttench, Tinca tinca\nmy photo.jpg\tsea snake\n",
        "image\tclass\nplain.jpg\ttench, Tinca tinca\nmy photo.jpg sea snake\n",
        'plain.jpg\t"tench, Tinca tinca"\r\nmy photo.jpg\tsea snake\r\n',
        'file,class\nplain.jpg,"tench, Tinca tinca"\nmy photo.jpg,sea snake\n',
    ],
)
def test_a_tab_parts_where_one_is_and_a_header_names_no_image(tmp_path: Path, content: str) -> None:
    assert labelled(tmp_path, content) == {
        "my photo.jpg": ("sea snake",),
        "plain.jpg": ("tench, Tinca tinca",),
    }


def test_an_image_that_is_named_as_a_header_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "file.JPEG")
    assert labelled(tmp_path, "file,dog\na.jpg,cat\n") == {"a.jpg": ("cat",), "file.JPEG": ("dog",)}
    with pytest.raises(DataError, match=r"labels.txt, line 2: FILE is expected first, found 'cat'"):
        labelled(tmp_path, "a.jpg,dog\n ,cat\n")


def test_a_class_whose_images_are_all_missing_is_no_choice_of_the_model(tmp_path: Path) -> None:
    """A header in other words was a class; with --names the user has said which there are."""
    touch(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_text("what,of\na.jpg,dog\nb.jpg,dog\nc.jpg,fox\n")
    options = given(tmp_path, labels=tmp_path / "labels.csv")
    assert class_names(options) == {NAMES_FILE: "dog\tdog\n"}
    rows = read_classes(options)
    assert rows[:2] == [Skipped(key, "class without an image", "class") for key in ("fox", "of")]
    assert [row.file for row in rows[2:]] == ["a.jpg", "b.jpg", "c.jpg", "what.JPEG"], (
        "the missing are counted"
    )  # type: ignore[union-attr]
    (tmp_path / "names.txt").write_text("dog a dog\nfox a fox\nof x\n")
    named = class_names({**options, "names": tmp_path / "names.txt"})
    assert named == {NAMES_FILE: "dog\ta dog\nfox\ta fox\nof\tx\n"}
