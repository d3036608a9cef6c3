"""Text and JSON files that others wrote: UTF-8 with or without a byte-order mark, no key of an object twice.

Every error here is a ValueError whose text says what is wrong and how to mend it; the caller names the file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from git_scale.paths import special_kind

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's little-endian mark begins with the first

MOST_DIGITS = 100  # Python itself refuses 4,301

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HTML = (b"<!doctype", b"<html", b"<?xml", b"<head")
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def other_form(data: bytes) -> str:
    """What a file is that begins with `data`, and the remedy, where that is not what its name says; else empty."""
    packing = next((name for start, name in _PACKED.items() if data.startswith(start)), None)
    if packing or (data.startswith(b"BZh") and data[4:10] == b"1AY&SY"):
        return f"packed with {packing or 'bzip2'}; unpack it"
    if data.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned"
    if data[:512].lstrip().lower().startswith(HTML):
        return "a web page: the download got an error or a login page; download it again"
    return ""


def read_text(path: Path) -> str:
    """The file's text without its byte-order mark. Raises OSError, or ValueError for anything but UTF-8."""
    return decode_utf8(_read(path))


def read_json(path: Path) -> Any:
    """What the JSON file holds. Raises OSError, or ValueError for anything but one well-formed JSON value."""
    return parse_json(_read(path))


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank. Raises OSError, or ValueError naming the line."""
    lines = read_text(path).split("\n")  # not splitlines: it would cut a text at U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line.encode())
        except json.JSONDecodeError as error:  # its own words have the line of a text of one line
            raise ValueError(f"line {number}: {error.msg} at column {error.colno}") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        yield number, value


def _read(path: Path) -> bytes:
    if kind := special_kind(path):
        raise ValueError(f"it is {kind}; give a file")
    data = path.read_bytes()
    if form := other_form(data):
        raise ValueError(f"it is {form}")
    return data


def decode_utf8(data: bytes) -> str:
    """Strict UTF-8, with or without a byte-order mark. Raises ValueError naming the line."""
    if data.startswith(_UTF16):
        raise ValueError("it is UTF-16, which some Windows programs call Unicode; save it as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        raise ValueError(
            f"line {_line(data, at)}: a zero byte; the file is damaged or UTF-16, save it as UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(error.object)  # the codec does not count the mark
        raise ValueError(
            f"line {_line(data, at)}: byte 0x{data[at]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def parse_json(data: bytes) -> Any:
    """The JSON value in `data`. Raises ValueError when an object gives a key twice: the first would be lost."""
    if not data.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(decode_utf8(data), object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twin!r:.200} stands twice in one object; remove one of the two")
    return tree


def named(keys: Iterable[str]) -> str:
    """The first of them for a message, each in 200 characters at the most."""
    return ", ".join(f"{key:.200}" for key in islice(keys, 8))


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def whole_number(text: str) -> int | None:
    """The number that decimal digits write; None for any other text, and for more digits than a number here has."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None
