"""A contact sheet: images with their reference (grey) and generated caption (green if equal, else red)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from git_scale.errors import DataError
from git_scale.metrics.exact_match import is_match

SIDE = 224  # pixels of an image on the sheet
GAP = 16  # between cells, and around the sheet
CELL_PADDING = 12
TEXT_SIZE, HEADER_SIZE, LINE_HEIGHT, HEADER_HEIGHT = 15, 20, 20, 36
MAX_LINES = 5  # per text; the rest of a longer one is cut with an ellipsis
MAX_CHARACTERS = 500  # more than fills MAX_LINES: no time goes into measuring what is not drawn
PAPER, CARD, EDGE = "#f3f4f6", "#ffffff", "#d9dce1"
INK, GREY, GREEN, RED = "#1f2430", "#737a86", "#15803d", "#c02626"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetCell:
    """Holds an image and its texts. image: uint8 array H x W (x 3), or a PIL image of any mode and size."""

    image: np.ndarray | Image.Image
    reference: str
    generated: str


def draw_captions(rows: Sequence[SheetCell], columns: int = 4) -> Image.Image:
    """The rows' images in reading order under a header with their exact match; RGB.

    Raises DataError when there are no rows.
    """
    if not rows:
        raise DataError("contact sheet: no captions to draw; set eval.pictures to 1 or more")
    columns = min(columns, len(rows))
    font = ImageFont.load_default(size=TEXT_SIZE)
    texts = [(_wrap(row.reference, font), _wrap(row.generated, font)) for row in rows]
    bands = [range(start, min(start + columns, len(rows))) for start in range(0, len(rows), columns)]
    heights = [max(_cell_height(texts[number]) for number in band) for band in bands]
    cell_width = SIDE + 2 * CELL_PADDING
    width = GAP + columns * (cell_width + GAP)
    sheet = Image.new("RGB", (width, HEADER_HEIGHT + GAP + sum(heights) + len(bands) * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, rows, width)
    top = HEADER_HEIGHT + GAP
    for band, height in zip(bands, heights, strict=True):
        for column, number in enumerate(band):
            left = GAP + column * (cell_width + GAP)
            draw.rounded_rectangle((left, top, left + cell_width, top + height), 8, fill=CARD, outline=EDGE)
            sheet.paste(_frame(rows[number].image), (left + CELL_PADDING, top + CELL_PADDING))
            _draw_texts(
                draw, rows[number], texts[number], left + CELL_PADDING, top + CELL_PADDING + SIDE + 10
            )
        top += height + GAP
    return sheet


def _draw_header(draw: ImageDraw.ImageDraw, rows: Sequence[SheetCell], width: int) -> None:
    """`exact match 14 of 16`, and the colours' legend where the sheet is wide enough."""
    matches = sum(is_match(row.generated, [row.reference]) for row in rows)
    title = f"exact match {matches} of {len(rows)}"
    middle = GAP // 2 + HEADER_HEIGHT // 2 + 4
    font, small = ImageFont.load_default(size=HEADER_SIZE), ImageFont.load_default(size=TEXT_SIZE)
    draw.text((GAP, middle), title, fill=INK, font=font, anchor="lm")
    legend = [("reference", GREY), ("equal", GREEN), ("different", RED)]
    length = sum(small.getlength(word) for word, _ in legend) + 2 * GAP
    if GAP + font.getlength(title) + GAP + length + GAP > width:
        return
    left = width - GAP - length
    for word, colour in legend:
        draw.text((left, middle), word, fill=colour, font=small, anchor="lm")
        left += small.getlength(word) + GAP


def _draw_texts(
    draw: ImageDraw.ImageDraw, row: SheetCell, texts: tuple[list[str], list[str]], left: float, top: float
) -> None:
    font = ImageFont.load_default(size=TEXT_SIZE)
    colour = GREEN if is_match(row.generated, [row.reference]) else RED
    for lines, ink in zip(texts, (GREY, colour), strict=True):
        for line in lines:
            draw.text((left, top), line, fill=ink, font=font)
            top += LINE_HEIGHT
        top += 4


def _cell_height(texts: tuple[list[str], list[str]]) -> int:
    return 2 * CELL_PADDING + SIDE + 10 + LINE_HEIGHT * (len(texts[0]) + len(texts[1])) + 4


def _frame(image: np.ndarray | Image.Image) -> Image.Image:
    """The image in a thin frame of SIDE x SIDE, centred; tiny ones keep their pixels visible."""
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    inner = SIDE - 2
    scale = inner / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    is_tiny = max(picture.size) <= 32  # smoothing eight pixels into 224 shows nothing but a blur
    picture = picture.resize(size, Image.Resampling.NEAREST if is_tiny else Image.Resampling.BICUBIC)
    framed = Image.new("RGB", (SIDE, SIDE), PAPER)
    framed.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    ImageDraw.Draw(framed).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=EDGE)
    return framed


def _wrap(text: str, font: Font) -> list[str]:
    """Lines that fit under an image, at least one and at most MAX_LINES."""
    lines = [""]
    for word in text[:MAX_CHARACTERS].split() or ["(empty)"]:
        for piece in _break_word(word, font):
            wider = f"{lines[-1]} {piece}".lstrip()
            if font.getlength(wider) <= SIDE:
                lines[-1] = wider
            else:
                lines.append(piece)
    if len(lines) > MAX_LINES:
        return [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1][:-3] + "..."]
    return lines


def _break_word(word: str, font: Font) -> Iterator[str]:
    """The word, in pieces that each fit in a line."""
    start = 0
    for end in range(1, len(word) + 1):
        if font.getlength(word[start:end]) > SIDE:
            yield word[start : end - 1]
            start = end - 1
    yield word[start:]
