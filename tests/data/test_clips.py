"""Everything that counts as an image or a clip."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from git_scale.config import DataConfig
from git_scale.data import images
from git_scale.data.clips import Clip, ClipLike, prepare_clip
from git_scale.errors import DataError

SIZE = 16


def noise(width: int = 20, height: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prepare(item: ClipLike, frames: int = 1) -> np.ndarray:
    return prepare_clip(item, frames, DataConfig(), SIZE).pixels


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_gives_the_same_pixels(tmp_path: Path) -> None:
    image = noise()
    pixels = np.array(image)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    expected = images.resize_center_crop(image, SIZE)[None]
    turned = np.asfortranarray(pixels)  # another order in memory
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    items: list[ClipLike] = [image, Image.open(path), path, str(path), encoded(image), pixels, turned, tensor]
    for item in items:
        found = prepare(item)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert not np.array_equal(prepare(pixels[:, :, ::-1]), expected), "BGR is another image"


def test_other_modes_become_rgb() -> None:
    clear = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    assert prepare(clear).min() == 255, "transparent parts are white"
    assert prepare(Image.new("L", (SIZE, SIZE), 7)).max() == 7


def test_a_prepared_clip_is_left_alone() -> None:
    clip = Clip(np.zeros((1, 3, 4, 4), np.uint8))
    assert prepare_clip(clip, 1, DataConfig(), SIZE) is clip


def test_a_tuple_is_a_clip_as_a_list_is() -> None:
    frames = [noise(seed=number) for number in range(3)]
    assert np.array_equal(prepare(tuple(frames), 3), prepare(frames, 3))
    assert prepare(frames, 3).shape == (3, 3, SIZE, SIZE)
    assert np.array_equal(prepare(frames, 3)[1], prepare(frames[1])[0])


def test_a_file_that_breaks_off_after_it_was_opened() -> None:
    image = Image.open(io.BytesIO(encoded(noise(200, 200))[:5000]))
    with pytest.raises(DataError, match="cannot be decoded"):
        prepare(image)


@pytest.mark.parametrize(
    "item",
    [
        Image.new("L", (16_000, 1)),
        np.zeros((1, 16_000, 3), np.uint8),
        torch.zeros(3, 1, 16_000, dtype=torch.uint8),
    ],
)
def test_large_images_are_refused(item: ClipLike) -> None:
    with pytest.raises(DataError, match="16000 x 1 pixels"):
        prepare(item)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5, 4), (5, 5, 1), (2, 5, 5, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"is no image: uint8 \[H, W, 3\] is"):
        prepare(np.zeros(shape, np.uint8))
