"""From rows (an image's file name, its captions and questions) to samples with the image's bytes.

File names come from CSV and JSON files that strangers wrote: none of them may lead out of the images folder.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from git_scale.data.builders.parallel import map_in_order
from git_scale.data.builders.segments import frames_of_video, names_within
from git_scale.data.builders.writer import ChangedItem, SampleToWrite, Skipped
from git_scale.data.captions import HALVES, clean_caption
from git_scale.data.images import FORMATS, decode
from git_scale.data.members import VIDEO_ENDINGS
from git_scale.data.video import Segment, read_frames
from git_scale.errors import DataError

SHORTER_SIDE, LONGER_SIDE, JPEG_QUALITY = 384, 640, 90  # GIT, arXiv 2205.14100, section 4.1


@dataclass(frozen=True)
class SourceRow:
    """One image of a source."""

    file: str
    """Relative to the images folder."""
    captions: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    """Goes into the sample's json as it is."""
    questions: tuple[dict[str, Any], ...] = ()
    """Each `{"question": str, "answers": [str, ...]}`, and what else is to be kept of it."""
    is_asked: bool = False
    """Whether it is kept without a text: of a test split's image an evaluation asks one."""
    is_measured: bool = False
    """Whether `width` and `height` of the file, before it is turned or shrunk, go into the sample's json."""
    segment: Segment | None = None
    """The part of a video, or of a folder with its frames, that the texts are about: its frames become the sample."""


def gather(pairs: Iterable[tuple[str, str]]) -> list[SourceRow]:
    """(file, caption) pairs as one row per file, in order of first mention; "./a.jpg" is "a.jpg"."""
    captions_of: dict[str, list[str]] = {}
    for file, caption in pairs:
        captions_of.setdefault(posixpath.normpath(file), []).append(caption)
    return [SourceRow(file, tuple(captions)) for file, captions in captions_of.items()]


def refuse_shared_files(path: Path, rows: Iterable[SourceRow]) -> None:
    """Raises DataError when two rows, each with an image_id of its own, name one file."""
    seen: dict[str, SourceRow] = {}
    for row in rows:
        first = seen.setdefault(posixpath.normpath(row.file), row)
        if first is not row:
            ids = f"{first.extra['image_id']!r} and {row.extra['image_id']!r}"
            raise DataError(
                f"{path}: the image ids {ids} have one file, {row.file!r}; give an image one id, and that to all"
                " that is said of it"
            )


def samples_of(
    rows: Iterable[SourceRow | Skipped], images: Path, shrink: bool = False, workers: int = 1
) -> Iterator[SampleToWrite | Skipped]:
    """Each row's sample, in order; what cannot be used comes as Skipped: broken images, empty texts, and
    what the format's reader has skipped already.

    `shrink`: images above the paper's size (shorter side 384, longer side 640) become smaller JPEGs; all
    others keep their bytes. Raises DataError when `images` is no folder.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    make = partial(make_sample, images.resolve(), shrink)
    for outcomes in map_in_order(make, rows, workers, died_of=_killer):
        yield from outcomes


def make_sample(images: Path, shrink: bool, row: SourceRow | Skipped) -> list[SampleToWrite | Skipped]:
    """The row's sample, after one Skipped for each unusable text; or only what was skipped and why."""
    if isinstance(row, Skipped):
        return [row]
    captions = [text.strip() for text in row.captions if clean_caption(text)]
    questions = [question for question in row.questions if clean_caption(question["question"])]
    outcomes: list[SampleToWrite | Skipped] = []
    captions = _in_whole_characters(row.file, "caption", captions, outcomes)
    questions = [_asked_in_whole_characters(row.file, question, outcomes) for question in questions]
    outcomes += [Skipped(row.file, "empty caption", "caption")] * (len(row.captions) - len(captions))
    outcomes += [Skipped(row.file, "empty question", "question")] * (len(row.questions) - len(questions))
    distinct = list(dict.fromkeys(captions))
    outcomes += [Skipped(row.file, "same caption again", "caption")] * (len(captions) - len(distinct))
    if not captions and not questions and not row.is_asked:
        return [*outcomes, Skipped(row.file, "no caption")]
    text = {"captions": distinct, "file": row.file, **row.extra}
    if questions:
        text["questions"] = questions
    try:
        return [*outcomes, _with_pictures(images, shrink, row, text)]
    except _UnusableError as reason:
        return [*outcomes, Skipped(row.file, str(reason))]


