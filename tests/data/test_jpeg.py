"""JPEGs as people have them are read as Pillow reads them; damaged ones are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from git_scale.data import jpeg
from git_scale.data.images import decode
from git_scale.errors import DataError


def photograph(seed: int = 0, width: int = 250, height: int = 187) -> Image.Image:
    """Smooth shapes under some noise, which compresses like a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def variants() -> Iterator[tuple[str, bytes]]:
    image = photograph()
    for subsampling in (0, 1, 2):
        yield f"subsampling {subsampling}", saved(image, subsampling=subsampling)
    yield "progressive", saved(image, progressive=True)
    yield "grey", saved(image.convert("L"))
    yield "grey progressive", saved(image.convert("L"), progressive=True)
    yield "CMYK", saved(image.convert("CMYK"))
    yield "RGB", saved(image, keep_rgb=True)
    yield "restarts by blocks", saved(image, restart_marker_blocks=7)
    yield "restarts by rows", saved(image, restart_marker_rows=1, progressive=True)
    yield "thumbnail", saved(image, comment=saved(image.resize((40, 30)), progressive=True))
    yield "one pixel", saved(image.resize((1, 1)))
    wide = bytearray(saved(image.convert("L")))  # sampling factors of 3 x 1, which one component may have
    wide[wide.index(b"\xff\xc0") + 11] = 0x31
    yield "odd factors", bytes(wide)


@pytest.mark.parametrize(
    ("name", "data"), variants(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_good_jpegs_are_read_as_pillow_reads_them(name: str, data: bytes) -> None:
    for more in (b"", bytes(64), b"trailing text\n" * 9, data):  # phones append films, mailers anything
        assert np.array_equal(decode(data + more), by_pillow(data)), name
    padded = data[:-2] + bytes(3) + data[-2:]
    assert np.array_equal(decode(padded), by_pillow(data)), "zeros before the end"


def test_what_libjpeg_warns_of_is_refused() -> None:
    whole = saved(photograph(), restart_marker_blocks=5)
    restarts = [at for at in range(len(whole) - 1) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7]
    swapped = bytearray(whole)
    swapped[restarts[3] + 1], swapped[restarts[5] + 1] = whole[restarts[5] + 1], whole[restarts[3] + 1]
    end = whole[-2:]
    damaged = {
        "half with an end": whole[: len(whole) // 2] + end,
        "half": whole[: len(whole) // 2],
        "an end in the middle": whole[: len(whole) // 2] + end + whole[len(whole) // 2 :],
        "no end": whole[:-2],
        "restarts out of order": bytes(swapped),
        "a part twice": whole[:-500] + whole[-600:],
        "zeros for the rest": whole[: len(whole) // 2] + bytes(len(whole) // 2) + end,
        "other bytes before the end": whole[:-2] + bytes(range(1, 17)) + end,
    }
    for name, data in damaged.items():
        with pytest.raises(DataError, match="cannot be decoded"):
            print("accepted:", name, decode(data).size)


def test_most_random_damage_is_noticed() -> None:
    """64 random bytes anywhere: of real photographs Pillow alone notices 37 of 200, its warnings 154."""
    rng = np.random.default_rng(0)
    noticed = noticed_by_pillow = 0
    for seed in range(50):
        data = saved(photograph(seed))
        at = int(rng.integers(len(data) - 64))
        damaged = data[:at] + rng.bytes(64) + data[at + 64 :]
        for decoder in (decode, by_pillow):
            try:
                decoder(damaged)
            except (DataError, OSError, SyntaxError, ValueError):
                noticed += decoder is decode
                noticed_by_pillow += decoder is by_pillow
    assert noticed >= 25 > 15 >= noticed_by_pillow


def bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = saved(Image.new("RGB", (side, side), (90, 120, 30)), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - 10) + data[-2:]


def test_scans_are_counted_up_to_the_end() -> None:
    assert jpeg.count_scans(saved(photograph())) == 1
    assert jpeg.count_scans(saved(photograph(), progressive=True)) == 10
    assert jpeg.count_scans(bomb(64, 25)) == 25
    inside = saved(photograph(), comment=saved(photograph(1, 40, 30), progressive=True))
    assert jpeg.count_scans(inside) == jpeg.count_scans(inside + inside) == 1


def test_a_bomb_of_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(3000, 200)
    assert len(data) < 100_000
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="9000000 pixels in 200 scans: at most 111 are decoded"):
        decode(data)


def test_scans_of_another_jpeg_inside_or_behind_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photograph(), progressive=True)
    monkeypatch.setattr(jpeg, "MAX_SCANNED_PIXELS", 10 * 250 * 187)
    assert np.array_equal(decode(data + data), by_pillow(data))
    monkeypatch.setattr(jpeg, "MAX_SCANNED_PIXELS", 9 * 250 * 187)
    with pytest.raises(DataError, match="in 10 scans: at most 9"):
        decode(data)
