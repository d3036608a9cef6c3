"""The command line: from a source to shards that open, with a summary and clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from git_scale.data.store import open_store
from git_scale.testing.subprocesses import started

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a.jpg", "red"), ("b.png", "green")):
        Image.new("RGB", (32, 24), colour).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:100])
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    return folder


FILES = ("a.jpg", "b.png", "broken.jpg", "gone.jpg", "../secret.jpg")


def write_sources(folder: Path) -> dict[str, Path]:
    """The same content in every format: two captions for a.jpg, one and an empty one for b.png."""
    pairs = [(file, f"about {file}") for file in FILES] + [("a.jpg", "more"), ("b.png", " ")]
    ids = {file: number for number, file in enumerate(FILES, start=100)}
    tree = {
        "images": [{"id": ids[file], "file_name": file} for file in FILES],
        "annotations": [{"image_id": ids[file], "caption": text} for file, text in pairs],
    }
    sources = {name: folder / name for name in ("t.csv", "t.tsv", "t.token", "t.json")}
    sources["t.csv"].write_text("file,caption\n" + "".join(f"{file},{text}\n" for file, text in pairs))
    sources["t.tsv"].write_text("image\ttext\n" + "".join(f"{file}\t{text}\n" for file, text in pairs))
    sources["t.token"].write_text("".join(f"{file}#{n}\t{text}\n" for n, (file, text) in enumerate(pairs)))
    sources["t.json"].write_text(json.dumps(tree))
    return sources


@pytest.mark.parametrize(
    ("form", "source"), [("images", "t.csv"), ("images", "t.tsv"), ("flickr", "t.token"), ("coco", "t.json")]
)
def test_every_format_builds_the_same_samples(
    tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, source: str
) -> None:
    captions = write_sources(tmp_path)[source]
    command = [form, str(images), str(tmp_path / "out"), "--captions", str(captions), "--workers", "1"]
    assert tool.main(command) == 0
    shards = open_store(tmp_path / "out")
    assert len(shards) == 2
    first, second = shards.read(0), shards.read(1)
    assert first.image == (images / "a.jpg").read_bytes() and second.image == (images / "b.png").read_bytes()
    assert first.text.captions == ["about a.jpg", "more"] and second.text.captions == ["about b.png"]
    assert first.text.meta.get("image_id") == (100 if form == "coco" else None)
    output = capsys.readouterr().out
    assert output.splitlines()[1].split()[:6] == ["out", "2", "3", "3", "0", "1"]
    for line in (
        "skipped 1 (25.0 % of the captions): empty caption: 'b.png'",
        "skipped 1 (20.0 % of the images): broken image: 'broken.jpg'",
        "skipped 1 (20.0 % of the images): missing image: 'gone.jpg'",
        "skipped 1 (20.0 % of the images): path leaves the images folder: '../secret.jpg'",
    ):
        assert line in output


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        ("images", "t.csv", "file,caption\n"),
        ("flickr", "t.token", ""),
        ("coco", "t.json", '{"images": [], "annotations": []}'),
        ("vqa", "q.json", '{"data": []}'),
    ],
)
def test_a_source_without_rows_is_named(
    tool: ModuleType, images: Path, capsys: pytest.CaptureFixture[str], form: str, name: str, content: str
) -> None:
    source = images.parent / name
    source.write_text(content)
    option = "--questions" if form == "vqa" else "--captions"
    assert tool.main([form, str(images), str(images.parent / "out"), option, str(source)]) == 2
    assert f"{source}: no image and no text in it" in capsys.readouterr().err
    assert not (images.parent / "out").exists()


def test_vqa_builds_images_with_questions_alone(
    tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [("a", "what?", 1), ("gone", "where?", 2), ("a", "how?", 3)]
    tree = {
        "questions": [dict(zip(("image_id", "question", "question_id"), item, strict=True)) for item in asked]
    }
    answers = [
        {"question_id": number, "answers": [{"answer": f"answer {number}"}] * 10} for number in (1, 2, 3)
    ]
    (tmp_path / "q.json").write_text(json.dumps(tree))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    command = [
        "vqa",
        str(images),
        str(tmp_path / "out"),
        "--questions",
        str(tmp_path / "q.json"),
        "--workers",
        "1",
    ]
    assert tool.main(command) == 2
    assert "give --image-name" in capsys.readouterr().err
    command += ["--annotations", str(tmp_path / "a.json"), "--image-name", "{image_id}.jpg"]
    assert tool.main(command) == 0
    shards = open_store(tmp_path / "out")
    (record,) = (shards.read(number).text for number in range(len(shards)))
    assert record.captions == [] and record.meta["image_id"] == "a"
    assert record.questions == [
        {"question": "what?", "answers": ["answer 1"] * 10, "question_id": 1},
        {"question": "how?", "answers": ["answer 3"] * 10, "question_id": 3},
    ]
    output = capsys.readouterr().out
    assert output.splitlines()[1].split()[:6] == ["out", "1", "0", "0", "2", "1"]
    assert "skipped 1 (50.0 % of the images): missing image: 'gone.jpg'" in output


def test_digits_build_both_splits_with_other_handwriting(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    hashes = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        command = ["digits", str(tmp_path / name), "--train", "60", "--heldout", "30", "--seed", str(seed)]
        assert tool.main([*command, "--samples-per-shard", "25", "--workers", "1"]) == 0
        tars = sorted((tmp_path / name).glob("*/*.tar"))
        assert [tar.name for tar in tars] == [
            *(f"heldout-{n:06d}.tar" for n in range(2)),
            *(f"train-{n:06d}.tar" for n in range(3)),
        ]
        hashes.append(hashlib.sha256(b"".join(tar.read_bytes() for tar in tars)).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]
    scans = [
        {digit["scan"] for n in range(len(shards)) for digit in shards.read_text(n).meta["digits"]}
        for shards in (open_store(tmp_path / "one" / split) for split in ("train", "heldout"))
    ]
    assert len(scans[0]) > 50 and len(scans[1]) > 25 and not scans[0] & scans[1]
    sample = open_store(tmp_path / "one" / "train").read(0)
    assert Image.open(io.BytesIO(sample.image)).size == (64, 64)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["train", "60", "60"]


def test_an_existing_destination_is_refused_with_code_2(
    tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = write_sources(tmp_path)["t.csv"]
    command = ["images", str(tmp_path / "photos"), str(images), "--captions", str(captions), "--workers", "1"]
    assert tool.main(command) == 2
    assert "photos: exists already and is not empty; remove it or" in capsys.readouterr().err
    assert tool.main(["digits", str(images), "--train", "1", "--heldout", "1", "--workers", "1"]) == 2
    assert sorted(path.name for path in images.iterdir()) == ["a.jpg", "b.png", "broken.jpg"]


def test_nothing_usable_is_refused_and_leaves_nothing(
    tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("file,caption\nbroken.jpg,text\n")
    command = ["images", str(images), str(tmp_path / "out"), "--captions", str(tmp_path / "t.csv")]
    assert tool.main([*command, "--workers", "1"]) == 2
    expected = "nothing usable to write\n  skipped 1 (100.0 % of the images): broken image: 'broken.jpg'"
    assert expected in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "secret.jpg", "t.csv"]


def test_a_count_below_one_is_a_usage_error(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(["digits", str(tmp_path / "out"), "--train", "0"])
    assert stop.value.code == 2


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    command = [
        sys.executable,
        str(TOOL),
        "digits",
        str(tmp_path / "out"),
        "--train",
        "1000000",
        "--workers",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    with started(command, env=environment, stderr=subprocess.PIPE) as process:
        while b"sample/s" not in process.stderr.read1():  # the bar shows: the build is on its way
            assert process.poll() is None
        assert [path.name.startswith(".out.") for path in tmp_path.iterdir()] == [True]
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_closed_and_a_full_disk_under_the_bar_do_not_end_a_build(
    images: Path, tmp_path: Path
) -> None:
    """Nor does a terminal whose alphabet lacks the letters of a file's name."""
    (tmp_path / "t.csv").write_text("file,caption\na.jpg,one\ncaf\u00e9.jpg,two\n", encoding="utf-8")
    command = [sys.executable, str(TOOL), "images", str(images), str(tmp_path / "out")]
    command += ["--captions", str(tmp_path / "t.csv"), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1]), "PYTHONIOENCODING": "ascii"}
    reader, closed = os.pipe()
    os.close(reader)
    assert subprocess.run(command, env=environment, stdout=closed, stderr=closed).returncode == 0
    os.close(closed)
    assert len(open_store(tmp_path / "out")) == 1
    command[4] = str(tmp_path / "again")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=full, check=True)
    assert b"missing image: 'caf\\xe9.jpg'" in done.stdout


