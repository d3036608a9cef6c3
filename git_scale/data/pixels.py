"""From a stored sample to the pixels that a model sees of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from git_scale.config import DataConfig, RunConfig
from git_scale.data.frames import check_one_size, pick_frames
from git_scale.data.images import crop_resized, decode, prepare, random_box
from git_scale.data.store import RawSample
from git_scale.data.video import read_frames
from git_scale.errors import DataError


def training_pixels(run: RunConfig, raw: RawSample, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [F, 3, H, W], all frames alike. Raises DataError.

    A question may ask for what a crop cuts off: only data.resize=crop draws one.
    """
    pictures = decode_images(raw, run.model.frames, float(rng.random()))
    if run.data.resize != "crop":
        return np.stack([prepare(picture, run.data, size) for picture in pictures])
    box = random_box(*pictures[0].size, run.data.crop_scale, rng)
    return np.stack([crop_resized(picture, box, size) for picture in pictures])


def heldout_pixels(data: DataConfig, raw: RawSample, frames: int, size: int) -> np.ndarray:
    """uint8 [F, 3, H, W], at every evaluation the same."""
    return np.stack([prepare(picture, data, size) for picture in decode_images(raw, frames, 0.5)])


def decode_images(raw: RawSample, frames: int, offset: float) -> list[Image.Image]:
    """The image, or `frames` equally spaced frames of the clip or the video, all of the first one's size.

    `offset` in [0, 1) places each within its part of the clip: 0.5 for the middle, random in training.
    """
    if frames == 1:
        if raw.image is None:
            raise DataError("no image, only a clip; set model.frames to use its frames")
        return [decode(raw.image)]
    if not raw.is_clip:
        raise DataError(f"no video, and no frames of a clip (0.jpg, 1.jpg, ...), but model.frames={frames}")
    if not raw.frames:
        return read_frames(raw.video or b"", frames, offset)
    pictures = [decode(frame) for frame in pick_frames(raw.frames, frames, offset)]
    check_one_size(pictures)
    return pictures
