"""MSR-VTT and VATEX as they are published, from videos to shards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from git_scale.data.builders.msrvtt import read_msrvtt
from git_scale.data.builders.source_images import SourceRow, samples_of
from git_scale.data.builders.vatex import read_vatex
from git_scale.data.builders.writer import Skipped, write_shards
from git_scale.data.store import open_store
from git_scale.errors import DataError

av = pytest.importorskip("av")


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(tree))
    return path


def a_video() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(4):
            pixels = np.full((32, 32, 3), 50 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


MSRVTT = {
    "info": {"version": "1.0"},
    "videos": [
        {
            "video_id": "video0",
            "split": "train",
            "category": 9,
            "url": "u",
            "start time": 1.0,
            "end time": 9.0,
            "id": 0,
        },
        {"video_id": "video9", "split": "validate", "category": 1, "url": "u", "id": 9},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video9", "sen_id": 1},
        {"caption": "a man sings", "video_id": "video0", "sen_id": 2},
        {"caption": "a man is singing", "video_id": "video0", "sen_id": 3},
        {"caption": "of no video", "video_id": "video5", "sen_id": 4},
        {"caption": None, "video_id": "video0", "sen_id": 5},
    ],
}


def test_msrvtts_sentences_are_joined_to_the_videos_of_a_split(tmp_path: Path) -> None:
    path = written(tmp_path, MSRVTT)
    train = SourceRow("video0.mp4", ("a man sings", "a man is singing"), {"image_id": "video0"})
    skipped = [
        Skipped("sentences[3] of 'video5'", "caption of no video", "caption"),
        Skipped("sentences[4] of 'video0'", "caption is not text (null)", "caption"),
    ]
    assert read_msrvtt(path, "train") == [*skipped, train]
    assert len(read_msrvtt(path)) == 4
    with pytest.raises(DataError, match=r"no video of --split test; its splits are train, validate"):
        read_msrvtt(path, "test")


@pytest.mark.parametrize(
    "tree", [{}, {"videos": []}, {"videos": [{"id": 1}], "sentences": []}, [], {"videos": 3}]
)
def test_another_form_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match=r"not MSR-VTT's captions"):
        read_msrvtt(written(tmp_path, tree))
    with pytest.raises(DataError, match=r"not VATEX's captions|not a readable"):
        read_vatex(written(tmp_path, tree or {"a": 1}))


def test_a_vatex_file_of_another_form_is_named_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"not VATEX's captions \(it holds an object of videoID, not a list\)"
    ):
        read_vatex(written(tmp_path, {"videoID": "a"}))


def test_two_ids_of_one_video_are_refused(tmp_path: Path) -> None:
    videos = [{"video_id": name, "split": "train"} for name in ("one", "./one")]
    with pytest.raises(DataError, match=r"the image ids 'one' and '\./one' have one file, '\./one\.mp4'"):
        read_msrvtt(written(tmp_path, {"videos": videos, "sentences": []}))
    with pytest.raises(DataError, match=r"the image ids 1 and '1' have one file, '1\.mp4'"):
        read_vatex(written(tmp_path, [{"videoID": 1}, {"videoID": "1"}]))


def test_vatex_has_two_languages(tmp_path: Path) -> None:
    tree = [
        {"videoID": "a_000001_000011", "enCap": ["A man sings.", 3], "chCap": ["\u4e00\u4e2a\u7537\u4eba"]},
        {"videoID": "b_000001_000011"},
    ]
    path = written(tmp_path, tree)
    first, *rows = read_vatex(path)
    assert first == Skipped("videos[0] of 'a_000001_000011'", "enCap is not text (a number)", "caption")
    assert rows[0] == SourceRow("a_000001_000011.mp4", ("A man sings.",), {"image_id": "a_000001_000011"})
    assert rows[1] == SourceRow("b_000001_000011.mp4", (), {"image_id": "b_000001_000011"})
    assert read_vatex(path, "ch")[0].captions == ("\u4e00\u4e2a\u7537\u4eba",)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"--language fr: one of en, ch"):
        read_vatex(path, "fr")
    with pytest.raises(DataError, match=r"videoID 'b_000001_000011' stands twice"):
        read_vatex(written(tmp_path, [tree[1], tree[1]]))


def test_videos_are_written_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "video0.mp4").write_bytes(a_video())
    (tmp_path / "video9.mp4").write_bytes(a_video()[:300])
    report = write_shards(samples_of(read_msrvtt(written(tmp_path, MSRVTT)), tmp_path), tmp_path / "shards")
    assert report.samples == 1
    assert report.skipped == {
        ("caption", "caption of no video"): 1,
        ("caption", "caption is not text (null)"): 1,
        ("image", "broken video"): 1,
    }
    raw = open_store(tmp_path / "shards").read(0)
    assert raw.video == a_video() and raw.image is None
    assert raw.text.captions == ["a man sings", "a man is singing"] and raw.text.meta["image_id"] == "video0"
