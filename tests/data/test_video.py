"""Videos written here, in which a bar's place tells the number of the frame."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from git_scale.data import images, video
from git_scale.data.video import read_frames
from git_scale.errors import DataError, UserError

av = pytest.importorskip("av")

STEP = 8  # pixels that the bar moves per frame, and its width
FRAMES = 31
MIDDLES = [2, 7, 12, 18, 23, 28]  # of six parts of 31 frames: 2.58, 7.75, 12.92, 18.08, 23.25, 28.42


class Unseekable(io.RawIOBase):
    """A pipe: what was written cannot be mended afterwards, so no duration gets into the header."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def write_video(
    target: Any,
    format: str = "mp4",
    codec: str = "libx264",
    times: Iterable[int] = range(FRAMES),
    gop: int = 7,
    rotation: int = 0,
    b_frames: int = 2,
    codec_options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    dropped: int = 0,
) -> None:
    """Frame number n is black but for a white bar at STEP * n; shown at times[n] tenths of a second.

    The first `dropped` packets are missing.
    """
    times = list(times)
    with av.open(target, "w", format=format, options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=10, options=dict(codec_options or {}))
        stream.width, stream.height, stream.pix_fmt = STEP * (len(times) + len(times) % 2), 32, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        packets = []
        for number, time in enumerate(times):
            pixels = np.zeros((32, stream.width, 3), np.uint8)
            pixels[:, STEP * number : STEP * (number + 1)] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = time
            packets += stream.encode(frame)
        container.mux([*packets, *stream.encode(None)][dropped:])


def a_video(**options: Any) -> bytes:
    buffer = io.BytesIO()
    write_video(buffer, **options)
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    columns = np.asarray(image.convert("L")).mean(axis=0)
    return int(columns.reshape(-1, STEP).mean(axis=1).argmax())


def numbers(source: str | Path | bytes, count: int) -> list[int]:
    return [number_of(image) for image in read_frames(source, count)]


@pytest.mark.parametrize(
    ("format", "codec", "b_frames"),
    [
        ("mp4", "libx264", 2),
        ("mp4", "mpeg4", 0),
        ("mov", "libx264", 2),
        ("matroska", "libx264", 2),
        ("matroska", "ffv1", 0),
        ("webm", "libvpx", 0),
        ("avi", "mpeg4", 0),
        ("avi", "libx264", 2),  # AVI knows the order of decoding only
        ("mpegts", "libx264", 2),
        ("mpeg", "mpeg2video", 2),
    ],
)
def test_frames_are_the_middles_of_equal_parts(format: str, codec: str, b_frames: int) -> None:
    data = a_video(format=format, codec=codec, b_frames=b_frames)
    assert numbers(data, 6) == MIDDLES
    assert numbers(data, 1) == [15]


OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=5:b-adapt=0"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"codec_options": OPEN_GROUPS}, id="frames shown before their key frame"),
        pytest.param(
            {"container_options": FRAGMENTS, "gop": 8, "b_frames": 3}, id="sought by times of decoding"
        ),
    ],
)
def test_each_frame_is_found_alone(options: dict[str, Any]) -> None:
    """Also those that the key frame at which a seek ends does not lead to."""
    data = a_video(**options)
    middles = [(number + 0.5) / 10 for number in range(FRAMES)]
    found = [read_frames(data, 1, segment=(middle, middle + 1e-4))[0] for middle in middles]
    assert [number_of(image) for image in found] == list(range(FRAMES))
    assert numbers(data, 6) == MIDDLES


