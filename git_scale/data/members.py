"""Groups the members of a shard into samples, by their names.

    a.jpg a.json | sub/b.png sub/b.txt       image and text of one name, wherever they lie in the shard
    photo.v1.0001.png photo.v1.0001.txt      a name may hold dots: the last one begins the kind
    v.mp4 v.json                             a video and its text
    c.0.jpg c.1.jpg c.txt                    a numbered image is a frame of the clip c ...
    cam1.0004.jpg cam1.0004.txt              ... unless it has a text of its own: then it is an image

Samples are numbered in the order of their first members. A second image of a name begins another sample.
"""

from __future__ import annotations

import enum
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from git_scale.data.left_out import SAME_NAME, LeftOutCounts

VIDEO_ENDINGS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv")
_KNOWN = re.compile(
    rf"(?P<stem>.*)\.(?P<ending>jpe?g|png|webp|json|txt|{'|'.join(VIDEO_ENDINGS)})", re.DOTALL | re.IGNORECASE
)
_NUMBERED = re.compile(r"(?P<clip>.+)\.(?P<frame>[0-9]{1,6})", re.DOTALL)


class MemberKind(enum.IntEnum):
    """What a member is in its sample; END marks the last row of an index."""

    IMAGE = 0
    FRAME = 1
    JSON = 2
    TXT = 3
    VIDEO = 4
    END = 255


PICTURES = (MemberKind.IMAGE, MemberKind.FRAME, MemberKind.VIDEO)
TEXTS = (MemberKind.JSON, MemberKind.TXT)
TEXT_ENDINGS = ("json", "txt")
_KIND_OF = {"json": MemberKind.JSON, "txt": MemberKind.TXT} | dict.fromkeys(VIDEO_ENDINGS, MemberKind.VIDEO)


class TextHashes(NamedTuple):
    """Stands for what a text says: data/other_texts.py compares those of a sample."""

    captions: tuple[int, ...]
    lines: tuple[int, ...] = ()
    """Of a .txt of several."""
    other: str = ""
    """The key of a json under which there is another text than those that are read."""


class Member(NamedTuple):
    """Describes a member of a known kind: `stem` is its path up to the last dot. Places and sizes are bytes."""

    stem: str
    ending: str
    header: int
    offset: int
    size: int
    digest: int
    """xxh3_64 of its bytes; 0: not known."""
    probe: int
    """xxh3_64 of what the scan has read of it."""
    text: TextHashes | None = None
    """Of a text that was read."""

    @property
    def kind(self) -> MemberKind:
        return _KIND_OF.get(self.ending, MemberKind.IMAGE)


class PlacedMember(NamedTuple):
    """Says to which sample a member belongs, and as what."""

    sample: int
    key: str
    kind: MemberKind
    frame: int
    member: Member


def known_parts(info: tarfile.TarInfo, reasons: LeftOutCounts) -> tuple[str, str] | None:
    """(stem, ending in lower case) of a member that a sample may use; None, and its reason, for any other."""
    folder, _, base = info.name.rpartition("/")
    known = _KNOWN.fullmatch(info.name)
    if info.isdir():
        reasons.add("folder", info.name)
    elif info.issym() or info.islnk():
        reasons.add("link, which holds no bytes", info.name)
    elif not info.isreg():
        reasons.add("neither a file nor a folder", info.name)
    elif info.issparse():
        reasons.add("sparse file", info.name)
    elif base.startswith(".") or "__MACOSX" in folder.split("/"):
        reasons.add("hidden file", info.name)
    elif known is None:
        reasons.add_unknown(info.name)
    else:
        return known["stem"], known["ending"].lower()
    return None


@dataclass
class _Sample:
    """Collects what is known of a sample while the members of its shard go by."""

    number: int
    names: set[str] = field(default_factory=set)
    has_image: bool = False
    has_text: bool = False

    @property
    def complete(self) -> bool:
        return self.has_image and self.has_text

    def fits(self, other: _Sample) -> bool:
        """Whether both are parts of one sample: two that are whole, or have a member in common, are not."""
        return self.names.isdisjoint(other.names) and not (self.complete and other.complete)

    def take(self, other: _Sample) -> None:
        self.names |= other.names
        self.has_image |= other.has_image
        self.has_text |= other.has_text


def group(members: list[Member], reasons: LeftOutCounts) -> list[PlacedMember]:
    """The members by sample, in the order of the samples; `reasons` takes names that several samples have."""
    samples = 0
    latest: dict[str, _Sample] = {}
    found: list[PlacedMember] = []
    for key, run in groupby(_named(members), key=lambda placed: placed.key):
        for part, placed in _parts(list(run)):
            sample = latest.get(key)
            if sample is not None and sample.fits(part):
                sample.take(part)
            else:
                if sample is not None:
                    reasons.add(SAME_NAME, key)
                sample = latest[key] = part
                sample.number, samples = samples, samples + 1
            found += [item._replace(sample=sample.number) for item in placed]
    found.sort(key=lambda item: item.sample)  # stable: within a sample in the order of the shard
    return found


def repeated(members: list[Member]) -> Member | None:
    """The first member that one sample has a second time: both lie between no members of other samples."""
    for _, run in groupby(_named(members), key=lambda placed: placed.key):
        parts = list(_parts(list(run)))
        if len(parts) > 1:
            return parts[1][1][0].member
    return None


def _named(members: list[Member]) -> Iterator[PlacedMember]:
    """Each member with its key; its sample is still to come."""
    texts = {member.stem for member in members if member.kind in TEXTS}
    for member in members:
        numbered = None
        if member.kind == MemberKind.IMAGE and member.stem not in texts:
            numbered = _NUMBERED.fullmatch(member.stem)
        if numbered:
            yield PlacedMember(-1, numbered["clip"], MemberKind.FRAME, int(numbered["frame"]), member)
        else:
            yield PlacedMember(-1, member.stem, member.kind, 0, member)


def _parts(run: list[PlacedMember]) -> Iterator[tuple[_Sample, list[PlacedMember]]]:
    """A run of members of one key in parts that have no member twice: nearly always one."""
    part, placed = _Sample(-1), list[PlacedMember]()
    for item in run:
        name = f"{item.member.stem}.{item.member.ending}"
        if name in part.names:
            yield part, placed
            part, placed = _Sample(-1), []
        part.names.add(name)
        part.has_image |= item.kind in PICTURES
        part.has_text |= item.kind in TEXTS
        placed.append(item)
    yield part, placed
