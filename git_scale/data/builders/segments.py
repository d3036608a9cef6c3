"""Frames of a part of a video: of the file, or of a folder with frames that somebody took out of it.

frames_of_video(Path("a.mp4"), (10.0, 22.0))            24 frames, equally spaced in these twelve seconds
names_within(["00001.jpg", "00002.jpg", ...], (1, 2))   ["00004.jpg", "00005.jpg", "00006.jpg"]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from git_scale.data.frames import pick_frames
from git_scale.data.video import Segment, read_frames

FRAMES = 24  # most of a sample: four places for each of the six frames that GIT sees
FRAME_RATE = 3  # per second, of TVQA's folders of frames, of which the first is 00001.jpg
WHOLE: Segment = (0.0, math.inf)


def frames_of_video(path: Path, segment: Segment) -> list[Image.Image]:
    """Up to FRAMES of the segment, none twice. Raises what `read_frames` does."""
    pictures = read_frames(path, FRAMES, segment=segment)
    return list({id(picture): picture for picture in pictures}.values())


def names_within(names: Iterable[str], segment: Segment) -> list[str]:
    """Those of a folder's numbered frames (NUMBER.jpg from 1 on, 3 a second) that show the segment, at most FRAMES.

    The last frame before a segment that falls between two; none where the frames end before it begins.
    """
    times = {
        name: (int(stem) - 1) / FRAME_RATE
        for name in names
        if (stem := Path(name).stem).isdecimal() and Path(name).suffix == ".jpg"
    }
    ordered = sorted(times, key=lambda name: times[name])
    start, end = segment
    if not ordered or times[ordered[-1]] + 1 / FRAME_RATE <= start:
        return []
    found = [name for name in ordered if start <= times[name] < end]
    found = found or [name for name in ordered if times[name] <= start][-1:] or ordered[:1]
    return found if len(found) <= FRAMES else pick_frames(found, FRAMES)
