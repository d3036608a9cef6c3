from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from git_scale.config import DataConfig
from git_scale.data import images
from git_scale.data.images import (
    crop_resized,
    decode,
    normalise,
    prepare,
    random_box,
    resize_fit,
    resize_pad,
)
from git_scale.data.images import resize_center_crop as center_crop
from git_scale.errors import DataError


@pytest.fixture(scope="module")
def vision() -> object:
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    import torchvision.transforms.functional

    return torchvision.transforms.functional


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats(format: str, image: Callable) -> None:
    data = image(1, 37, 23, format)
    decoded = decode(data)
    assert decoded.mode == "RGB" and decoded.size == (37, 23)
    assert np.array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))


def oriented(value: int, format: str, exif: Image.Exif | None = None) -> bytes:
    """An image of four different quarters with the EXIF tag of an orientation."""
    quarters = Image.fromarray(np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [90, 90, 90]]], np.uint8))
    exif = exif or Image.Exif()
    exif[0x0112] = value
    return saved(quarters.resize((48, 32), Image.Resampling.NEAREST), format, exif=exif)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_upright_as_its_exif_says(format: str) -> None:
    seen = []
    for value in range(1, 9):
        data = oriented(value, format)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert expected.size == ((32, 48) if value > 4 else (48, 32))
        assert np.array_equal(decode(data), expected), value
        seen.append(np.asarray(decode(data)).tobytes())
        # once is enough: what was decoded, or was turned by hand, is not turned again
        assert np.array_equal(images.to_rgb(decode(data)), expected)
        assert np.array_equal(images.to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))), expected)
        assert np.array_equal(images.to_rgb(Image.open(io.BytesIO(data))), expected)
    assert len(set(seen)) == 8


def test_orientation_in_xmp_and_of_transparent_images() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = saved(noise(48, 32), "JPEG", xmp=xmp)
    assert np.array_equal(decode(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    exif = Image.Exif()
    exif[0x0112] = 5
    clear = Image.new("RGBA", (5, 3), (0, 0, 0, 0))
    clear.putpixel((4, 0), (9, 9, 9, 255))
    upright = np.asarray(decode(saved(clear, exif=exif)))
    assert (
        upright.shape == (5, 3, 3)
        and upright[4, 0].tolist() == [9] * 3
        and upright[0, 2].tolist() == [255] * 3
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_is_none_is_ignored(value: int, format: str) -> None:
    assert decode(oriented(value, format)).size == (48, 32)


def test_a_damaged_exif_is_ignored() -> None:
    good = oriented(6, "JPEG")
    at = good.index(b"Exif\x00\x00") + 6
    rng = np.random.default_rng(0)
    for length in (2, 8, 26):
        for _ in range(20):
            data = good[:at] + rng.bytes(length) + good[at + length :]
            assert sorted(decode(data).size) == [32, 48]
    assert decode(good[:at] + b"XX" + good[at + 2 :]).size == (48, 32)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(format: str) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(saved(noise(8, 8), format))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(format: str, share: float) -> None:
    data = saved(noise(64, 64), format)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data[: int(share * len(data))])


@pytest.mark.parametrize("data", [b"", b"rubbish", bytes(10_000), b"\xff\xd8\xff\xe0" + bytes(100)])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


def test_random_damage_raises_data_errors_only() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for format in ("JPEG", "PNG", "WEBP"):
        healthy = np.frombuffer(saved(noise(32, 32), format), np.uint8)
        for _ in range(60):
            data = healthy.copy()
            data[rng.integers(len(data), size=20)] = rng.integers(256, size=20)
            try:
                decode(data.tobytes())
            except DataError:
                refused += 1
    assert refused > 60


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1000))
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(8, 8), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    data = bytearray(saved(noise(8, 8), "WEBP", lossless=True))
    data[21:25] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png_header(30_000, 30_000),
        jpeg_header(30_000, 30_000),
        jpeg_header(65_500, 65_500),
        png_header(12_000, 12_000),  # below PIL's own limit
        png_header(16_000, 10),
        jpeg_header(10_000, 9_001),
        webp_header(16_383, 16_383),
    ],
    ids=["png", "jpeg", "largest-jpeg", "png-144MP", "long", "jpeg-90.01MP", "webp"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_forged_header_allocates_nothing(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="pixels"):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_png_has_a_bound_of_chunks_and_of_text() -> None:
    data = saved(noise(8, 8))
    start = 8 + 25  # behind the header
    few = data[:start] + png_chunk(b"abCd", b"") * 1_000 + data[start:]
    assert np.array_equal(decode(few), decode(data))
    with pytest.raises(DataError, match="more than 70000 chunks"):
        decode(data[:start] + png_chunk(b"abCd", b"") * 70_000 + data[start:])
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))  # 97 kB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data[:start] + bomb + data[start:])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_flipped_bit_of_a_png_is_noticed() -> None:
    data = bytearray(saved(noise(64, 64)))
    data[len(data) // 2] ^= 4
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(bytes(data))


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (200, 100, 0)]
    for format in ("WEBP", "PNG"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(decode(data))[8, 8].tolist() == [200, 0, 0]


def test_the_size_limits() -> None:
    images.check_size(10_000, 9_000)
    images.check_size(15_000, 6_000)
    for size in ((10_000, 9_001), (15_001, 1), (1, 15_001)):
        with pytest.raises(DataError):
            images.check_size(*size)


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 128, 255)
    flat = np.asarray(decode(saved(Image.fromarray(rgba, "RGBA"))))
    # red 200 at half: 200 * 128/255 + 255 * 127/255 = 227; green and blue: 0 + 127
    assert flat.tolist() == [[[255, 255, 255], [227, 127, 127], [200, 0, 0]]]
    grey = Image.merge("LA", [Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)])
    assert np.asarray(decode(saved(grey))).min() == 255
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert np.asarray(decode(saved(palette)))[0, 0].tolist() == [9, 8, 7]
    assert np.asarray(decode(saved(palette, transparency=1)))[0, 0].tolist() == [255, 255, 255]


