"""From a benchmark's file to the rows that its server takes, with a model that knows coloured squares."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOUR, describe, draw_square

av = pytest.importorskip("av")

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue")


def tool(name: str, *arguments: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluated(checkpoint: Path, data: Path, out: Path, *more: str) -> tuple[dict[str, float], Any]:
    """(metrics, results.json)."""
    given = ("--checkpoint", checkpoint, "--data", data, "--out", out, "data.workers=0", *more)
    return json.loads(tool("evaluate", *given)), json.loads((out / "results.json").read_text())


def write_video(path: Path, picture: bytes) -> None:
    """A second of the same picture, as an AVI."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def test_captions_of_a_test_split_are_written_for_its_server(tmp_path: Path) -> None:
    """nocaps publishes no captions: every image has its row, and no metric judges it."""
    images = tmp_path / "images"
    images.mkdir()
    for colour in COLOURS:
        (images / f"{colour}.png").write_bytes(draw_square(colour, "big"))
    listed = [
        {"id": 40 + n, "open_images_id": colour, "file_name": f"{colour}.png", "domain": "near-domain"}
        for n, colour in enumerate(COLOURS)
    ]
    (tmp_path / "test.json").write_text(json.dumps({"info": {}, "licenses": [], "images": listed}))
    tool("prepare_data", "coco", images, tmp_path / "shards", "--captions", tmp_path / "test.json")
    taught = write_taught(tmp_path / "taught")
    metrics, results = evaluated(taught, tmp_path / "shards", tmp_path / "out")
    assert results == [
        {"image_id": 40 + n, "caption": describe(colour, "big")} for n, colour in enumerate(COLOURS)
    ]
    assert "eval/cider" not in metrics and "eval/exact_match" not in metrics


def test_questions_about_videos_are_answered(tmp_path: Path) -> None:
    """MSVD-QA's AVIs, of which three frames are seen: the three colours are named."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for colour in COLOURS:
        write_video(videos / f"{colour}_0_9.avi", draw_square(colour, "big"))
    numbered = list(enumerate(COLOURS, start=1))
    mapping, questions = tmp_path / "youtube_mapping.txt", tmp_path / "test_qa.json"
    mapping.write_text("".join(f"{colour}_0_9 vid{n}\n" for n, colour in numbered))
    records = [{"id": 9 + n, "video_id": n, "question": COLOUR, "answer": colour} for n, colour in numbered]
    questions.write_text(json.dumps(records))
    given = ("--questions", questions, "--mapping", mapping)
    tool("prepare_data", "video_qa", videos, tmp_path / "shards", *given)
    taught = write_taught(tmp_path / "taught", frames=3)
    metrics, results = evaluated(
        taught, tmp_path / "shards", tmp_path / "out", "--task", "vqa", "eval.max_new_tokens=8"
    )
    assert (metrics["eval/texts"], metrics["eval/exact_match"]) == (3, 1.0)
    assert results == [{"question_id": 9 + n, "answer": colour} for n, colour in numbered]
