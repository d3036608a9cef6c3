"""Weights and optimizer state of a training checkpoint lie there as pieces of parameters, whoever wrote them.

    state/rank_00003.safetensors   what one rank held, NAME/KIND -> flat numbers; the header says where in that rank's
                                   tensor-parallel shard of the parameter they begin
    state/index.json               the whole parameters' shapes, how a tensor-parallel group cuts them, Adam's step

KIND is weight (of what learns: the fp32 master copy), exp_avg or exp_avg_sq (AdamW's moments), or ema (the moving
average of what learns, of runs with optimizer.ema). How the pieces came
about - ZeRO stage, data-parallel degree - need not be known: a parameter is put together from whatever covers it. So
any number of ranks of any ZeRO stage and tensor-parallel degree reads what any other wrote, one parameter at a time.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from git_scale.checkpoint.folder import tensor_writer
from git_scale.checkpoint.layout import RANK_FILES
from git_scale.checkpoint.sharding import Split, join_shards, local_shape, shard_of
from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, write_durably

INDEX = "index.json"
WEIGHT = "weight"
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")
TRAINED, EMA = "trained", "ema"
"""What users call the two sets of weights (eval.weights); the second is a kind of pieces as well."""
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER = 100 << 20  # bytes; safetensors' own bound


@dataclass(frozen=True)
class ParameterPiece:
    """Says what a rank holds of a parameter: consecutive numbers of its tensor-parallel shard, flattened."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class StateIndex:
    """Holds what is true of all ranks' files together."""

    tp: int
    adam_steps: int
    """Updates that AdamW's moments have seen: the steps of the run without the skipped ones."""
    shapes: dict[str, torch.Size]
    """Of whole parameters and buffers."""
    splits: dict[str, Split | None]
    aliases: dict[str, str]
    """Second name of a parameter -> the one under which it is stored."""

    def to_json(self) -> str:
        tensors = {
            name: {"shape": list(shape), "split": asdict(split) if (split := self.splits.get(name)) else None}
            for name, shape in self.shapes.items()
        }
        tree = {"tp": self.tp, "adam_steps": self.adam_steps, "aliases": self.aliases, "tensors": tensors}
        return json.dumps(tree, indent=1)

    @classmethod
    def from_json(cls, text: str) -> StateIndex:
        """Raises ValueError, KeyError, TypeError or AttributeError for anything else than `to_json` writes."""
        tree = json.loads(text)
        tensors = tree["tensors"]
        index = cls(
            tree["tp"],
            tree["adam_steps"],
            {name: torch.Size(item["shape"]) for name, item in tensors.items()},
            {name: Split(**item["split"]) if item["split"] else None for name, item in tensors.items()},
            tree["aliases"],
        )
        if min(index.tp - 1, index.adam_steps, *map(min, filter(None, index.shapes.values()))) < 0:
            raise ValueError("a negative number")
        for name, split in index.splits.items():
            if split is not None and not (0 <= split.dim < len(index.shapes[name]) and split.parts > 0):
                raise ValueError(f"{name} of {len(index.shapes[name])} dimensions is cut by {split}")
        if strange := set(index.aliases.values()) - index.shapes.keys():
            raise ValueError(f"{strange.pop()} is the other name of nothing")
        return index


HeldPieces = Iterator[tuple[ParameterPiece, str, torch.dtype, Callable[[], Tensor]]]
"""Piece, kind, dtype as stored, and the numbers when asked for (flat, on any device)."""


def write_pieces(path: Path, tp_rank: int, held: HeldPieces) -> FileDigest:
    """Writes what a rank holds, one tensor in memory at a time. Raises OSError."""
    shapes, tensors, starts = {}, {}, {}
    for piece, kind, dtype, tensor in held:
        key = f"{piece.name}/{kind}"
        shapes[key], tensors[key], starts[piece.name] = (
            (torch.Size([piece.length]), dtype),
            tensor,
            piece.start,
        )
    metadata = {"starts": json.dumps(starts), "tp_rank": str(tp_rank)}
    numbers = ((key, tensor().to("cpu", shapes[key][1])) for key, tensor in tensors.items())
    return write_durably(path, tensor_writer(shapes, numbers, metadata))


@dataclass(frozen=True)
class _StoredPiece:
    """Says where a piece lies in a file."""

    path: Path
    offset: int
    """Bytes."""
    dtype: np.dtype[Any]
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def read(self, first: int, last: int) -> Tensor:
        """The numbers from `first` to `last`, counted as `start` is. Raises CheckpointError."""
        offset = self.offset + (first - self.start) * self.dtype.itemsize
        numbers = np.fromfile(self.path, self.dtype, last - first, offset=offset)
        if len(numbers) < last - first:
            raise CheckpointError(f"{self.path}: cut short while it was read")
        return torch.from_numpy(numbers)