def png_of_grey(depth: int, row: bytes, transparent: int) -> bytes:
    """Two pixels in a row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0))
    trns = chunk(b"tRNS", struct.pack(">H", transparent))
    return images.PNG + header + trns + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "other"),
    [
        (16, b"\x12\x34\x12\x35", 0x1234, 0x12),
        (8, b"\x12\x13", 0x12, 0x13),
        (4, b"\x12", 1, 2 * 17),
        (2, b"\x60", 1, 2 * 85),
        (1, b"\x80", 1, 0),
    ],
)
def test_the_grey_that_is_transparent_is_white_at_any_depth(
    depth: int, row: bytes, transparent: int, other: int
) -> None:
    pixels = np.asarray(decode(png_of_grey(depth, row, transparent)))
    assert pixels.tolist() == [[[255] * 3, [other] * 3]]


def test_other_modes() -> None:
    assert np.asarray(decode(saved(Image.new("L", (2, 2), 77))))[0, 0].tolist() == [77, 77, 77]
    deep = Image.fromarray(np.full((2, 2), 0x4DFF, np.uint16))
    assert np.asarray(decode(saved(deep)))[0, 0].tolist() == [0x4D] * 3
    cmyk = decode(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(cmyk)[8, 8].tolist()
    assert red > 240 and green < 15 and blue < 15
    assert np.asarray(decode(saved(Image.new("1", (2, 2), 1)))).min() == 255


@pytest.mark.parametrize("size", [16, 65, 160])
def test_resize_center_crop_equals_torchvision(vision: object, size: int) -> None:
    rng = np.random.default_rng(size)
    for seed in range(40):
        short = int(rng.integers(5, 200))
        sides = short, int(rng.integers(short, min(8 * short, 400) + 1))
        image = noise(*rng.permutation(sides), seed)
        theirs = vision.center_crop(  # type: ignore[attr-defined]
            vision.resize(image, size, vision.InterpolationMode.BICUBIC),
            size,  # type: ignore[attr-defined]
        )
        assert np.array_equal(center_crop(image, size), np.asarray(theirs).transpose(2, 0, 1)), image.size


@pytest.mark.parametrize("size", [(1, 15_000), (15_000, 1), (3, 2_000)])
def test_a_strip_costs_no_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert center_crop(image, 224).mean(axis=(1, 2)).tolist() == [10, 20, 30]
    box = random_box(*size, (0.8, 1), np.random.default_rng(0))
    assert crop_resized(image, box, 224).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_crop_equals_torchvision(vision: object) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        image = noise(90, 70, seed)
        left, top, right, bottom = box = random_box(90, 70, (0.3, 0.6), rng)
        theirs = vision.resized_crop(  # type: ignore[attr-defined]
            image, top, left, bottom - top, right - left, [48, 48], vision.InterpolationMode.BICUBIC
        )
        assert np.array_equal(crop_resized(image, box, 48), np.asarray(theirs).transpose(2, 0, 1))


def test_boxes_are_distributed_as_torchvisions(vision: object) -> None:
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    blank = Image.new("RGB", (110, 100))
    ours = np.array([random_box(110, 100, (0.8, 1.0), rng) for _ in range(4000)])
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.8, 1.0], [1.0, 1.0]) for _ in range(4000)])
    ours_sides = ours[:, 2] - ours[:, 0]
    assert np.array_equal(ours_sides, ours[:, 3] - ours[:, 1])
    assert ours.min() >= 0 and ours[:, 2].max() <= 110 and ours[:, 3].max() <= 100
    assert (ours_sides.min(), ours_sides.max()) == (theirs[:, 2].min(), theirs[:, 2].max()) == (94, 100)
    for mine, other in ((ours_sides, theirs[:, 2]), (ours[:, 0], theirs[:, 1]), (ours[:, 1], theirs[:, 0])):
        assert abs(mine.mean() - other.mean()) < 0.15  # 3 sigma of the mean of offsets 0..16
    upright = np.array([random_box(100, 110, (0.8, 1.0), rng) for _ in range(4000)])
    assert upright[:, 2].max() <= 100 and upright[:, 3].max() <= 110 and upright.min() >= 0
    assert (
        abs(upright[:, 1].mean() - ours[:, 0].mean()) < 0.15
        and abs(upright[:, 0].mean() - ours[:, 1].mean()) < 0.15
    )
    # 4:3 photographs are too oblong for 80 % of their area in a square: the largest centered one
    assert {random_box(640, 480, (0.8, 1.0), rng) for _ in range(50)} == {(80, 0, 560, 480)}
    assert {random_box(480, 640, (0.8, 1.0), rng) for _ in range(50)} == {(0, 80, 480, 560)}
    for size, top, left in (((640, 480), 0, 80), ((480, 640), 80, 0)):
        params = RandomResizedCrop.get_params(Image.new("RGB", size), [0.8, 1.0], [1.0, 1.0])
        assert params == (top, left, 480, 480)


def test_normalise_equals_torchvision(vision: object) -> None:
    pixels = torch.randint(
        0, 256, (2, 1, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    theirs = vision.normalize(pixels.double() / 255, images.MEAN, images.STD)  # type: ignore[attr-defined]
    torch.testing.assert_close(normalise(pixels, torch.float32), theirs.float(), rtol=1e-6, atol=1e-6)
    assert normalise(pixels, torch.bfloat16).equal(normalise(pixels, torch.float32).bfloat16())


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (33, 32), (20, 100), (50, 50)])
def test_pad_keeps_the_whole_image(size: tuple[int, int]) -> None:
    white = np.full((size[1], size[0], 3), 255, np.uint8)
    padded = resize_pad(Image.fromarray(white), 64)
    assert padded.shape == (3, 64, 64)
    inside = padded.min(axis=0) == 255
    assert np.array_equal(inside, padded.max(axis=0) == 255), "nothing but white and black"
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    width, height = (round(64 * side / max(size)) for side in size)
    assert (columns, rows) == (width, height) and inside.sum() == width * height
    top, left = inside.any(axis=1).argmax(), inside.any(axis=0).argmax()
    assert (left, top) == ((64 - width) // 2, (64 - height) // 2)
    image = noise(*size)
    part = resize_pad(image, 64)[:, top : top + rows, left : left + columns]
    assert np.array_equal(part.transpose(1, 2, 0), image.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),  # as it is
        ((480, 640), (480, 640)),
        ((1024, 768), (640, 480)),
        ((1280, 720), (640, 360)),  # 16:9 would be 853 long: the longer side decides
        ((500, 375), (640, 480)),
        ((375, 500), (480, 640)),
        ((333, 500), (426, 639)),  # round(640 * 333 / 500) = 426, int(426 * 500 / 333) = 639
        ((500, 500), (480, 480)),
    ],
)
def test_fit_has_the_sides_of_gits_vqa_models(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_fit(noise(*size), 480, 640).shape == (3, expected[1], expected[0])


@pytest.mark.parametrize("size", [(2000, 100), (100, 2000), (15_000, 1)])
def test_fit_leaves_patches_of_a_strip(size: tuple[int, int]) -> None:
    assert sorted(resize_fit(Image.new("RGB", size), 480, 640).shape) == [3, 128, 640], "of its middle, 5:1"


def test_fit_is_the_whole_image() -> None:
    image = noise(100, 75)
    expected = np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(resize_fit(image, 48, 64), expected)


def test_prepare_follows_the_recipe() -> None:
    image = noise(90, 40)
    assert np.array_equal(prepare(image, DataConfig(), 32), center_crop(image, 32))
    assert np.array_equal(prepare(image, DataConfig(resize="pad"), 32), resize_pad(image, 32))
    assert prepare(image, DataConfig(resize="fit", max_side=50), 32).shape == (3, 22, 49)
    assert prepare(image, DataConfig(resize="fit"), 36).shape == (3, 21, 47)  # 4/3 of 36 is 48
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(prepare(image, DataConfig(), 32), resize_pad(image, 32))
