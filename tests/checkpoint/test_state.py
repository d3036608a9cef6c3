"""Pieces of parameters on disk, put together for readers that are cut otherwise than the writers were."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from git_scale.checkpoint import state
from git_scale.checkpoint.layout import rank_file
from git_scale.checkpoint.sharding import Split, local_shape, shard_of
from git_scale.checkpoint.state import INDEX, WEIGHT, ParameterPiece, StateIndex, TrainingState, write_pieces
from git_scale.errors import CheckpointError

SHAPES = {
    "qkv": torch.Size([24, 5]),
    "out": torch.Size([5, 8]),
    "words": torch.Size([34, 3]),
    "norm": torch.Size([7]),
}
SPLITS = {"qkv": Split(0, parts=3), "out": Split(1), "words": Split(0, padded=True), "norm": None}
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def whole(name: str, kind: str) -> Tensor:
    seed = list(SHAPES).index(name) * 10 + KINDS.index(kind)
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def cuts(length: int, dp: int) -> list[tuple[int, int]]:
    """(start, length) of each data-parallel rank, unequal ones among them."""
    edges = [round(length * (part / dp) ** 1.5) for part in range(dp + 1)]
    return [(start, end - start) for start, end in itertools.pairwise(edges)]


def write(folder: Path, dp: int, tp: int) -> TrainingState:
    splits = SPLITS if tp > 1 else dict.fromkeys(SPLITS)
    folder.mkdir()
    for dp_rank, tp_rank in itertools.product(range(dp), range(tp)):
        held = []
        for name, kind in itertools.product(SHAPES, KINDS):
            if splits[name] is None and tp_rank > 0:
                continue
            flat = shard_of(whole(name, kind), splits[name], tp, tp_rank).flatten()
            start, length = cuts(flat.numel(), dp)[dp_rank]
            if length:
                numbers = flat[start : start + length]
                held.append(
                    (ParameterPiece(name, start, length), kind, torch.float32, partial(numbers.clone))
                )
        write_pieces(folder / rank_file(dp_rank * tp + tp_rank), tp_rank, iter(held))
    index = StateIndex(tp, adam_steps=7, shapes=SHAPES, splits=splits, aliases={"head": "words"})
    (folder / INDEX).write_text(index.to_json())
    return TrainingState(folder)


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (3, 1), (2, 2), (1, 4), (5, 2)])
def test_any_reader_finds_its_numbers_in_any_writers_files(tmp_path: Path, dp: int, tp: int) -> None:
    written = write(tmp_path / "state", dp, tp)
    assert written.index.adam_steps == 7
    for name, kind in itertools.product(SHAPES, KINDS):
        assert torch.equal(written.read(name, kind), whole(name, kind))
    assert torch.equal(written.read("head"), whole("words", WEIGHT))
    for their_dp, their_tp in [(1, 1), (2, 1), (2, 2), (3, 4)]:
        splits = SPLITS if their_tp > 1 else dict.fromkeys(SPLITS)
        for name, kind, tp_rank in itertools.product(SHAPES, KINDS, range(their_tp)):
            shard = shard_of(whole(name, kind), splits[name], their_tp, tp_rank)
            assert shard.shape == local_shape(SHAPES[name], splits[name], their_tp)
            for start, length in cuts(shard.numel(), their_dp):
                found = written.read_piece(
                    ParameterPiece(name, start, length), kind, splits[name], their_tp, tp_rank
                )
                assert torch.equal(found, shard.flatten()[start : start + length])


def test_a_reader_that_is_cut_alike_reads_its_own_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write(tmp_path / "state", 2, 2)
    read: list[int] = []
    fromfile = np.fromfile
    monkeypatch.setattr(
        state.np,
        "fromfile",
        lambda path, dtype, count, offset: read.append(count) or fromfile(path, dtype, count, offset=offset),
    )
    written.read_piece(ParameterPiece("qkv", 10, 20), WEIGHT, SPLITS["qkv"], 2, 1)
    assert sum(read) == 20
    read.clear()
    written.read_piece(ParameterPiece("qkv", 10, 20), WEIGHT, None, 1, 0)
    assert sum(read) == 120  # another degree: the whole parameter


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "state", 1, 2)
    with safe_open(tmp_path / "state" / rank_file(1), "pt") as file:
        shard = shard_of(whole("out", "exp_avg"), SPLITS["out"], 2, 1)
        assert torch.equal(file.get_tensor("out/exp_avg"), shard.flatten())
        assert "norm/weight" not in file.keys()  # noqa: SIM118 - no mapping


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    write(tmp_path / "state", 2, 1)
    (tmp_path / "state" / rank_file(1)).unlink()
    with pytest.raises(CheckpointError, match=r"qkv/weight: numbers 42 to 120 of rank 0 are in no file"):
        TrainingState(tmp_path / "state").read("qkv")


def rewrite(
    folder: Path, rank: int, pieces: list[tuple[ParameterPiece, str, Tensor]], tp_rank: int = 0
) -> None:
    held = ((piece, kind, numbers.dtype, partial(numbers.clone)) for piece, kind, numbers in pieces)
    write_pieces(folder / rank_file(rank), tp_rank, held)


def test_a_gap_is_named_where_it_is_read(tmp_path: Path) -> None:
    """Nothing is made up for numbers in no file, wherever the gap lies."""
    opened = write(tmp_path / "state", 1, 1)
    numbers = whole("norm", WEIGHT)
    for first, last in ((0, 7), (2, 5), (6, 7), (0, 1)):
        assert torch.equal(
            opened.read_piece(ParameterPiece("norm", first, last - first), WEIGHT, None, 1, 0),
            numbers[first:last],
        )
    key = ("norm/weight", 0)
    (piece,) = opened._stored[key]
    parts = {
        first: replace(piece, offset=piece.offset + 4 * first, start=first, length=1) for first in range(7)
    }
    for lacking in range(7):
        opened._stored[key] = [part for first, part in parts.items() if first != lacking]
        with pytest.raises(
            CheckpointError, match=rf"norm/weight: numbers {lacking} to 7 of rank 0 are in no file"
        ):
            opened.read_piece(ParameterPiece("norm", 0, 7), WEIGHT, None, 1, 0)
        if lacking:
            found = opened.read_piece(ParameterPiece("norm", 0, lacking), WEIGHT, None, 1, 0)
            assert torch.equal(found, numbers[:lacking])
    with pytest.raises(CheckpointError, match=r"norm/more: numbers 0 to 7 of rank 0 are in no file"):
        opened.read_piece(ParameterPiece("norm", 0, 7), "more", None, 1, 0)


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_state_that_lacks_a_file_is_not_opened(tmp_path: Path, lacking: int) -> None:
    write(tmp_path / "state", 3, 1)
    (tmp_path / "state" / rank_file(lacking)).unlink()
    with pytest.raises(CheckpointError, match="are in no file"):
        TrainingState(tmp_path / "state")


def test_a_copy_of_another_steps_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "state", 2, 1)
    rewrite(tmp_path / "state", 7, [(ParameterPiece("norm", 1, 2), WEIGHT, torch.tensor([5.0, 6.0]))])
    with pytest.raises(CheckpointError, match=r"norm/weight of rank 0 lie in another file as well"):
        TrainingState(tmp_path / "state")


def test_what_all_ranks_of_a_group_hold_alike_lies_there_once(tmp_path: Path) -> None:
    write(tmp_path / "state", 1, 2)
    rewrite(tmp_path / "state", 2, [(ParameterPiece("norm", 0, 7), WEIGHT, torch.zeros(7))], tp_rank=1)
    with pytest.raises(
        CheckpointError, match=r"holds norm/weight of tensor-parallel rank 1, which is no part"
    ):
        TrainingState(tmp_path / "state")


@pytest.mark.parametrize(
    "piece",
    [ParameterPiece("stranger", 0, 2), ParameterPiece("norm", 6, 2)],
    ids=["another name", "beyond the end"],
)
def test_pieces_of_something_else_are_refused(tmp_path: Path, piece: ParameterPiece) -> None:
    write(tmp_path / "state", 1, 1)
    rewrite(tmp_path / "state", 1, [(piece, WEIGHT, torch.zeros(2))])
    with pytest.raises(CheckpointError, match=r"no part of the state|beyond its 7 numbers"):
        TrainingState(tmp_path / "state")


def header(entries: dict[str, Any], starts: object = None, tp_rank: str = "0") -> bytes:
    metadata = {"starts": json.dumps({"norm": 0} if starts is None else starts), "tp_rank": tp_rank}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    return struct.pack("<Q", len(text)) + text


NORM = {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"a longer piece of junk, of which eight bytes are a size",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        header({"norm/weight": NORM}),  # no numbers behind it
        header({"norm/weight": NORM | {"dtype": "F16"}}) + bytes(28),
        header({"norm/weight": NORM | {"shape": [8]}}) + bytes(28),
        header({"norm/weight": NORM | {"shape": [7, 1]}}) + bytes(28),
        header({"norm/weight": NORM | {"data_offsets": [-28, 0]}}) + bytes(28),
        header({"norm/weight": NORM | {"data_offsets": [4, 32]}}) + bytes(32),
        header({"norm/weight": NORM, "norm/exp_avg": NORM}) + bytes(28),  # the same bytes twice
        header({"norm/weight": NORM}, starts={}) + bytes(28),
        header({"norm/weight": NORM}, starts={"norm": -1}) + bytes(28),
        header({"norm/weight": NORM}, starts={"norm": "0"}) + bytes(28),
        header({"norm/weight": NORM}, starts=[]) + bytes(28),
        header({"norm/weight": NORM}, tp_rank="x") + bytes(28),
        header({"norm/weight": 7}) + bytes(28),
    ],
)
def test_a_junk_file_is_one_error_in_words(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "state", 1, 1)
    (tmp_path / "state" / rank_file(1)).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"rank_00001\.safetensors: damaged, or no file of a training state"
    ):
        TrainingState(tmp_path / "state")


def test_a_file_that_is_cut_while_it_is_read_gives_no_short_tensor(tmp_path: Path) -> None:
    opened = write(tmp_path / "state", 1, 1)
    path = tmp_path / "state" / rank_file(0)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        opened.read("norm", "exp_avg_sq")


@pytest.mark.parametrize(
    "change",
    [
        {"tp": 0},
        {"adam_steps": -1},
        {"tensors": []},
        {"tensors": {"norm": {"shape": [-7], "split": None}}},
        {"tensors": {"norm": {"shape": [7], "split": {"dim": 1, "parts": 1, "padded": False}}}},
        {"tensors": {"norm": {"shape": [7], "split": {"dim": 0, "parts": 0, "padded": False}}}},
        {"tensors": {"norm": {"shape": "seven", "split": None}}},
        {"aliases": {"head": "nowhere"}},
    ],
)
def test_an_index_that_no_writer_writes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "state", 1, 1)
    tree = json.loads((tmp_path / "state" / INDEX).read_text())
    (tmp_path / "state" / INDEX).write_text(json.dumps(tree | change))
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        TrainingState(tmp_path / "state")


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        TrainingState(tmp_path)
