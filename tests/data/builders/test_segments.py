"""Parts of videos: YouCook2's steps, TVC's moments, GIFs; and from where the frames of a sample come."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.builders.segments import WHOLE, names_within
from git_scale.data.builders.source_images import SourceRow, samples_of
from git_scale.data.builders.tvc import read_tvc
from git_scale.data.builders.writer import Skipped, write_shards
from git_scale.data.builders.youcook2 import read_youcook2
from git_scale.data.images import decode
from git_scale.data.loader import build_eval_loader
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.data.video import read_frames
from git_scale.errors import DataError
from git_scale.tasks import build_task

av = pytest.importorskip("av")

RATE, SECONDS, SIDE = 4, 15, 32


def a_video(format: str = "mp4", codec: str = "libx264") -> bytes:
    """Grey frames, four a second for 15 seconds, whose level is 4 times their number: 16 times the second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(RATE * SECONDS):
            pixels = np.full((SIDE, SIDE, 3), 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def a_gif(frames: int) -> bytes:
    """Grey frames whose level is 40 times their number."""
    pictures = [Image.new("RGB", (SIDE, SIDE), (40 * number,) * 3) for number in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return buffer.getvalue()


def levels(pictures: Any) -> list[float]:
    return [float(np.asarray(picture).mean()) for picture in pictures]


# mpeg4 in avi is read in the order of its frames, mp4 by seeking to them
@pytest.mark.parametrize(("format", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
def test_frames_of_a_segment_are_equally_spaced_within_it(format: str, codec: str) -> None:
    """The middles of three parts of [6, 9): 6.5, 7.5 and 8.5 s, which frames 26, 30 and 34 show."""
    video = a_video(format, codec)
    assert levels(read_frames(video, 3, segment=(6, 9))) == pytest.approx([104, 120, 136], abs=4)
    assert levels(read_frames(video, 1, segment=(6.1, 6.1))) == pytest.approx([96], abs=4), "an instant"
    whole = levels(read_frames(video, 4))
    assert levels(read_frames(video, 4, segment=WHOLE)) == pytest.approx(whole, abs=1)
    ends = levels(read_frames(video, 2, segment=(13, 99)))
    assert ends == pytest.approx([4 * RATE * 13.5, 4 * RATE * 14.5], abs=4), "to the end of the video alone"
    with pytest.raises(
        DataError, match=r"the video ends after 15\.0 s, before its segment \(15, 16\) begins"
    ):
        read_frames(video, 2, segment=(15, 16))


def test_frames_of_a_gif() -> None:
    assert levels(read_frames(a_gif(6), 3)) == pytest.approx([40, 120, 200], abs=2)
    assert levels(read_frames(a_gif(6), 3, segment=WHOLE)) == pytest.approx([40, 120, 200], abs=2)
    assert levels(read_frames(a_gif(1), 2, segment=WHOLE)) == [0, 0], "a still"
    with pytest.raises(DataError, match=r"before its segment \(1, 2\) begins"):
        read_frames(a_gif(1), 2, segment=(1, 2))


def test_a_folders_frames_are_chosen_by_their_times() -> None:
    """Three a second: 00001.jpg at 0 s, 00004.jpg at 1 s."""
    names = [f"{number:05d}.jpg" for number in range(1, 91)]
    assert names_within(reversed(names), (1.0, 2.0)) == ["00004.jpg", "00005.jpg", "00006.jpg"]
    assert names_within(names, (1.4, 1.6)) == ["00005.jpg"], "the one shown then"
    assert names_within(names, (29.9, 40)) == ["00090.jpg"]
    assert names_within(names, (30.0, 40)) == [], "the last frame ends at 30 s"
    assert names_within([*names, "notes.txt", ".hidden.jpg", "x.jpg"], (0, math.inf))[-1] == "00089.jpg"
    assert len(names_within(names, (0, 30))) == 24
    assert names_within([], (0, 1)) == []


YOUCOOK = {
    "database": {
        "GLd3aX16zBg": {
            "duration": 15.0,
            "subset": "training",
            "recipe_type": "113",
            "video_url": "https://a",
            "annotations": [
                {"segment": [3, 6], "id": 0, "sentence": "spread margarine on the bread"},
                {"segment": [9, 12], "id": 1, "sentence": "place a slice of cheese on it"},
                {"segment": [12, 13], "id": 2, "sentence": None},
                {"segment": [20, 30], "id": 3, "sentence": "serve"},
            ],
        },
        "gone": {
            "subset": "training",
            "recipe_type": "9",
            "annotations": [{"segment": [0, 9], "id": 0, "sentence": "boil"}],
        },
        "val1": {"subset": "validation", "recipe_type": "9", "annotations": []},
    }
}


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def of_steps(*numbers: Any, **more: Any) -> dict[str, Any]:
    """A video of YouCook2."""
    steps = [{"segment": [1, 2], "id": number, "sentence": "stir"} | more for number in numbers]
    return {"subset": "training", "recipe_type": "9", "annotations": steps}


@pytest.mark.parametrize("place", ["GLd3aX16zBg.mp4", "training/113/GLd3aX16zBg.mp4"])
def test_a_step_of_youcook2_is_a_sample(tmp_path: Path, squares: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(a_video())
    rows = read_youcook2(written(tmp_path, YOUCOOK), tmp_path, "training")
    kept = {"image_id": "GLd3aX16zBg_1", "segment": [9.0, 12.0]}
    assert rows[0] == Skipped("GLd3aX16zBg.annotations[2]", "sentence is not text (null)", "caption")
    assert rows[2] == SourceRow(place, ("place a slice of cheese on it",), kept, segment=(9.0, 12.0))
    report = write_shards(samples_of(rows, tmp_path), tmp_path / "shards")
    assert (report.samples, report.captions) == (2, 2)
    assert report.skipped == {
        ("caption", "sentence is not text (null)"): 1,
        ("image", "broken video, or one that ends before its segment"): 1,
        ("image", "missing image"): 1,
    }
    store = open_store(tmp_path / "shards")
    first, second = store.read(0), store.read(1)
    assert levels(map(decode, first.frames)) == pytest.approx(range(48, 96, 4), abs=4), (
        "12 frames of 3 s, once"
    )
    assert second.text.captions == ["place a slice of cheese on it"]
    tokenizer = load_tokenizer(squares / "tokenizer.model")
    run = RunConfig.model_validate(
        {"model": {"encoder": {"image_size": 16}, "frames": 3}, "data": {"workers": 0}}
        | {"train": {"global_batch": 2, "micro_batch": 2}}
    )
    (batch,) = build_eval_loader(run, store, build_task("caption", run, tokenizer), 0, 1)
    assert batch.problems == []
    seen = batch.images.float().mean((2, 3, 4))[0].tolist()
    # the stored frames 2, 6 and 10 of 12: at 3.5, 4.5 and 5.5 s
    assert seen == pytest.approx([56, 72, 88], abs=4)


def test_subsets_of_youcook2(tmp_path: Path) -> None:
    path = written(tmp_path, YOUCOOK)
    assert read_youcook2(path, tmp_path, "validation") == []
    with pytest.raises(DataError, match=r"no video of --split testing; its splits are training, validation"):
        read_youcook2(path, tmp_path, "testing")


TVC = [
    {
        "vid_name": "friends_s01e03_seg02_clip_19",
        "duration": 62.0,
        "clip_id": 86603,
        "ts": [1.0, 2.0],
        "descs": [{"desc": "Phoebe talks.", "type": "v"}, {"desc": "They talk."}],
    },
    {
        "vid_name": "s08e06_seg02_clip_05",
        "duration": 60.18,
        "clip_id": 86604,
        "ts": [0, 5.4],
        "descs": [{"desc": 3}, {"desc": "Sheldon sits."}],
    },
]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_moment_of_tvc_is_a_sample_of_its_frames(tmp_path: Path) -> None:
    folder = tmp_path / "friends_frames" / "friends_s01e03_seg02_clip_19"
    folder.mkdir(parents=True)
    for number in range(1, 31):
        Image.new("RGB", (SIDE, SIDE), (8 * number,) * 3).save(folder / f"{number:05d}.jpg")
    rows = read_tvc(written(tmp_path, lines(*TVC)))
    kept = {"image_id": 86604, "vid_name": "s08e06_seg02_clip_05", "ts": [0.0, 5.4]}
    assert rows[0] == Skipped("line 2.descs[0]", "desc is not text (a number)", "caption")
    assert rows[2] == SourceRow(
        "bbt_frames/s08e06_seg02_clip_05", ("Sheldon sits.",), kept, segment=(0.0, 5.4)
    )
    report = write_shards(samples_of(rows, tmp_path), tmp_path / "shards")
    assert (report.samples, report.captions, report.skipped[("image", "missing image")]) == (1, 2, 1)
    raw = open_store(tmp_path / "shards").read(0)
    assert raw.frames == [(folder / f"0000{n}.jpg").read_bytes() for n in (4, 5, 6)], "as they are"
    assert raw.image == (folder / "00005.jpg").read_bytes(), "the middle one"
    assert raw.text.captions == [
        "Phoebe talks.",
        "They talk.",
    ]
    assert raw.text.meta["ts"] == [1.0, 2.0]


def test_tvcs_test_file_has_no_captions(tmp_path: Path) -> None:
    record = {key: value for key, value in TVC[0].items() if key != "descs"}
    (row,) = read_tvc(written(tmp_path, lines(record)))
    assert isinstance(row, SourceRow) and row.is_asked and row.captions == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines({"a": 1}), r"not TVC \(line 1 has no clip_id\); expected lines of"),
        (lines([TVC[0]]), r"not TVC \(line 1 is a list, not an object\)"),
        (json.dumps(YOUCOOK, indent=1), r"not readable lines of JSON"),
        (lines(TVC[0], TVC[0]), r"clip_id 86603 stands twice, again at line 2"),
        (lines(TVC[0] | {"ts": [2, 1]}), r"line 1\.ts is \[2, 1\], not \[start, end\] in seconds"),
        (lines(TVC[0] | {"ts": "1-2"}), r"line 1\.ts is '1-2'"),
        (lines(TVC[0] | {"ts": [True, 1]}), r"line 1\.ts is \[True, 1\]"),
        (lines(TVC[0] | {"ts": [0, math.inf]}), r"line 1\.ts is \[0, inf\]"),
        (
            lines(TVC[0] | {"ts": [0, 10**400]}),
            r"captions\.json: not TVC \(line 1\.ts is \[0, 10+, not \[start",
        ),
        (
            lines(TVC[0]) + "\n{,}\n",
            r"not readable lines of JSON: line 3: Expecting property name .* column 2$",
        ),
        (lines(TVC[0] | {"descs": ["a"]}), r"line 1\.descs\[0\] is a text, not an object"),
    ],
)
def test_another_form_of_tvc_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tvc(written(tmp_path, content))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"images": []},
            r"not YouCook2 \(no database, but 'images'\); expected an object with database",
        ),
        ({"database": []}, r"not YouCook2 \(database is a list, not an object\)"),
        ({"database": {"a": 3}}, r"database\.a is a number, not an object"),
        ({"database": {"a": {}}}, r"database\.a has no subset"),
        ({"database": {"a": {"subset": "training"}}}, r"\(a has no annotations, but 'subset'\)"),
        (
            {"database": {"a": {"subset": "t", "annotations": [{"id": 1, "segment": [1], "sentence": "x"}]}}},
            r"a\.annotations\[0\]\.segment is \[1\], not \[start, end\]",
        ),
        (
            {
                "database": {
                    "a": {
                        "subset": "t",
                        "annotations": [{"id": 1, "segment": [1, 2], "sentence": "x"}] * 2,
                    }
                }
            },
            r"a\.annotations\[1\] has the id of another step, 'a_1'",
        ),
        (
            {"database": {"a": of_steps("1_2"), "a_1": of_steps(2)}},
            r"a_1\.annotations\[0\] has the id of another step, 'a_1_2'",
        ),
        (
            {"database": {"a": of_steps(1), "./a": of_steps(1)}},
            r"the image ids 'a_1' and '\./a_1' have one file, '\./a\.mp4'",
        ),
        (
            {"database": {"a": of_steps(1, segment=[0, 10**400])}},
            r"captions\.json: not YouCook2 \(a\.annotations\[0\]\.segment is \[0, 10+, not \[start, end\]",
        ),
        ({"database": {"a": of_steps(1) | {"annotations": [3]}}}, r"a\.annotations\[0\] is a number, not"),
    ],
)
def test_another_form_of_youcook2_is_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_youcook2(written(tmp_path, tree), tmp_path)