def plainly_decoded(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [np.asarray(frame.to_image()) for frame in container.decode(video=0)]


REFRESHED_BY_PARTS = {"x264-params": "intra-refresh=1:keyint=8:bframes=0:scenecut=0:threads=1"}


@pytest.mark.parametrize(
    ("format", "container_options"),
    [("mp4", {}), ("mov", {}), ("matroska", {}), pytest.param("mp4", FRAGMENTS, id="fragments")],
)
def test_recovery_points_are_not_taken_for_key_frames(format: str, container_options: dict[str, str]) -> None:
    """The file calls them key frames; what is decoded from there on is wrong until each part has been refreshed."""
    data = a_video(
        format=format, b_frames=0, codec_options=REFRESHED_BY_PARTS, container_options=container_options
    )
    with av.open(io.BytesIO(data)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) > 2
    whole = plainly_decoded(data)
    for number in range(FRAMES):
        middle = (number + 0.5) / 10
        found = read_frames(data, 1, segment=(middle, middle + 1e-4))[0]
        assert np.array_equal(np.asarray(found), whole[number])
    together = read_frames(data, 6)
    assert all(np.array_equal(found, whole[i]) for found, i in zip(together, MIDDLES, strict=True))


@pytest.mark.parametrize("offset", [0, 0.2, 0.4, 0.5, 0.6, 0.99])
@pytest.mark.parametrize(
    ("format", "container_options"),
    [("mp4", {}), ("matroska", {}), pytest.param("mp4", FRAGMENTS, id="fragments")],
)
def test_a_stream_tapped_within_a_group_is_read_from_its_first_key_frame(
    format: str, container_options: dict[str, str], offset: float
) -> None:
    """The frames 2 to 6 cannot be decoded: the next one, number 7, stands for them."""
    data = a_video(format=format, b_frames=0, dropped=2, container_options=container_options)
    whole = plainly_decoded(data)
    assert [number_of(Image.fromarray(frame)) for frame in whole] == list(range(7, FRAMES))
    for count in (6, 29):
        shown = [max(7, 2 + int((part + offset) * 29 / count)) for part in range(count)]
        found = read_frames(data, count, offset)
        assert all(np.array_equal(one, whole[n - 7]) for one, n in zip(found, shown, strict=True))


def test_every_frame_and_more_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "bar.mp4"
    write_video(str(path))
    assert numbers(path, FRAMES) == list(range(FRAMES))
    write_video(str(path), times=range(3))
    assert numbers(str(path), 6) == [0, 0, 1, 1, 2, 2]
    write_video(str(path), times=[0])
    assert numbers(path, 2) == [0, 0]


def test_it_is_time_that_is_divided_not_the_number_of_frames() -> None:
    # the tenth frame stays for four seconds: at 13.75 and 41.25 of 55 it is the one that is shown
    assert numbers(a_video(format="matroska", times=[*range(10), 50]), 2) == [9, 9]


def test_no_duration_is_needed() -> None:
    stream = Unseekable()
    write_video(stream, format="matroska")
    with av.open(io.BytesIO(stream.data)) as container:
        assert container.duration is None and not container.streams.video[0].frames
    assert numbers(stream.data, 6) == MIDDLES


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_video_is_turned_upright(rotation: int) -> None:
    upright, turned = (read_frames(a_video(rotation=angle), 1)[0] for angle in (0, rotation))
    counterclockwise = np.rot90(np.asarray(upright), rotation // 90)
    assert np.array_equal(np.asarray(turned), counterclockwise)


@pytest.mark.parametrize(
    ("kind", "gop", "most"),
    [
        pytest.param(("mp4", "libx264"), 10, 4 * 10, id="a key frame every ten"),
        pytest.param(
            ("mp4", "libx264"), 200, 176, id="one key frame, and the last of the four is number 175"
        ),
        pytest.param(("avi", "mpeg4"), 200, 200, id="a format that is read in order"),
    ],
)
def test_few_frames_are_decoded_and_fewer_kept(
    monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str], gop: int, most: int
) -> None:
    """None of them twice."""
    data = a_video(format=kind[0], codec=kind[1], times=range(200), gop=gop, b_frames=0)
    decoded, kept = [], []
    decode, to_image = video._decode, video._to_image

    def counting(*opened: Any) -> Iterator[Any]:
        for frame in decode(*opened):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "_decode", counting)
    monkeypatch.setattr(video, "_to_image", lambda frame: kept.append(frame.pts) or to_image(frame))
    assert numbers(data, 4) == [25, 75, 125, 175]
    assert len(kept) == 4
    assert len(decoded) <= most


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = np.zeros((1, 800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_sound_alone_is_refused() -> None:
    with pytest.raises(DataError, match="no video in it"):
        read_frames(sound(), 2)


@pytest.mark.parametrize("data", [b"", b"rubbish" * 100, bytes(5000)])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=rf"a video of {len(data)} bytes: "):
        read_frames(data, 2)


def test_damage_raises_data_errors_only() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for format in ("mp4", "matroska", "mpegts"):
        healthy = np.frombuffer(a_video(format=format), np.uint8)
        for share in (0.3, 0.9):
            damaged = healthy[: int(share * len(healthy))].copy()
            for _ in range(3):
                damaged[rng.integers(len(damaged), size=10)] ^= 0x55
                try:
                    read_frames(damaged.tobytes(), 2)
                except DataError:
                    refused += 1
    assert refused > 3


def decoded_in_part(data: bytes) -> list[np.ndarray]:
    """What plain decoding gives when it goes on after a packet that is damaged."""
    frames = []
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.error.InvalidDataError):
                frames += [np.asarray(frame.to_image()) for frame in packet.decode()]
    return frames


