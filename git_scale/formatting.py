"""Tables and durations for a terminal, in plain ASCII."""

from __future__ import annotations

from collections.abc import Sequence

GIB = 2**30
"""Bytes."""


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """The rows under a ruled header; a column that holds only numbers is aligned to the right.

    Raises ValueError when a row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"row {tuple(row)} has {len(row)} cells, the header {tuple(header)} has {len(header)}"
            )
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [len(column) > 1 and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, numeric, strict=True)
        return "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells
        ).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def format_duration(seconds: float) -> str:
    """`2d 03h`, `3h 05m`, `4m 09s`: two units are enough."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 24 else f"{hours // 24}d {hours % 24:02d}h"


def _is_number(cell: str) -> bool:
    """Whether a cell starts with a number, a unit allowed behind it: `1,024`, `-0.5`, `41%`, `12.3 GiB`."""
    first = cell.split(" ")[0].rstrip("%").replace(",", "")
    try:
        float(first)
    except ValueError:
        return cell == "-"  # the usual cell for nothing
    return True
