"""Kaggle's file for ImageNet: from a folder of images and its list to the file, and files damaged by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.data.class_names import read_class_keys
from git_scale.data.store import open_store
from git_scale.errors import DataError
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.evaluation.results import write_results
from git_scale.metrics.metric import Prediction
from git_scale.parallel.topology import Topology
from git_scale.tasks import SUBMISSIONS
from git_scale.tasks.submissions import Asked, problems_of
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOURS, SIDES, describe, draw_square

ROOT = Path(__file__).parents[2]
FORM = SUBMISSIONS["imagenet"]
NAMES = [describe(colour, side) for colour in COLOURS for side in SIDES]
KEYS = {name: f"n{number:08d}" for number, name in enumerate(NAMES)}
GOOD = """ImageId,PredictionString
test_1,n01440764 0 0 499 374 n01443537 10.5 0 10.5 374
test_2,n01443537 0 0 0 0
"""


def shards(folder: Path, *samples: dict[str, Any], names: str = "") -> Path:
    image = draw_square("red", "big")
    files = {"class_names.txt": names} if names else None
    write_shards((SampleToWrite(image, "png", text) for text in samples), folder, text_files=files)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    sizes = {"width": 500, "height": 375}
    samples = [{"image_id": f"test_{number}", **sizes} for number in (1, 2)]
    return shards(tmp_path / "test", *samples, names="n01440764\ttench\nn01443537\tgoldfish\n")


def problems(data: Path, text: str) -> list[str]:
    file = data.parent / "a.csv"
    file.write_text(text, encoding="utf-8")
    return problems_of(FORM, file, FORM.asked(open_store(data), [0, 1], data / "class_names.txt"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", []),
        ("\n", "\r\n", []),
        ("n01443537 10.5 0 10.5 374", " ".join(["n01443537 0 0 1 1"] * 4), []),
        (
            "n01443537 10.5 0 10.5 374",
            " ".join(["n01443537 0 0 1 1"] * 5),
            ['1 x PredictionString of more than five classes: line 2 (ImageId "test_1")'],
        ),
        ("0 0 0 0", "0 0 500 375", []),
        (
            "0 0 0 0",
            "0 0 500.5 374",
            ['1 x PredictionString with a box that ends outside the image: line 3 (ImageId "test_2")'],
        ),
        (
            "0 0 0 0",
            "0 0 499 99999",
            ['1 x PredictionString with a box that ends outside the image: line 3 (ImageId "test_2")'],
        ),
        ("test_2,n01443537 0 0 0 0\n", "", ['1 x ImageId without an answer: "test_2"']),
        (
            "test_2,",
            "test_1,",
            [
                '1 x ImageId more than once: line 3 (ImageId "test_1")',
                '1 x ImageId without an answer: "test_2"',
            ],
        ),
        (
            "test_2,",
            "test_2.JPEG,",
            [
                '1 x ImageId of no sample: line 3 (ImageId "test_2.JPEG")',
                '1 x ImageId without an answer: "test_2"',
            ],
        ),
        ("n01443537 0 0 0 0", " ", ['1 x empty answer: line 3 (ImageId "test_2")']),
        ("n01443537", "tench", ['2 x PredictionString with an unknown class: line 2 (ImageId "test_1")']),
        (
            "374 n0",
            "n0",
            ['1 x PredictionString of fields that are no multiple of five: line 2 (ImageId "test_1")'],
        ),
        (
            "0 0 0 0",
            "1 0 0 0",
            [
                '1 x PredictionString with a box that is not x_min y_min x_max y_max: line 3 (ImageId "test_2")'
            ],
        ),
        (
            "0 0 499 374",
            "0 374.5 499 374",
            [
                '1 x PredictionString with a box that is not x_min y_min x_max y_max: line 2 (ImageId "test_1")'
            ],
        ),
        (
            "0 0 0 0",
            "0 0 nan 0",
            ['1 x PredictionString with a box that is no four numbers: line 3 (ImageId "test_2")'],
        ),
        (
            "0 0 0 0",
            "-1 0 0 0",
            ['1 x PredictionString with a box that is no four numbers: line 3 (ImageId "test_2")'],
        ),
    ],
)
def test_what_the_server_would_refuse_is_counted(
    data: Path, before: str, after: str, said: list[str]
) -> None:
    assert problems(data, GOOD.replace(before, after) if before else GOOD) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.split("\n", 1)[1], "line 1 is to be ImageId,PredictionString, and is 'test_1,n01440764"),
        (GOOD.replace("ImageId", "image_id"), "line 1 is to be"),
        ("", "line 1 is to be"),
        ("\ufeff" + GOOD, "it begins with a byte-order mark, which a server takes for text"),
        (GOOD.replace("test_2,", "test_2 "), "line 3: ImageId,PredictionString is wanted, found 'test_2 n"),
        (GOOD.replace("0 0 0 0", "0,0"), "line 3: ImageId,PredictionString is wanted"),
        (GOOD + '"' + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_a_file_of_another_form_is_refused(data: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        problems(data, text)
    assert said in str(caught.value) and str(caught.value).startswith(str(data.parent / "a.csv"))


def test_the_tool_ends_with_0_or_2(data: Path, tmp_path: Path) -> None:
    def check(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "a.csv").write_text(text)
        command = [sys.executable, "tools/evaluate.py", "check", "imagenet", str(tmp_path / "a.csv")]
        given = [*command, "--data", str(data)]
        return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = check(GOOD)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'a.csv'}: an answer to each of 2\n"), (
        done.stderr
    )
    done = check(GOOD.replace("test_2", "test_3"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[1:] == [
        '1 x ImageId of no sample: line 3 (ImageId "test_3")',
        '1 x ImageId without an answer: "test_2"',
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("tench\ngoldfish\n", "the server knows 'tench' by one word, and its key is ''; build it with"),
        ("n0\ttench\nred fox\tfox\n", "the server knows 'fox' by one word, and its key is 'red fox'"),
        ("n0\ttench\nn0\tgoldfish\n", "'tench' and 'goldfish' have one key, 'n0'"),
        ("\n", "no class in it"),
        (None, "No such file or directory: the server knows classes by their keys; build it with"),
    ],
)
def test_names_without_keys_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_class_keys(path)
    assert str(caught.value).startswith(f"{path}: {said}")
    with pytest.raises(DataError, match=r"set data\.class_names=FILE"):
        read_class_keys(None)


def test_samples_without_a_size_are_refused(data: Path, tmp_path: Path) -> None:
    store = open_store(shards(tmp_path / "old", {"image_id": "a", "width": 500}))
    with pytest.raises(DataError, match=r"old-000000.tar:000000000: its width and height are 500 and None"):
        FORM.asked(store, [0], data / "class_names.txt")


def test_the_five_best_classes_each_with_the_whole_image(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"n{number}\tclass {number}\n" for number in range(7)))
    asked = Asked("a", {"width": 500, "height": 375}, read_class_keys(tmp_path / "names.txt"))
    ranking = tuple(f"class {number}" for number in (6, 0, 3, 2, 1, 5))
    said = Prediction(0, "", "a", "", "free text", [], ranking)
    five = "n6 0 0 499 374 n0 0 0 499 374 n3 0 0 499 374 n2 0 0 499 374 n1 0 0 499 374"
    assert FORM.answer(asked, said) == five
    assert FORM.write([(asked, five)]) == f"ImageId,PredictionString\na,{five}\n"


def evaluated(
    topology: Topology, device: torch.device, model: Path, data: Path, names: Path, out: Path
) -> str:
    given = [f"data.class_names={names}", "eval.submission=imagenet", "eval.beams=5", "data.workers=0"]
    given += ["eval.max_new_tokens=16", "train.micro_batch=2"]
    try:
        write_results(out, evaluate_checkpoint(model, data, "classification", None, given, {}, topology))
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_from_a_folder_of_images_to_a_file_that_passes(tmp_path: Path) -> None:
    """Images without labels, one of them turned by its EXIF; shards with shrunk images have the size of the files."""
    images, model, out = tmp_path / "images", write_taught(tmp_path / "taught"), tmp_path / "out"
    images.mkdir()
    right = {}
    for number, (colour, side, size) in enumerate(
        [("red", "big", (32, 32)), ("blue", "tiny", (768, 768)), ("green", "small", (64, 48))]
    ):
        (images / "drawn.png").write_bytes(draw_square(colour, side))
        exif = Image.Exif()
        if size[0] != size[1]:
            exif[0x0112] = 6  # a quarter turn
        with Image.open(images / "drawn.png") as drawn:
            drawn.resize(size).save(images / f"test_{number}.JPEG", quality=98, exif=exif)
        right[f"test_{number}"] = (KEYS[describe(colour, side)], f"0 0 {size[0] - 1} {size[1] - 1}")
    listed = "".join(f"test_{number},{KEYS[NAMES[-1]]} 1 2 3 4\n" for number in range(4))
    (tmp_path / "sample.csv").write_text(f"ImageId,PredictionString\n{listed}")
    (tmp_path / "map.txt").write_text("".join(f"{key} {name}, square\n" for name, key in KEYS.items()))
    command = [sys.executable, "tools/prepare_data.py", "classes", str(images), str(tmp_path / "test")]
    command += ["--unlabelled", str(tmp_path / "sample.csv"), "--names", str(tmp_path / "map.txt")]
    done = subprocess.run(
        [*command, "--shrink", "--workers", "1"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "missing image: 'test_3.JPEG'" in done.stdout, done.stderr
    data, names = tmp_path / "test", tmp_path / "test" / "class_names.txt"
    assert not any(open_store(data).read_text(number).captions for number in range(3))
    assert run_distributed(evaluated, 1, model, data, names, out) == [""]
    with (out / "submission.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ImageId"] for row in rows] == list(right)
    for row in rows:
        fields = row["PredictionString"].split()
        key, box = right[row["ImageId"]]
        assert len(fields) == 25 and len(set(fields[::5])) == 5 and set(fields[::5]) <= set(KEYS.values())
        assert {" ".join(fields[at + 1 : at + 5]) for at in range(0, 25, 5)} == {box}
        if row["ImageId"] != "test_2":  # what is turned and drawn out is no square that the model knows
            assert fields[0] == key
    results = json.loads((out / "results.json").read_text())
    assert [KEYS[row["ranking"][4]] for row in results] == [
        row["PredictionString"].split()[20] for row in rows
    ]
    assert problems_of(FORM, out / "submission.csv", FORM.asked(open_store(data), range(3), names)) == []
    names.write_text("\n".join(NAMES))
    (said,) = run_distributed(evaluated, 1, model, data, names, tmp_path / "none")
    assert "by one word, and its key is ''" in said and not (tmp_path / "none").exists()