OFFSETS = [0, 0.25, 0.5, 0.75, 0.99]


@pytest.mark.parametrize("number", [17, pytest.param(14, id="at a key frame")])
def test_an_mp4_that_was_cut_off_is_read_as_far_as_it_goes_at_any_offset(number: int) -> None:
    """Of the packet of this number only a part is there: the frame before it stands for it."""
    options = {"x265-params": "keyint=7:bframes=0:log-level=none"}
    healthy = a_video(codec="libx265", codec_options=options, container_options=FRAGMENTS)
    with av.open(io.BytesIO(healthy)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = healthy[: places[number] + 8]
    whole = decoded_in_part(data)
    assert len(whole) == number
    for offset in OFFSETS:
        shown = [min(number - 1, int((part + offset) * (number + 1) / 6)) for part in range(6)]
        found = read_frames(data, 6, offset)
        assert all(np.array_equal(one, whole[n]) for one, n in zip(found, shown, strict=True))


def test_damage_is_refused_at_every_offset_or_at_none() -> None:
    """A build looks at the middle alone: what it takes, training must be able to read."""
    rng = np.random.default_rng(0)
    healthy = np.frombuffer(a_video(container_options=FRAGMENTS), np.uint8)
    refused = []
    for _ in range(20):
        damaged = healthy.copy()
        damaged[rng.integers(len(damaged), size=20)] ^= 0x55
        answers = set()
        for count, offset in [(1, 0.5), *((6, offset) for offset in OFFSETS)]:
            try:
                answers.add(len(read_frames(damaged.tobytes(), count, offset)) != count)
            except DataError:
                answers.add(True)
        assert len(answers) == 1
        refused += answers
    assert 0 < sum(refused) < 20


def test_a_codec_that_nothing_decodes_is_refused() -> None:
    with pytest.raises(DataError, match="no decoder for its codec"):
        read_frames(a_video().replace(b"avc1", b"none"), 1)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_video(str(tmp_path / "bar.ts"), format="mpegts")
    assert numbers(tmp_path / "bar.ts", 1) == [15]
    lists = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{tmp_path}/bar.ts\n#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{tmp_path}/bar.ts'\n",
    }
    for ending, text in lists.items():
        path = tmp_path / f"list.{ending}"
        path.write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            read_frames(path, 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: .*No such file"):
        read_frames(tmp_path / "none.mp4", 1)


def test_large_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = a_video()
    monkeypatch.setattr(images, "MAX_PIXELS", 5000)
    with pytest.raises(DataError, match="256 x 32 pixels"):
        read_frames(data, 1)


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        read_frames(b"", 1)
