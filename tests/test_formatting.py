"""Tables and durations of a terminal, word for word."""

from __future__ import annotations

import pytest

from git_scale.formatting import format_duration, format_table


def test_numbers_align_right_and_words_left() -> None:
    table = format_table(
        [("image encoder", "86,192,640", "49%"), ("decoder", "9", "-"), ("head", "-0.5", "1.2%")],
        ("part", "parameters", "share"),
    )
    assert table == (
        "part           parameters  share\n"
        "-------------  ----------  -----\n"
        "image encoder  86,192,640    49%\n"
        "decoder                 9      -\n"
        "head                 -0.5   1.2%"
    )


def test_one_word_makes_a_column_of_words() -> None:
    assert format_table([("1",), ("many",)], ("n",)) == "n\n----\n1\nmany"


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table([], ("name", "n")) == "name  n\n----  -"


def test_a_ragged_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"row \('a',\) has 1 cells"):
        format_table([("a",)], ("name", "n"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0m 00s"),
        (59.6, "1m 00s"),
        (249, "4m 09s"),
        (3599.6, "1h 00m"),
        (11_130, "3h 05m"),
        (183_600, "2d 03h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
