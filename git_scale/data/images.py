"""From the bytes of an image to the pixels of the model's input, uint8 until they are on the device."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from git_scale.config import DataConfig
from git_scale.data.jpeg import check_scans, decode_jpeg
from git_scale.errors import DataError

if TYPE_CHECKING:  # who builds shards or lists images waits for no torch
    import torch
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
PNG = b"\x89PNG\r\n\x1a\n"
# 90 MP: above any photograph (phones shoot 50, medium format 60..100 at the edge), and 270 MB once decoded,
# which every loader worker can afford; a forged header may claim 4 GP in 60 bytes
MAX_PIXELS = 90_000_000
MAX_SIDE = 15_000
# A chunk of a PNG may be 12 bytes, and costs Pillow microseconds; 90 MP of 16 bits are 66,000 of libpng's 8 kB.
MAX_CHUNKS = 70_000

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {  # what makes an image upright, by the value of the tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)

CROP_ATTEMPTS = 10  # torchvision's
MAX_OBLONG = 8  # sides of an image; of a longer strip only the middle is looked at
FIT_LONGER_SIDE = 4 / 3  # of the image size: GIT's VQA models take 480 and 640, 420 and 560


def decode(data: bytes) -> Image.Image:
    """The image in RGB, upright, transparent parts on white.

    Raises DataError, and nothing else, for anything but a whole JPEG, PNG or WEBP of reasonable size and cost.
    """
    try:
        _check_chunks(data)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if image.format == "JPEG":
            check_scans(data, image.width * image.height)
            return _upright(decode_jpeg(data, image), image)
        _scale_transparent_grey(data, image)
        return to_rgb(image)  # reads the pixels, which raises when the data ends early
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
        # its own message holds the address of an object
        reason = f"no {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"the image ({len(data)} bytes) cannot be decoded: {reason}") from None


def check_size(width: int, height: int) -> None:
    """Raises DataError when a header claims more than is decoded here."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DataError(
            f"an image of {width} x {height} pixels: at most {MAX_PIXELS} and sides of {MAX_SIDE} are read"
        )


def _check_chunks(data: bytes) -> None:
    """Raises DataError for a PNG of more chunks than any image needs."""
    if not data.startswith(PNG):
        return
    at, chunks = len(PNG), 0
    while at < len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")  # length, name and checksum around the content
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise DataError(f"a PNG of more than {MAX_CHUNKS} chunks")


def _scale_transparent_grey(data: bytes, image: Image.Image) -> None:
    """Of a PNG of 2 or 4 bits Pillow brings the pixels to 8, and not the grey that stands for transparency."""
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        depth = data[24]  # bits, of the header
        image.info["transparency"] *= 255 // (2**depth - 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode in RGB, upright: transparent parts on white, 16 bits of grey scaled to 8."""
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255 instead of scaling
        deep = np.asarray(image).astype(np.int64)
        grey = (deep >> 8).astype(np.uint8)
        grey[deep == image.info.get("transparency", -1)] = 255
        rgb = Image.fromarray(grey).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    return _upright(rgb, image)


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """`rgb` as the EXIF of `source`, which has been read to its end, says it is to be seen.

    The tag does not stay with the image, so that nobody turns it a second time.
    """
    try:
        turn = TURNS.get(source.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF says nothing; reading one raises nearly anything
        turn = None
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info = {}
    return rgb


Box = tuple[int, int, int, int]  # left, top, right, bottom


def random_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """The square of torchvision's RandomResizedCrop with ratio 1: `scale` is its share of the image's area.

    In an image too oblong for such a square it is the largest centered one, as there (and so in GIT's code).
    """
    for _ in range(CROP_ATTEMPTS):
        side = round(math.sqrt(width * height * rng.uniform(*scale)))
        if 0 < side <= min(width, height):
            left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
            return left, top, left + side, top + side
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the part `box` of the image, bicubic with antialiasing."""
    # cropped first: the filter then sees no pixel outside of the box, as in torchvision
    return _to_array(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def resize_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size]: shorter side resized to `size` (bicubic), then the center, as in torchvision."""
    image = _shorten(image, MAX_OBLONG)
    short = min(image.size)
    resized = [int(size * side / short) for side in image.size]
    left, top = (round((side - size) / 2) for side in resized)
    scaled = image.resize((resized[0], resized[1]), Image.Resampling.BICUBIC)
    return _to_array(scaled.crop((left, top, left + size, top + size)))


def prepare(image: Image.Image, data: DataConfig, size: int) -> np.ndarray:
    """uint8 [3, H, W]: an RGB image as the model sees it in every evaluation, by `data.resize` (bicubic)."""
    if data.resize == "crop":
        return resize_center_crop(image, size)
    if data.resize == "pad":
        return resize_pad(image, size)
    return resize_fit(image, size, longest_side(data, size))


def longest_side(data: DataConfig, size: int) -> int:
    """Pixels of the longer side under data.resize=fit."""
    return data.max_side or round(FIT_LONGER_SIDE * size)


def resize_pad(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size]: longer side resized to `size`, in the middle of a black square."""
    longest = max(image.size)
    width, height = (max(1, round(size * side / longest)) for side in image.size)
    square = Image.new("RGB", (size, size))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return _to_array(square)


def resize_fit(image: Image.Image, size: int, max_side: int) -> np.ndarray:
    """uint8 [3, H, W]: shorter side resized to `size`, or less where the longer one would exceed `max_side`.

    The whole image in its own proportions, as GIT tests its VQA models. An encoder of patches does not look
    at what remains beyond its last whole patch at the right and the bottom. The shorter side is at least a
    quarter of `size`, so that patches are left: of a strip too long for that only the middle is looked at.
    """
    image = _shorten(image, max(1, 4 * max_side // size))
    shorter, longer = sorted(image.size)
    if size * longer > max_side * shorter:
        size = round(max_side * shorter / longer)
    width, height = (int(size * side / shorter) for side in image.size)
    return _to_array(image.resize((width, height), Image.Resampling.BICUBIC))


def _shorten(image: Image.Image, most: int) -> Image.Image:
    """Cuts a strip to its middle, `most` times as long as wide.

    1 x 15,000 must not become 224 x 3,360,000 (2 GB) on the way.
    """
    width, height = image.size
    keep_x, keep_y = min(width, most * height), min(height, most * width)
    left, top = (width - keep_x) // 2, (height - keep_y) // 2
    return image.crop((left, top, left + keep_x, top + keep_y))


def _to_array(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [..., 3, H, W] to `dtype` with CLIP's mean and deviation, computed in fp32."""
    import torch

    mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) for value in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).to(dtype)
