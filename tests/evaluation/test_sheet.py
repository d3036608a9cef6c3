"""The contact sheet: its geometry, its colours, and awkward input."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageFont

from git_scale.errors import DataError
from git_scale.evaluation import sheet as sheets
from git_scale.evaluation.sheet import SheetCell, draw_captions

CELL = sheets.SIDE + 2 * sheets.CELL_PADDING + sheets.GAP


def count_colour(sheet: Image.Image, colour: str, top: int = 60) -> int:
    """Pixels below the header that have exactly this colour."""
    pixels = np.array(sheet)[top:]
    return int((pixels == ImageColor.getrgb(colour)).all(-1).sum())


def grey(side: int = 40) -> np.ndarray:
    return np.full((side, side, 3), 128, np.uint8)


def test_size_follows_rows_and_columns() -> None:
    rows = [SheetCell(grey(), "a", "a")] * 5
    wide, narrow = draw_captions(rows, columns=4), draw_captions(rows, columns=2)
    assert wide.mode == "RGB"
    assert wide.width == sheets.GAP + 4 * CELL
    assert narrow.width == sheets.GAP + 2 * CELL
    assert draw_captions(rows[:1], columns=4).width == sheets.GAP + CELL
    header = sheets.HEADER_HEIGHT + sheets.GAP
    assert (narrow.height - header) * 2 == (wide.height - header) * 3


@pytest.mark.parametrize(("generated", "green"), [("Two  dogs", True), ("two cats", False)])
def test_equal_is_green_and_different_is_red(generated: str, green: bool) -> None:
    sheet = draw_captions([SheetCell(grey(), "two dogs", generated)])
    assert count_colour(sheet, sheets.GREY) > 0
    assert (count_colour(sheet, sheets.GREEN) > 0) == green
    assert (count_colour(sheet, sheets.RED) > 0) == (not green)


def test_tiny_images_keep_their_pixels_and_large_ones_their_shape() -> None:
    checker = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    left, top = sheets.GAP + sheets.CELL_PADDING, sheets.HEADER_HEIGHT + sheets.GAP + sheets.CELL_PADDING
    sheet = np.array(draw_captions([SheetCell(checker, "a", "a")]))
    image = sheet[top : top + sheets.SIDE, left : left + sheets.SIDE]
    centres = image[14::28, 14::28, 0]
    assert np.array_equal(centres, checker)
    assert set(np.unique(image[2:-2, 2:-2])) == {0, 255}
    wide = Image.new("L", (400, 100), 7)
    sheet = np.array(draw_captions([SheetCell(wide, "a", "a")]))
    image = sheet[top : top + sheets.SIDE, left : left + sheets.SIDE, 0]
    assert (image == 7).any(axis=1).sum() == pytest.approx(sheets.SIDE / 4, abs=2)


def test_long_texts_stay_within_their_cell() -> None:
    font = ImageFont.load_default(size=sheets.TEXT_SIZE)
    words = "every word of a caption that goes on and on " * 20
    for text in (words, "x" * 3000, "short", "wo" * 40 + " and more"):
        lines = sheets._wrap(text, font)
        assert 1 <= len(lines) <= sheets.MAX_LINES
        assert max(font.getlength(line) for line in lines) <= sheets.SIDE
    assert sheets._wrap(words, font)[-1].endswith("...")
    assert " ".join(sheets._wrap(words[:100], font)) == words[:100].strip()
    assert sheets._wrap(" \n", font) == ["(empty)"]


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(DataError, match=r"eval\.pictures"):
        draw_captions([])
