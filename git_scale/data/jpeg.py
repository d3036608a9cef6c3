"""JPEGs, decoded by libjpeg-turbo with its warnings as errors, and bounded in what they may cost.

Pillow decodes with the same library and drops its warnings: of images with 64 random bytes inside, four fifths then
pass with other pixels. What passes here (a quarter of them) reads as a valid JPEG; only a digest finds it.
"""

from __future__ import annotations

import re

from PIL import Image
from PIL.ImageFile import ImageFile

from git_scale.errors import DataError

# A progressive JPEG may come in any number of scans, each of which visits every pixel, at 1 ns and 14 bytes when it
# says nothing new: 58 kB kept a core busy for 8 s. Encoders write 4 to 12 scans, and 90 MP in 11 are decoded.
MAX_SCANNED_PIXELS = 1_000_000_000

SCAN, END = 0xDA, 0xD9
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0..7, SOI
# In entropy-coded data FF is followed by 00, or by the number of a restart; FF FF is filling.
NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
MAX_PADDING = 16  # zeros before the end marker; more are a hole in the file, which reads as flat blocks
PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def check_scans(data: bytes, pixels: int) -> None:
    """Raises DataError for more scans than an image of so many pixels may have."""
    most = max(1, MAX_SCANNED_PIXELS // pixels)
    # counting bytes first: exact for nearly all, and too high only where another JPEG lies inside
    if data.count(bytes([0xFF, SCAN])) > most and count_scans(data) > most:
        raise DataError(f"a JPEG of {pixels} pixels in {count_scans(data)} scans: at most {most} are decoded")


def count_scans(data: bytes) -> int:
    """Scans up to the end marker; JPEGs inside a segment (thumbnails) or behind the end do not count."""
    scans, at = 0, 2
    while found := NEXT_MARKER.search(data, at):
        marker = found[1][0]
        if marker == END:
            break
        scans += marker == SCAN
        at = found.end()
        if marker not in STANDALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def decode_jpeg(data: bytes, opened: ImageFile) -> Image.Image:
    """The JPEG that Pillow has opened in RGB, with the pixels that Pillow would give.

    Raises ValueError for anything that libjpeg-turbo warns of: damaged or missing data, restarts out of order.
    """
    import simplejpeg  # here, because a GPU image may lack it

    mode = raw = "CMYK" if opened.mode == "CMYK" else "RGB"
    if mode == "CMYK" and isinstance(arguments := opened.tile[0].args, tuple):
        raw = arguments[0]  # CMYK;I: inverted, as Adobe writes it
    try:
        pixels = simplejpeg.decode_jpeg(data, mode)
    except ValueError as error:
        if "subsampling" in str(error):  # factors that libjpeg reads and its simple interface has no name for
            return opened.convert("RGB")
        if not is_padded(data, str(error)):
            raise
        pixels = simplejpeg.decode_jpeg(data, mode, strict=False)
    decoded = Image.frombuffer(mode, opened.size, pixels, "raw", raw, 0, 1)
    return decoded if mode == "RGB" else decoded.convert("RGB")


def is_padded(data: bytes, warning: str) -> bool:
    """Whether all that is wrong are a few zeros before the end marker, with which some cameras fill up."""
    found = PADDING.search(warning)
    zeros = int(found[1]) if found else 0
    return 0 < zeros <= MAX_PADDING and bytes(zeros) + bytes([0xFF, END]) in data
