"""The demo's scenes as benchmarks publish data: read back by the readers of those forms, and by other programs."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from git_scale.data.builders.classes import read_classes
from git_scale.data.builders.digit_tasks import FRAME_ORDERS, write_class_folders, write_videos, write_words
from git_scale.data.builders.digits import CLIP_FRAMES, WORDS, draw_scene
from git_scale.data.builders.tables import read_table
from git_scale.data.store import open_store

pytest.importorskip("sklearn")

write = {"split": "heldout", "count": 8, "seed": 3, "workers": 1}


def digits_of(number: int, kind: str) -> list[str]:
    return [WORDS[digit["value"]] for digit in draw_scene("heldout", 3, number, kind).text["digits"]]


def test_an_image_lies_in_the_folder_of_its_digit(tmp_path: Path) -> None:
    write_class_folders(tmp_path, **write)
    given = {
        "source": tmp_path,
        "labels": None,
        "names": None,
        "shots": None,
        "seed": None,
        "unlabelled": None,
    }
    found = {row.extra["image_id"]: row.captions for row in read_classes(given)}
    assert found == {f"{number:06}": tuple(digits_of(number, "one")) for number in range(8)}
    one = next(tmp_path.glob("*/000005.jpg"))
    assert one.read_bytes() == draw_scene("heldout", 3, 5, "one").image


def test_words_are_numbers_of_several_digits(tmp_path: Path) -> None:
    write_words(tmp_path, **write)
    store = open_store(tmp_path)
    assert [store.read(place).text.captions for place in range(len(store))] == [
        [" ".join(digits_of(number, "number"))] for number in range(8)
    ]
    assert {len(digits_of(number, "number")) for number in range(8)} == {2, 3}
    assert store.read(7).image == draw_scene("heldout", 3, 7, "number").image


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


@pytest.mark.parametrize("order", FRAME_ORDERS)
def test_clips_show_the_frames_in_their_order(tmp_path: Path, order: str) -> None:
    """Each frame of the file is nearer to the drawn frame of its place than to any other of the clip."""
    write_videos(tmp_path, **write, order=order)
    rows = {row.file: row.captions for row in read_table(tmp_path / "captions.tsv")}
    for number in range(8):
        scene = draw_scene("heldout", 3, number, "one", clip_every=1)
        drawn = [np.asarray(Image.open(io.BytesIO(frame))).astype(int) for frame in scene.frames]
        shown = frames_of(tmp_path / f"{number:06}.mp4")
        nearest = [int(np.argmin([np.abs(each - frame).mean() for each in drawn])) for frame in shown]
        wanted = {"clips": list(range(CLIP_FRAMES)), "clips_standing": [0] * CLIP_FRAMES}
        assert sorted(nearest) == list(range(CLIP_FRAMES)) or order == "clips_standing"
        assert nearest == wanted.get(order, nearest)
        assert rows[f"{number:06}.mp4"] == tuple(scene.text["clip_captions"])
    if order == "clips_shuffled":
        assert nearest != list(range(CLIP_FRAMES))
