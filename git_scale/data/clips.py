"""What users hand over as an image or a clip, seen as RGB frames: files, bytes, arrays, tensors, PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from git_scale.config import DataConfig
from git_scale.data.frames import check_one_size, pick_frames
from git_scale.data.images import check_size, decode, prepare, to_rgb
from git_scale.data.video import ENDINGS as VIDEO_ENDINGS
from git_scale.data.video import read_frames
from git_scale.errors import DataError
from git_scale.paths import special_kind

Picture: TypeAlias = Image.Image | str | Path | bytes | np.ndarray | Tensor
"""A PIL image of any mode; path or bytes of a JPEG, PNG or WEBP; a uint8 array [H, W, 3] or tensor [3, H, W].
A path may also lead to a video, which is a clip. Images are turned upright as their EXIF says; who turns a PIL
image by hand takes that tag away, as ImageOps.exif_transpose does."""


@dataclass(frozen=True)
class Clip:
    """Holds an image or a clip as the model sees it: uint8 [F, 3, H, W]."""

    pixels: np.ndarray


ClipLike: TypeAlias = Clip | Picture | Sequence[Picture]
"""One input of a model: an image, or the frames of a clip in order."""


def prepare_clip(item: ClipLike, frames: int, data: DataConfig, size: int) -> Clip:
    """One input for a model of `frames` frames: an image is one frame, a clip or video `frames` equally spaced ones.

    Raises DataError when it is of another kind, unreadable, or a clip where the model takes single images.
    """
    if isinstance(item, Clip):
        return item
    pictures = _open(item, frames)
    check_one_size(pictures)
    return Clip(np.stack([prepare(image, data, size) for image in pictures]))


def is_video(path: str | Path) -> bool:
    return Path(path).suffix.lower() in VIDEO_ENDINGS


def _open(item: object, frames: int) -> list[Image.Image]:
    if isinstance(item, list | tuple):
        _check_takes_clips(frames)
        if not item:
            raise DataError("a clip without frames")
        return [_open_image(frame) for frame in pick_frames(item, frames)]
    if isinstance(item, str | Path) and is_video(item):
        _check_takes_clips(frames)
        return read_frames(item, frames)
    return [_open_image(item)]


def _check_takes_clips(frames: int) -> None:
    if frames == 1:
        raise DataError(
            "this model takes one image at a time, not a video or the frames of a clip; hand over one frame"
            " (git_scale.data.video.read_frames takes some out of a video)"
        )


def _open_image(item: object) -> Image.Image:
    if isinstance(item, bytes):
        return decode(item)
    if isinstance(item, str | Path):
        return _read(Path(item))
    if not isinstance(item, Image.Image):
        return _from_pixels(item)
    check_size(*item.size)
    try:
        return to_rgb(item)
    except OSError as error:  # a file that was opened, but not yet read
        raise DataError(f"the image cannot be decoded: {error}") from None


def _read(path: Path) -> Image.Image:
    if kind := special_kind(path):
        raise DataError(f"{path}: {kind}; give a file")
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _from_pixels(item: object) -> Image.Image:
    if isinstance(item, Tensor):
        found, wanted, channels = f"a tensor of {item.dtype} {list(item.shape)}", "torch.uint8 [3, H, W]", 0
        pixels = item.detach().cpu().numpy() if str(item.dtype) == "torch.uint8" else None
    elif isinstance(item, np.ndarray):
        found, wanted, channels = f"an array of {item.dtype} {list(item.shape)}", "uint8 [H, W, 3]", 2
        pixels = item if item.dtype == np.uint8 else None
    else:
        raise DataError(
            f"a {type(item).__name__} is no image: a PIL image, path, bytes, array [H, W, 3], tensor [3, H, W]"
            " or a list of frames is"
        )
    if pixels is None or pixels.ndim != 3 or pixels.shape[channels] != 3 or not pixels.size:
        raise DataError(f"{found} is no image: {wanted} is")
    if channels == 0:
        pixels = pixels.transpose(1, 2, 0)
    check_size(pixels.shape[1], pixels.shape[0])
    return Image.fromarray(np.ascontiguousarray(pixels))
