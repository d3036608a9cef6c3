"""The demo's scenes in the forms in which benchmarks are published, for tasks other than captions.

    classes/seven/000012.jpg              a folder of images per class
    words/data.mdb                        an LMDB of images and words
    clips/000012.mp4, clips/captions.tsv  videos, and a table of file and caption
    texts/captions.txt                    captions of other scenes, without their images

A scene is the same whatever the split's other scenes are, so that clips of one number show one digit in every order.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from git_scale.data.builders.digits import WORDS, caption, draw_scene
from git_scale.data.builders.handwriting import SPLITS
from git_scale.data.builders.parallel import map_in_order
from git_scale.data.builders.scenes import draw_layout
from git_scale.data.builders.writer import SampleToWrite
from git_scale.data.lmdb_store import COUNT, IMAGE, LABEL
from git_scale.data.video import import_av

FRAMES_PER_SECOND = 6
QUALITY = "16"  # x264's constant rate factor: no artefact that a reader of digits would see
DATABASE_BYTES = 1 << 30  # the most that it may grow to; a file takes what is written

Frames = tuple[bytes, ...]
FRAME_ORDERS: dict[str, Callable[[Frames, int], Frames]] = {
    "clips": lambda frames, number: frames,
    "clips_shuffled": lambda frames, number: tuple(random.Random(number).sample(frames, len(frames))),
    "clips_standing": lambda frames, number: frames[:1] * len(frames),
}
"""From the frames of clip `number`: as they are; in a random order; the first alone, so that nothing moves."""


def write_class_folders(folder: Path, split: str, count: int, seed: int, workers: int) -> None:
    """Scenes of one digit, each in the folder of its digit's word."""
    for number, scene in enumerate(_scenes(split, count, seed, workers, "one")):
        (digit,) = scene.text["digits"]
        home = folder / WORDS[digit["value"]]
        home.mkdir(exist_ok=True)
        (home / f"{number:06}.jpg").write_bytes(scene.image)


def write_words(folder: Path, split: str, count: int, seed: int, workers: int) -> None:
    """Scenes of a number of two or three digits, which the demo's vocabulary spells in words: `four seven two`."""
    with (
        lmdb.open(str(folder), map_size=DATABASE_BYTES) as database,
        database.begin(write=True) as transaction,
    ):
        for number, scene in enumerate(_scenes(split, count, seed, workers, "number"), start=1):
            word = " ".join(WORDS[int(digit)] for digit in scene.text["scene_text"])
            transaction.put(IMAGE.format(number).encode(), scene.image)
            transaction.put(LABEL.format(number).encode(), word.encode())
        transaction.put(COUNT, str(count).encode())


def write_videos(folder: Path, split: str, count: int, seed: int, workers: int, order: str = "clips") -> None:
    """Clips of a digit that moves, each a second long. `order`: a key of FRAME_ORDERS."""
    with (folder / "captions.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("file", "caption"))
        for number, scene in enumerate(_scenes(split, count, seed, workers, "one", clip_every=1)):
            (folder / f"{number:06}.mp4").write_bytes(_video_of(FRAME_ORDERS[order](scene.frames, number)))
            table.writerow((f"{number:06}.mp4", *scene.text["clip_captions"]))


def write_texts(folder: Path, split: str, count: int, seed: int, workers: int) -> None:
    """A caption per line. `seed`: another than that of the images, whose captions these would be."""
    captions = map_in_order(partial(_caption_of, split, seed), range(count), workers)
    (folder / "captions.txt").write_text("".join(f"{one}\n" for one in captions), encoding="utf-8")


def _caption_of(split: str, seed: int, number: int) -> str:
    return caption(draw_layout(np.random.default_rng((seed, SPLITS.index(split), number)), split))


def _scenes(
    split: str, count: int, seed: int, workers: int, kind: str, **options: int
) -> Iterator[SampleToWrite]:
    return map_in_order(partial(draw_scene, split, seed, kind=kind, **options), range(count), workers)


def _video_of(frames: Frames) -> bytes:
    """An MP4 of these JPEGs."""
    av = import_av()
    pictures = [np.asarray(Image.open(io.BytesIO(frame), formats=["JPEG"])) for frame in frames]
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": QUALITY})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return written.getvalue()