def test_a_destination_among_the_images_is_refused(
    tool: ModuleType, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = write_sources(tmp_path)["t.csv"]
    assert tool.main(["images", str(images), str(images / "out"), "--captions", str(captions)]) == 2
    assert "lies in the folder of the images" in capsys.readouterr().err
    assert not (images / "out").exists()


def img2dataset_shard(path: Path, captions: list[str]) -> None:
    """A tar of KEY.jpg, KEY.txt and KEY.json, as img2dataset writes it; a parquet and a json stand beside it."""
    image = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(image, "JPEG")
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions):
            meta = {"caption": caption, "url": "https://a/b.jpg", "key": f"{number:09d}", "status": "success"}
            meta |= {"error_message": None, "width": 32, "height": 24, "exif": "{}", "sha256": "00"}
            for ending, data in (
                ("jpg", image.getvalue()),
                ("json", json.dumps(meta, indent=4).encode()),
                ("txt", caption.encode()),
            ):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"count": 5, "successes": len(captions)}))


def test_a_folder_of_img2dataset_is_a_source(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CC3M, CC12M and SBU are downloaded so; what could not be downloaded is in no tar."""
    img2dataset_shard(tmp_path / "00000.tar", ["a red car", "a wall"])
    img2dataset_shard(tmp_path / "00001.tar", ["the sky at dusk"])
    assert tool.main(["index", str(tmp_path), "--workers", "1"]) == 0
    assert "3 samples in 2 shards" in capsys.readouterr().out
    store = open_store(tmp_path)
    texts = [store.read(number).text for number in range(len(store))]
    assert [text.captions for text in texts] == [["a red car"], ["a wall"], ["the sky at dusk"]]
    assert texts[0].meta["url"] == "https://a/b.jpg"


KARPATHY = {
    "images": [
        {"imgid": n, "split": split, "filename": f"{n}.jpg", "sentences": [{"raw": "a dog"}]}
        for n, split in enumerate(("train", "val"))
    ]
}
QUESTION = {"question": "what?", "question_id": 1, "answers": ["x"], "file_path": "z.jpg"}
COVER = {"imageURL": "http://a/b.jpg", "questions": ["who?"], "answers": ["I"], "split": 2}
MOMENT = {"vid_name": "s01e01_seg02_clip_00", "clip_id": 1, "ts": [0, 1], "descs": [{"desc": "he sits"}]}
STEP = {"segment": [0, 2], "id": 0, "sentence": "boil"}
RECIPE = {"database": {"v": {"subset": "training", "recipe_type": "1", "annotations": [STEP]}}}
FRAME_QA = "gif_name\tquestion\tanswer\ttype\ng\twhat ?\tcat\t0\n"


@pytest.mark.parametrize(
    ("form", "content", "options", "file"),
    [
        ("karpathy", KARPATHY, ["--split", "val"], "1.jpg"),
        ("textcaps", {"data": [{"image_id": "z", "caption_str": "a sign"}]}, [], "z.jpg"),
        ("stvqa", {"data": [QUESTION]}, ["--split", "train"], "z.jpg"),
        ("ocrvqa", {"7": COVER}, ["--split", "val"], "7.jpg"),
        ("vizwiz_vqa", [{"image": "z.jpg", "question": "what?"}], [], "z.jpg"),
        ("msvd", "v_0_9 a man sings\n", [], "v_0_9.avi"),
        ("tvc", json.dumps(MOMENT), [], "bbt_frames/s01e01_seg02_clip_00"),
        ("youcook2", RECIPE, ["--split", "training"], "v.mp4"),
        ("video_qa", [{"id": 1, "video_id": 7, "question": "who?", "answer": "man"}], [], "video7.mp4"),
        ("tgif_qa", FRAME_QA, ["--split", "train"], "g.gif"),
    ],
)
def test_the_commands_of_the_benchmarks(
    tool: ModuleType,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    content: object,
    options: list[str],
    file: str,
) -> None:
    """Each reads its file with its options and looks for the one image or video that it names."""
    source = tmp_path / "texts"
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    asks = form in ("stvqa", "ocrvqa", "vizwiz_vqa", "video_qa", "tgif_qa")
    command = [form, str(images), str(tmp_path / "out"), "--questions" if asks else "--captions", str(source)]
    assert tool.main([*command, *options, "--workers", "1"]) == 2
    assert f"skipped 1 (100.0 % of the images): missing image: '{file}'" in capsys.readouterr().err