def test_no_part_of_a_video_leads_out_of_the_folder(tmp_path: Path) -> None:
    videos, folder = tmp_path / "videos", tmp_path / "videos" / "bbt_frames" / "s01e01_seg02_clip_00"
    folder.mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(a_video())
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "secret.jpg")
    (folder / "00001.jpg").symlink_to(tmp_path / "secret.jpg")
    rows = [
        SourceRow("../secret.mp4", ("a",), {"image_id": 1}, segment=(0.0, 1.0)),
        SourceRow("bbt_frames/s01e01_seg02_clip_00", ("a",), {"image_id": 2}, segment=(0.0, 1.0)),
        SourceRow("bbt_frames", ("a",), {"image_id": 3}, segment=(0.0, 1.0)),
    ]
    outcomes = list(samples_of(rows, videos))
    assert [item.reason for item in outcomes if isinstance(item, Skipped)] == [
        "path leaves the images folder",
        "path leaves the images folder",
        "no frame within the segment",
    ]
    assert len(outcomes) == 3


def test_an_overlong_name_is_counted_and_ends_no_build(tmp_path: Path) -> None:
    """All was read, and then the build ended: "cannot be written: File name too long"."""
    (tmp_path / "b.mp4").write_bytes(a_video())
    folder = tmp_path / "friends_frames" / "friends_s01e03_seg02_clip_19"
    folder.mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(folder / "00004.jpg")
    steps = read_youcook2(
        written(tmp_path, {"database": {"a" * 300: of_steps(0), "b": of_steps(0)}}), tmp_path
    )
    moments = read_tvc(written(tmp_path, lines(TVC[0], TVC[1] | {"vid_name": "friends_" + "a" * 300})))
    for name, rows in (("youcook2", steps), ("tvc", moments)):
        report = write_shards(samples_of(rows, tmp_path), tmp_path / name)
        assert report.samples == 1 and report.skipped["image", "unreadable image"] == 1
