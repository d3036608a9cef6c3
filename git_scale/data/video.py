"""Frames of a video file, equally spaced in time, through PyAV (an optional package).

Two passes: the first reads the times of all frames without decoding any, the second decodes those that are wanted,
from the key frames before them on. Neither a duration nor a frame count has to be written in the file, and one frame
at a time is in memory.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from git_scale.data.frames import pick_frames, spaced
from git_scale.data.images import MAX_PIXELS, check_size
from git_scale.data.members import VIDEO_ENDINGS
from git_scale.errors import DataError, UserError
from git_scale.paths import special_kind

ENDINGS = tuple(f".{ending}" for ending in VIDEO_ENDINGS)
# No playlists: they would open further files and addresses.
CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,flv,asf,gif"
# The others' times are those of decoding, or their seeking is a guess by the byte.
SEEKABLE = ("mov", "matroska")


Segment = tuple[float, float]
"""A part of a video: its beginning and its end, in seconds from the first frame."""


def read_frames(
    source: str | Path | bytes, count: int, offset: float = 0.5, segment: Segment | None = None
) -> list[Image.Image]:
    """`count` RGB frames of a video (a path or its bytes): those shown in the middle of each of `count` equal parts,
    or at another `offset` in [0, 1) of the part; with `segment` of equal parts of that alone.

    A video of fewer frames gives some of them more than once. Turned upright when the file says so.
    A file that was cut off is read as far as it goes, if its index is not at its end (mp4 by default), and for a
    damaged frame stands the next one: a video that is read at one offset is read at every. Raises DataError for
    anything but a video of reasonable size and for a segment that begins after its end, UserError when PyAV is not
    installed.
    """
    av = import_av()
    name = f"a video of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and (kind := special_kind(Path(source))):
        raise DataError(f"{name}: {kind}; give a file")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            return _read(av, file, count, offset, segment)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: the video cannot be read: {reason}") from None


def import_av() -> ModuleType:
    """Raises UserError when PyAV is not installed."""
    try:
        import av
        import av.error
    except ImportError:
        raise UserError("videos are read by PyAV, which is not installed: pip install av") from None
    return av


def _read(
    av: ModuleType, file: BinaryIO, count: int, offset: float, segment: Segment | None
) -> list[Image.Image]:
    with _open(av, file) as container:
        if not container.streams.video:
            raise DataError("no video in it, only sound or other streams")
        if container.format.name.split(",")[0] in SEEKABLE and (times := _frame_times(container)):
            frames = partial(_frames_at, av, container, _timed(_decode_anew(av, file)))
            return _read_at(container, frames, times, count, offset, segment)
    return _read_in_order(av, file, count, offset, segment)


def _open(av: ModuleType, file: BinaryIO) -> Any:
    file.seek(0)
    container = av.open(file, options={"format_whitelist": CONTAINERS})
    for stream in container.streams.video[:1]:
        if stream.codec_context is None:
            raise DataError("no decoder for its codec")
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # held before a frame is allocated
    return container


class _Times(NamedTuple):
    """Presentation times in units of the stream, in order."""

    all: list[int]
    keys: list[int]
    """Of the frames that the file says decoding can begin at."""


def _frame_times(container: Any) -> _Times | None:
    """None when a frame has no time."""
    # the last packet is empty: it flushes the decoder
    packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_discard]
    times = {packet.pts for packet in packets}
    if None in times or not times:
        return None
    return _Times(sorted(times), sorted(packet.pts for packet in packets if packet.is_keyframe))


def _read_at(
    container: Any,
    frames_at: Callable[[list[int], list[int]], Iterator[tuple[int, Image.Image]]],
    found: _Times,
    count: int,
    offset: float,
    segment: Segment | None,
) -> list[Image.Image]:
    times = found.all
    mean_duration = max(1, times[-1] - times[0]) / max(1, len(times) - 1)
    start, end = float(times[0]), times[-1] + mean_duration
    if segment:
        unit = float(container.streams.video[0].time_base)
        _check_begins(segment, (end - start) * unit)
        start, end = start + segment[0] / unit, min(end, start + segment[1] / unit)
    shown = [times[bisect.bisect_right(times, target) - 1] for target in spaced(start, end, count, offset)]
    pictures = dict(frames_at(sorted(set(shown)), found.keys))
    return [pictures[pts] for pts in shown]


def _check_begins(segment: Segment, duration: float) -> None:
    if segment[0] >= max(duration, 1e-9):  # a single frame has no duration, and shows what begins with it
        raise DataError(f"the video ends after {duration:.1f} s, before its segment {segment} begins")


def _frames_at(
    av: ModuleType, container: Any, in_order: Iterator[Any], wanted: list[int], keys: list[int]
) -> Iterator[tuple[int, Image.Image]]:
    """The frame shown at each of these times, in order; where it is damaged the next one, at the end the last.

    Decoding goes on from one to the next, unless a key frame between them lets it begin later. Where the file's key
    frames lead to none, it goes on `in_order`: all frames, from the first packet on.
    """
    frames = in_order
    frame = None
    for pts in wanted:
        before = keys[: bisect.bisect_right(keys, pts)]
        if frame is None or (before and frame.pts < before[-1]):
            frames = _decode_from(av, container, pts, before) or in_order
            keys = keys if frames is not in_order else []
            frame = next(frames, None)
        while frame is not None and frame.pts < pts and (later := next(frames, None)):
            frame = later
        if frame is None:
            raise DataError("the video is damaged: no frame can be decoded")
        yield pts, _to_image(frame)


def _decode_from(av: ModuleType, container: Any, pts: int, keys: list[int]) -> Iterator[Any] | None:
    """Frames from a key frame at or before `pts` on, None without one; `keys`: times of those called so up to there.

    A seek may lead to a key frame behind, where files are sought by the times of decoding, and the frames before an
    open group's key frame cannot be decoded from it: then decoding begins at an earlier one. What a file calls a key
    frame may be the first of those that refresh the picture part by part (H.264's recovery points), and the frames
    decoded from there are wrong until all parts are new: a beginning is only what the decoder marks as a key frame.
    """
    for start in dict.fromkeys((pts, *keys[-1:-3:-1])):
        try:
            container.seek(start, stream=container.streams.video[0])
        except av.error.FFmpegError:  # an mp4 that does not begin with a key frame
            continue
        frames = _timed(_decode(av, container))
        first = next(frames, None)
        if first is not None and first.key_frame and first.pts <= pts:
            return chain((first,), frames)
    return None


def _decode_anew(av: ModuleType, file: BinaryIO) -> Iterator[Any]:
    """All frames that plain decoding gives. A seek to the beginning would leave out what precedes a key frame."""
    with _open(av, file) as container:
        yield from _decode(av, container)


def _timed(frames: Iterator[Any]) -> Iterator[Any]:
    return (frame for frame in frames if frame.pts is not None)


def _read_in_order(
    av: ModuleType, file: BinaryIO, count: int, offset: float, segment: Segment | None
) -> list[Image.Image]:
    """By the numbers of the frames. A packet is taken for a frame; where that, or the segment, makes it others, all
    frames are decoded twice.
    """
    with _open(av, file) as container:
        packets = sum(1 for packet in container.demux(video=0) if packet.size)
    guessed = pick_frames(range(packets), count, offset) if packets else []
    times, pictures = _decode_all(av, file, guessed)
    if not times:
        raise DataError("no frame in it")
    shown = pick_frames(range(len(times)) if segment is None else _within(times, segment), count, offset)
    if not pictures.keys() >= set(shown):
        _, pictures = _decode_all(av, file, shown)
    return [pictures[number] for number in shown]


def _decode_all(
    av: ModuleType, file: BinaryIO, wanted: Collection[int]
) -> tuple[list[float | None], dict[int, Image.Image]]:
    """The times of all frames, and those whose numbers are wanted."""
    times: list[float | None] = []
    pictures = {}
    with _open(av, file) as container:
        for number, frame in enumerate(_decode(av, container)):
            times.append(frame.time)
            if number in wanted:
                pictures[number] = _to_image(frame)
    return times, pictures


def _within(times: list[float | None], segment: Segment) -> range:
    """The numbers of the frames of a segment. Raises DataError where a frame has no time."""
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        raise DataError("its frames have no times, so that no segment can be found; write it as an mp4")
    _check_begins(segment, known[-1] - known[0] + (known[-1] - known[0]) / max(1, len(known) - 1))
    first, after = (bisect.bisect_left(known, known[0] + second) for second in segment)
    first = min(first, len(known) - 1)
    return range(first, max(after, first + 1))


def _decode(av: ModuleType, container: Any) -> Iterator[Any]:
    """All frames but the damaged ones: which are wanted must not decide whether a video is refused."""
    codec = container.streams.video[0].codec_context
    check_size(codec.width, codec.height)
    for packet in container.demux(video=0):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            check_size(frame.width, frame.height)
            yield frame


def _to_image(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
