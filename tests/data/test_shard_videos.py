"""Video files in shards: no frame files are needed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from git_scale.config import RunConfig
from git_scale.data import index
from git_scale.data.left_out import LeftOut
from git_scale.data.loader import build_eval_loader, build_train_loader
from git_scale.data.store import open_store
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import DataError
from git_scale.tasks import build_task

av = pytest.importorskip("av")

SIDE, FRAMES = 32, 24


def a_video(frames: int = FRAMES) -> bytes:
    """Grey frames whose level is 10 times their number."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((SIDE, SIDE, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture
def videos(tmp_path: Path, write_shard: Callable, image: Callable) -> Path:
    words = json.dumps({"captions": ["a grey square that grows bright"]}).encode()
    write_shard(
        tmp_path / "clips.tar",
        [
            ("whole", {"mp4": a_video(), "json": words}),
            ("short", {"mp4": a_video(2), "json": words}),
            ("cut", {"mp4": a_video()[:400], "json": words}),
            ("image", {"jpg": image(0), "json": words}),
        ],
    )
    return tmp_path


@pytest.fixture
def tokenizer(squares: Path) -> Tokenizer:
    return load_tokenizer(squares / "tokenizer.model")


def run_of(frames: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"encoder": {"image_size": 16}, "frames": frames},
            "data": {"workers": 0, "crop_scale": (1.0, 1.0)},
            "train": {"global_batch": 4, "micro_batch": 4},
        }
    )


def test_frames_are_taken_of_the_file(videos: Path, tokenizer: Tokenizer) -> None:
    store, run = open_store(videos), run_of(6)
    task = build_task("caption", run, tokenizer)
    (batch,) = build_eval_loader(run, store, task, 0, 1)
    by_key = {key.partition(":")[2]: number for number, key in enumerate(batch.keys)}
    levels = batch.images.float().mean((2, 3, 4))
    # the middles of six parts of 24 frames are frames 2, 6, ..., 22
    assert levels[by_key["whole"]].tolist() == pytest.approx([20, 60, 100, 140, 180, 220], abs=3)
    assert levels[by_key["short"]].tolist() == pytest.approx([0, 0, 0, 10, 10, 10], abs=3)
    said = sorted(batch.problems)
    assert len(said) == 2 and "clips.tar:cut: a video of 400 bytes: the video cannot be read" in said[0]
    assert "clips.tar:image: no video, and no frames of a clip" in said[1]


def test_training_moves_the_frames_within_their_parts(videos: Path, tokenizer: Tokenizer) -> None:
    store, run = open_store(videos), run_of(3)
    task = build_task("caption", run, tokenizer)

    def starts() -> list[float]:
        found = []
        for batch, _ in zip(build_train_loader(run, store, task, 0, 1, 0), range(12), strict=False):
            row = next(number for number, key in enumerate(batch.keys) if key.endswith("whole"))
            levels = batch.images[row].float().mean((1, 2, 3)).tolist()
            assert np.diff(levels).tolist() == pytest.approx([80, 80], abs=12), "equally spaced"
            found.append(round(levels[0] / 10))
        return found

    first = starts()
    assert set(first) <= set(range(8)) and len(set(first)) > 3
    assert starts() == first, "the same whenever it is run"


def test_a_model_of_images_says_what_it_needs(videos: Path, tokenizer: Tokenizer) -> None:
    run = run_of(1)
    (batch,) = build_eval_loader(run, open_store(videos), build_task("caption", run, tokenizer), 0, 1)
    assert sum("no image, only a clip; set model.frames" in problem for problem in batch.problems) == 3


def test_an_index_of_before_videos_were_read_is_made_anew(videos: Path) -> None:
    store = open_store(videos)
    shard = videos / "clips.tar"
    found = index.load(shard)
    assert found is not None and len(store) == 4
    left_out = (LeftOut("unknown kind .mp4", 3, "whole.mp4"),)
    index.save(shard, replace(found, summary=replace(found.summary, left_out=left_out)))
    assert index.load(shard) is None
    assert len(open_store(videos)) == 4
    left_out = (LeftOut("unknown kind .cls", 3, "whole.cls"),)
    index.save(shard, replace(found, summary=replace(found.summary, left_out=left_out)))
    assert index.load(shard) is not None


def test_a_video_without_a_text_is_no_sample(tmp_path: Path, write_shard: Callable) -> None:
    write_shard(tmp_path / "s.tar", [("a", {"mp4": a_video(2)})])
    with pytest.raises(DataError, match="no text of the image's name"):
        open_store(tmp_path)
