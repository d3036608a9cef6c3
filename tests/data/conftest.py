"""Tiny tar shards whose captions tell where they come from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

Members = dict[str, bytes]
WriteShard = Callable[[Path, Iterable[tuple[str, Members]]], Path]


def encode_image(seed: int, width: int = 40, height: int = 32, format: str = "JPEG") -> bytes:
    """A smooth random image: noise would not survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def text_of(*captions: str, **more: object) -> bytes:
    return json.dumps({"captions": captions, **more}).encode()


@pytest.fixture
def write_shard() -> WriteShard:
    def write(path: Path, samples: Iterable[tuple[str, Members]]) -> Path:
        with webdataset.TarWriter(str(path), encoder=False) as tar:
            for key, members in samples:
                tar.write({"__key__": key, **members})
        return path

    return write


@pytest.fixture
def image() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture
def text() -> Callable[..., bytes]:
    return text_of


@pytest.fixture
def folder(tmp_path: Path, write_shard: WriteShard) -> Path:
    """Three shards of 5, 7 and 4 samples; sample k of shard s has the captions "s k 0", "s k 1", "s k 2"."""
    for shard, count in enumerate([5, 7, 4]):
        write_shard(
            tmp_path / f"tiny-{shard:06d}.tar",
            (
                (
                    f"{shard}-{k}",
                    {
                        "jpg": encode_image(100 * shard + k),
                        "json": text_of(*(f"shard {shard} sample {k} caption {c}" for c in range(3))),
                    },
                )
                for k in range(count)
            ),
        )
    return tmp_path
