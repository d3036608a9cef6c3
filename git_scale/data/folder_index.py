"""One small file for a folder of thousands of shards: what their indexes say, without opening them.

    FOLDER/shards.index.npz     a ShardTable: numpy arrays without pickle, and the version

It only saves time: a row says what the shard's own index says, and counts as long as the shard has the size and the
time that it was made of. Anything else in its place is passed over and replaced.
"""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from git_scale.data.shard_table import ROW, ShardTable, joined, left_out_dtype
from git_scale.files import replaced_atomically

FILE = "shards.index.npz"
VERSION = 2
"""2: videos are read, which indexes of before list among what they left out."""
WORTH = 100
"""Shards from which on a start writes the file by itself; it opens fewer of them in hundredths of a second."""

MIN_SAMPLE_BYTES = 1024
"""A sample is one member at least, and a member a header and a block of 512 bytes."""


def load(folder: Path) -> ShardTable:
    """The table of a folder, empty where there is none. Raises ValueError where something else lies there."""
    path = folder / FILE
    if not path.exists():
        return joined([])
    try:
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError("compressed")  # it may be of any size when it is unpacked
        with np.load(path, allow_pickle=False) as arrays:
            if int(arrays["version"]) != VERSION:
                raise ValueError("of another version")
            table = ShardTable(arrays["names"], arrays["rows"], arrays["left_out"])
    except (OSError, EOFError, TypeError, LookupError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError("damaged") from error
    if not _is_well_formed(table):
        raise ValueError("damaged")
    return table


def keep(folder: Path, table: ShardTable) -> None:
    """Saves the table where one lies already, or is worth it; a folder that cannot be written stays without."""
    if len(table) >= WORTH or (folder / FILE).exists():
        with suppress(OSError):
            save(folder, table)


def save(folder: Path, table: ShardTable) -> None:
    """Raises OSError in a folder that cannot be written."""
    with replaced_atomically(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, version=VERSION, names=table.names, rows=table.rows, left_out=table.left_out)


def _is_well_formed(table: ShardTable) -> bool:
    names, rows, left_out = table.names, table.rows, table.left_out
    if names.dtype.kind != "S" or rows.dtype != ROW or not left_out.dtype.names:
        return False
    if left_out.dtype.names != left_out_dtype(1, 1).names or names.shape != rows.shape or names.ndim != 1:
        return False
    widths = [left_out.dtype[name].itemsize for name in ("reason", "example")]
    shards = left_out["shard"]
    return bool(
        left_out.dtype == left_out_dtype(*widths)
        and left_out.ndim == 1
        and (rows["samples"] > 0).all()
        and (rows["samples"] <= rows["size"] // MIN_SAMPLE_BYTES).all()
        and ((shards >= 0) & (shards < len(names))).all()
        and (np.diff(shards) >= 0).all()
    )