class TrainingState:
    """Reads a state folder, whose files' digests were compared before (layout.first_damage).

    That each number lies there once is seen from their headers when it is opened.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when it is none, or does not hold every number of it exactly once."""
        self.folder = folder
        try:
            self.index = StateIndex.from_json((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / INDEX}: not the state of a training run that this git_scale can read: {error}"
            ) from None
        self._stored: dict[tuple[str, int], list[_StoredPiece]] = defaultdict(list)
        for path in sorted(folder.glob(RANK_FILES)):
            for key, tp_rank, stored in _read_header(path):
                self._stored[key, tp_rank].append(stored)
        for pieces in self._stored.values():
            pieces.sort(key=lambda piece: piece.start)
        self._check()

    def _check(self) -> None:
        expected = set()
        for name, shape in self.index.shapes.items():
            split = self.index.splits[name]
            length = local_shape(shape, split, self.index.tp).numel()
            ranks = range(self.index.tp if split is not None else 1)
            for kind in self.kinds(name) or [WEIGHT]:
                for tp_rank in ranks:
                    expected.add((f"{name}/{kind}", tp_rank))
                    for _ in self._pieces(name, kind, tp_rank, 0, length):
                        pass
                    self._refuse_twice(f"{name}/{kind}", tp_rank, length)
        if more := next((key for key in self._stored if key not in expected), None):
            raise CheckpointError(
                f"{self._stored[more][0].path}: holds {more[0]} of tensor-parallel rank {more[1]}, which is no part"
                f" of the state in {INDEX}"
            )

    def _refuse_twice(self, key: str, tp_rank: int, length: int) -> None:
        reached = 0
        for piece in self._stored.get((key, tp_rank), ()):
            if piece.start < reached or piece.end > length:
                raise CheckpointError(
                    f"{piece.path}: numbers {piece.start} to {piece.end} of {key} of rank {tp_rank} lie in another"
                    f" file as well, or beyond its {length} numbers"
                )
            reached = piece.end

    def read(self, name: str, kind: str = WEIGHT) -> Tensor:
        """A whole tensor on CPU, as stored: fp32, or int64 and bool of buffers. Raises CheckpointError."""
        name = self.index.aliases.get(name, name)
        shape, split = self.index.shapes[name], self.index.splits.get(name)
        local = local_shape(shape, split, self.index.tp)

        def shard(tp_rank: int) -> Tensor:
            return self._range(name, kind, tp_rank, 0, local.numel()).view(local)

        return join_shards(shard, split, self.index.tp, shape)

    def kinds(self, name: str) -> list[str]:
        """What is stored of it: of a parameter that does not learn, or a buffer, its value alone."""
        return [kind for kind in (WEIGHT, *MOMENT_NAMES, EMA) if self._stored_somewhere(name, kind)]

    @property
    def has_average(self) -> bool:
        return any(key.endswith(f"/{EMA}") for key, _ in self._stored)

    def dtype(self, name: str) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self._stored_somewhere(name, WEIGHT)[0].dtype)).dtype

    def _stored_somewhere(self, name: str, kind: str) -> list[_StoredPiece]:
        return next(
            (found for rank in range(self.index.tp) if (found := self._stored.get((f"{name}/{kind}", rank)))),
            [],
        )

    def read_piece(
        self, piece: ParameterPiece, kind: str, split: Split | None, tp: int, tp_rank: int
    ) -> Tensor:
        """A piece of a parameter that is cut by `split` over `tp` ranks, flat.

        Reads no more than that, unless the parameter was cut differently: then the whole of it.
        """
        stored = self.index.splits.get(piece.name)
        first, last = piece.start, piece.start + piece.length
        if stored is None and split is None:
            return self._range(piece.name, kind, 0, first, last)
        if stored == split and tp == self.index.tp:
            return self._range(piece.name, kind, tp_rank, first, last)
        return shard_of(self.read(piece.name, kind), split, tp, tp_rank).flatten()[first:last]

    def _range(self, name: str, kind: str, tp_rank: int, first: int, last: int) -> Tensor:
        parts = [
            stored.read(start, end) for stored, start, end in self._pieces(name, kind, tp_rank, first, last)
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _pieces(
        self, name: str, kind: str, tp_rank: int, first: int, last: int
    ) -> Iterator[tuple[_StoredPiece, int, int]]:
        """Who holds the numbers from `first` to `last`: piece, from, to. Raises CheckpointError at a gap."""
        reached = first
        for stored in self._stored.get((f"{name}/{kind}", tp_rank), ()):
            end = min(stored.end, last)
            if stored.start <= reached < end:
                yield stored, reached, end
                reached = end
        if reached < last:
            raise CheckpointError(
                f"{name}/{kind}: numbers {reached} to {last} of rank {tp_rank} are in no file"
            )


def _read_header(path: Path) -> Iterator[tuple[str, int, _StoredPiece]]:
    """Key, tensor-parallel rank and place of each piece in a file. Raises CheckpointError for anything else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"its header claims {length} bytes")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        starts, tp_rank = json.loads(metadata["starts"]), int(metadata["tp_rank"])
        reached = 0
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), (numbers,) = entry["data_offsets"], entry["shape"]
            dtype, start = NUMPY_DTYPES[entry["dtype"]], starts[key.rsplit("/", 1)[0]]
            if begin != reached or end - begin != numbers * dtype.itemsize or 8 + length + end > size:
                raise ValueError(f"bytes {begin} to {end} of {key} are none of its own")
            if not (isinstance(start, int) and start >= 0 and numbers >= 0):
                raise ValueError(f"{key} has {numbers} numbers from {start} on")
            reached = end
            yield key, tp_rank, _StoredPiece(path, 8 + length + begin, dtype, start, numbers)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or no file of a training state: {error}") from None
