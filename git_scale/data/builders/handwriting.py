"""Real handwriting for the demo: scikit-learn's 1,797 scanned digits, drawn with a pen colour on paper.

A scan is 8 x 8 pixels of intensity 0..16. Held-out scenes are written with scans that training never sees.
Arrays are float32: ink HW in 0..1 (1 = full stroke), images HWC in 0..255.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from git_scale.errors import DataError

Ink = NDArray[np.float32]
Picture = NDArray[np.float32]

SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.221  # of each digit's scans: 1,401 to train with, 396 held out
SPLIT_SEED = 2205  # a constant, so that scenes of any two seeds keep the two hands apart
GLYPH = (
    48  # side in pixels of an enlarged scan; above the largest digit of a scene, so that edges stay smooth
)
TILT = math.radians(10)  # largest rotation, to either side
SHEAR = 0.15  # largest slant, as a share of the height
PENS = ((28, 28, 34), (24, 44, 120), (16, 84, 60), (140, 24, 32), (96, 36, 112), (104, 56, 16))  # RGB
PAPERS = ((250, 247, 240), (244, 246, 250), (252, 244, 224), (238, 244, 236), (248, 238, 236))  # RGB
JPEG_QUALITY = 90


def scans_of(split: str) -> tuple[tuple[int, ...], ...]:
    """Numbers of the scans that belong to a split, one tuple per digit; the two splits share none.

    Raises DataError for an unknown split or when scikit-learn is missing.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: unknown; the splits are {', '.join(SPLITS)}")
    return _split_scans()[SPLITS.index(split)]


def write_digit(rng: np.random.Generator, scan: int, height: int, widest: int) -> Ink:
    """One scan in ink: `height` pixels high exactly, at most `widest` wide, tilted and slanted at random."""
    glyph = _glyphs()[scan]
    tilt, slant = rng.uniform(-TILT, TILT), rng.uniform(-SHEAR, SHEAR)
    sine, cosine = math.sin(tilt), math.cos(tilt)
    across, down = (cosine, cosine * slant - sine), (sine, sine * slant + cosine)
    half = glyph.width / 2
    offsets = [half - half * (x + y) for x, y in (across, down)]
    turned = glyph.transform(
        glyph.size,
        Image.Transform.AFFINE,
        (*across, offsets[0], *down, offsets[1]),
        Image.Resampling.BILINEAR,
    )
    box = turned.point(lambda value: 255 * (value > 96)).getbbox()
    left, top, right, bottom = box if box else (0, 0, *glyph.size)
    stretch = rng.uniform(0.9, 1.1)
    width = round(height * stretch * (right - left) / (bottom - top))
    width = min(max(width, 3), widest)
    small = turned.resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))
    return np.asarray(small, np.float32) / np.float32(255)


def draw_paper(rng: np.random.Generator, side: int) -> Picture:
    """A light sheet: tint, uneven light, and on half of the sheets the faint lines of an exercise book."""
    tint = np.array(PAPERS[rng.integers(len(PAPERS))], np.float32)
    blotches = Image.fromarray(rng.uniform(-14, 0, (4, 4)).astype(np.float32))
    light = np.asarray(blotches.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    paper = tint + light[..., None]
    if rng.random() < 0.5:
        spacing, start = int(rng.integers(8, 13)), int(rng.integers(0, 8))
        paper[start::spacing] -= np.array((26, 16, 6), np.float32)
        if rng.random() < 0.5:
            paper[:, start::spacing] -= np.array((26, 16, 6), np.float32)
    return paper


def pick_pen(rng: np.random.Generator) -> NDArray[np.float32]:
    """An ink colour: dark, and never twice quite the same."""
    colour = np.array(PENS[rng.integers(len(PENS))], np.float32)
    return np.clip(colour + rng.uniform(-16, 16, 3), 0, 150).astype(np.float32)


def draw_noise(rng: np.random.Generator, side: int) -> Picture:
    """The camera's grain."""
    return np.float32(rng.uniform(2, 5)) * rng.standard_normal((side, side, 3), dtype=np.float32)


def lay_ink(image: Picture, ink: Ink, left: int, top: int, pen: NDArray[np.float32]) -> None:
    """Writes a stroke into `image`, in place."""
    height, width = ink.shape
    patch = image[top : top + height, left : left + width]
    patch += ink[..., None] * (pen - patch)


def to_jpeg(image: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scans [1797, 8, 8] of intensity 0..16 and the digit that each one shows [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the handwritten digits come with scikit-learn: pip install 'git_scale[demo]'"
        ) from None
    digits = load_digits()
    return digits.images, digits.target


@lru_cache(maxsize=1)
def _split_scans() -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    rng = np.random.default_rng(SPLIT_SEED)
    train, heldout = [], []
    for digit in range(10):
        scans = rng.permutation(np.flatnonzero(_scans()[1] == digit)).tolist()
        cut = round(len(scans) * HELDOUT_SHARE)
        heldout.append(tuple(scans[:cut]))
        train.append(tuple(scans[cut:]))
    return tuple(train), tuple(heldout)


@lru_cache(maxsize=1)
def _glyphs() -> list[Image.Image]:
    """Every scan at GLYPH x GLYPH pixels with a clear rim, its blur steepened to the edge of a stroke."""
    return [_enlarge(scan) for scan in _scans()[0]]


def _enlarge(scan: NDArray[np.float64]) -> Image.Image:
    rimmed = np.pad(scan * (255 / 16), 2).astype(np.uint8)
    large = Image.fromarray(rimmed).resize((GLYPH, GLYPH), Image.Resampling.BICUBIC)
    return large.point([min(255, max(0, round((value - 80) * 255 / 110))) for value in range(256)])
