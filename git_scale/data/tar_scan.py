"""The members of a tar file, one by one, by a strict scan of its headers.

tarfile and webdataset both end in silence at the first damaged header; here every byte of a shard belongs to a member
or to the end mark, or the shard is damaged.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO


class DamageError(Exception):
    """Says what is wrong with a shard, and the byte where its good part ends."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.what, self.position = what, position


def members(file: IO[bytes], size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member of a file of `size` bytes whose data is wholly there, with the position behind it.

    Raises DamageError.
    """
    end = 0
    try:
        # utf-8 and surrogates: any bytes are a name, whatever the locale
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while (info := tar.next()) is not None:
            # the size of a sparse file counts its holes, which are not in the tar
            behind = info.offset_data + info.size if info.isreg() and not info.issparse() else tar.offset
            if behind > size or info.size < 0 or tar.offset <= end:
                raise DamageError(f"cut short: member {info.name!r} does not end", info.offset)
            end = tar.offset
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header: a kilobyte each
            yield info, end
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DamageError(f"damaged ({error})", end) from None


def check_end(file: IO[bytes], end: int, size: int) -> None:
    """A healthy tar ends with at least two blocks of zeros, and nothing else. Raises DamageError."""
    if size - end < 2 * tarfile.BLOCKSIZE:
        raise DamageError("cut short: the end mark is missing", end)
    file.seek(end)
    position = end
    while chunk := file.read(1 << 20):
        if chunk.count(0) < len(chunk):
            raise DamageError("damaged (neither a member nor the end)", position)
        position += len(chunk)
