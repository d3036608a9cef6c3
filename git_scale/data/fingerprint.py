"""Whether two starts of a run have the same data.

    v2:LISTING:CONTENT:DIGESTS            three digests; "-" for one that is not known
    v2:LISTING:CONTENT:DIGESTS:MIXTURE    of several sources: digests of theirs, and of their shares and tasks
    LISTING                               the whole of the older form, which checkpoints from before hold

LISTING covers names, sizes and counts of the shards; CONTENT what a scan sees: names and sizes of the members, the
texts and the last bytes of every image; DIGESTS every byte. What one side does not know can't be compared: digests
that are filled in later make no other data. Times of files are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from git_scale.data.shard_table import ShardTable

VERSION = "v2"
UNKNOWN = "-"

_OTHER = ("other shards (names, sizes or numbers of samples)", "other texts or images", "other images")
_OTHER_MIXTURE = "another mixture (number, order, weights or tasks of data.sources)"
_NOTE = (
    "names, sizes and counts of the shards are the same; their contents are not compared, since the checkpoint"
    " or an index is of an older form (tools/prepare_data.py index FOLDER makes the indexes anew)"
)


class DataFingerprint(NamedTuple):
    """Stands for the data of a run, in hex digests; UNKNOWN where there is none."""

    listing: str
    content: str
    digests: str
    mixture: str = ""
    """Empty for a single source."""

    def __str__(self) -> str:
        return ":".join([VERSION, *self]).rstrip(":")


def fingerprint_of(table: ShardTable) -> DataFingerprint:
    """Of a folder's shards in their order."""
    sizes, samples = table.rows["size"].tolist(), table.rows["samples"].tolist()
    listing = (b"%b %d %d" % item for item in zip(table.names.tolist(), sizes, samples, strict=True))
    contents, digests = (_digest_of_all(table.rows[name]) for name in ("content", "digests"))
    return DataFingerprint(xxhash.xxh3_64_hexdigest(b"\n".join(listing)), contents, digests)


def mixed_fingerprint(sources: Sequence[tuple[str, str]]) -> str:
    """Of several sources in their order: what each is for, and its own fingerprint."""
    each = [parse_fingerprint(fingerprint) for _, fingerprint in sources]
    columns = [[getattr(one, name) for one in each] for name in ("listing", "content", "digests")]
    known = [UNKNOWN if UNKNOWN in column else _digest_of(column) for column in columns]
    return str(DataFingerprint(*known)._replace(mixture=_digest_of(terms for terms, _ in sources)))


def _digest_of(texts: Iterable[str]) -> str:
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())


def _digest_of_all(digests: np.ndarray) -> str:
    if not digests.all():
        return UNKNOWN
    return _digest_of(map("{:016x}".format, digests.tolist()))


def parse_fingerprint(text: str) -> DataFingerprint:
    """A fingerprint of today's or the older form."""
    version, _, rest = text.partition(":")
    parts = rest.split(":")
    if version == VERSION and len(parts) in (3, 4):
        return DataFingerprint(*parts)
    return DataFingerprint(text, UNKNOWN, UNKNOWN)


class FingerprintComparison(NamedTuple):
    """Tells two fingerprints apart.

    `difference`: what is not the same, empty for the same data. `note`: what could not be compared.
    `known`: the fingerprint of the data with what either side knows.
    """

    difference: str
    note: str
    known: str


def compare_fingerprints(saved: str, now: str) -> FingerprintComparison:
    there, here = parse_fingerprint(saved), parse_fingerprint(now)
    if there.mixture != here.mixture:
        return FingerprintComparison(_OTHER_MIXTURE, "", now)
    for what, old, new in zip(_OTHER, there[:3], here[:3], strict=True):
        if UNKNOWN not in (old, new) and old != new:
            return FingerprintComparison(what, "", now)
    known = DataFingerprint(*(old if new == UNKNOWN else new for old, new in zip(there, here, strict=True)))
    return FingerprintComparison("", _NOTE if UNKNOWN in (there.content, here.content) else "", str(known))