def _with_pictures(images: Path, shrink: bool, row: SourceRow, text: dict[str, Any]) -> SampleToWrite:
    if row.segment is None:
        image, extension = load_image(images, row.file, shrink)
        if row.is_measured:
            text |= _size_of(_existing(_inside(images, row.file)))
        return SampleToWrite(image, extension, text)
    frames = load_segment(images, row.file, row.segment, shrink)
    return SampleToWrite(frames[len(frames) // 2], "jpg", text, frames)


def _in_whole_characters(
    file: str, unit: str, texts: list[str], outcomes: list[SampleToWrite | Skipped]
) -> list[str]:
    """The texts as training reads them, without halves of characters: `outcomes` takes a ChangedItem for each."""
    whole = [HALVES.sub("", text) for text in texts]
    changed = sum(before != after for before, after in zip(texts, whole, strict=True))
    outcomes += [ChangedItem(file, "half a character (a lone surrogate) in it, dropped", unit)] * changed
    return whole


def _asked_in_whole_characters(
    file: str, question: dict[str, Any], outcomes: list[SampleToWrite | Skipped]
) -> dict[str, Any]:
    (asked,) = _in_whole_characters(file, "question", [question["question"]], outcomes)
    answers = _in_whole_characters(file, "answer", question.get("answers", []), outcomes)
    return {**question, "question": asked, "answers": answers}


def _killer(row: SourceRow | Skipped) -> list[SampleToWrite | Skipped]:
    return [
        row if isinstance(row, Skipped) else Skipped(row.file, "image that kills the process that reads it")
    ]


class _UnusableError(Exception):
    """An image that is left out; the text is the reason, the same for all of its kind."""


def load_image(images: Path, file: str, shrink: bool) -> tuple[bytes, str]:
    """The bytes of an image that decodes, with the extension that its content asks for; or of a video that does."""
    data = _read_inside(images, file)
    if (ending := Path(file).suffix.lower()[1:]) in VIDEO_ENDINGS:
        return _checked_video(data), ending
    extension = extension_of(data)
    if not extension:
        raise _UnusableError("not a JPEG, PNG or WebP image")
    picture = _decoded(data)
    if shrink and (smaller := shrink_image(picture)):
        return smaller, "jpg"
    return data, extension


def _size_of(path: Path) -> dict[str, int]:
    """Pixels by the header of an image that has been decoded."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return {"width": picture.width, "height": picture.height}
    except OSError:
        raise _UnusableError("unreadable image") from None


def load_segment(images: Path, file: str, segment: Segment, shrink: bool) -> tuple[bytes, ...]:
    """JPEGs of the frames of a part of a video, or of a folder of frames, which keep their bytes."""
    path = _inside(images, file)
    if os.path.isdir(path):  # noqa: PTH112 - Path's fails for an overlong name
        names = names_within(_names_in(path), segment)
        frames = [load_image(images, f"{file}/{name}", shrink) for name in names]
        if not all(extension == "jpg" for _, extension in frames):
            raise _UnusableError("frame that is no JPEG")
        if not frames:
            raise _UnusableError("no frame within the segment")
        return tuple(data for data, _ in frames)
    try:
        pictures = frames_of_video(_existing(path), segment)
    except DataError:
        raise _UnusableError("broken video, or one that ends before its segment") from None
    return tuple((shrink and shrink_image(picture)) or _to_jpeg(picture) for picture in pictures)


def _names_in(folder: Path) -> list[str]:
    try:
        return [item.name for item in folder.iterdir()]
    except OSError:
        raise _UnusableError("unreadable image") from None


def _decoded(data: bytes) -> Image.Image:
    try:
        return decode(data)
    except DataError:
        raise _UnusableError("broken image") from None


def _checked_video(data: bytes) -> bytes:
    try:
        read_frames(data, 1)
    except DataError:
        raise _UnusableError("broken video") from None
    return data


def _read_inside(folder: Path, file: str) -> bytes:
    """The content of `file` within the (resolved) folder."""
    path = _existing(_inside(folder, file))
    try:
        return path.read_bytes()
    except OSError:
        raise _UnusableError("unreadable image") from None


def _inside(folder: Path, file: str) -> Path:
    """Where `file` lies within the (resolved) folder; links are followed before that is judged."""
    try:
        path = (folder / file).resolve()
    except (OSError, ValueError, RuntimeError):  # an overlong name, a zero byte, a loop of links
        raise _UnusableError("unreadable image") from None
    if not path.is_relative_to(folder):
        raise _UnusableError("path leaves the images folder")
    return path


def _existing(path: Path) -> Path:
    try:
        if path.is_file():  # a named pipe is none: a read would wait for ever
            return path
    except (OSError, ValueError):  # no permission
        raise _UnusableError("unreadable image") from None
    raise _UnusableError("missing image")


def extension_of(data: bytes) -> str:
    """jpg, png or webp by the content's first bytes; empty for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else ""


def shrink_image(picture: Image.Image) -> bytes | None:
    """An image (upright, as `decode` gives it) above the paper's size as a smaller JPEG; None for any other."""
    shorter, longer = sorted(picture.size)
    factor = min(SHORTER_SIDE / shorter, LONGER_SIDE / longer)
    if factor >= 1:
        return None
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return _to_jpeg(picture.resize(size, Image.Resampling.BICUBIC))


def _to_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
