"""Pieces of parameters on disk, put together for readers that are cut otherwise than the writers were."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from git_scale.checkpoint import state
from git_scale.checkpoint.layout import rank_file
from git_scale.checkpoint.split import Split, local_shape, take
from git_scale.checkpoint.state import INDEX, WEIGHT, Index, Piece, TrainingState, write_pieces
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
            flat = take(whole(name, kind), splits[name], tp, tp_rank).flatten()
            start, length = cuts(flat.numel(), dp)[dp_rank]
            if length:
                numbers = flat[start : start + length]
                held.append((Piece(name, start, length), kind, torch.float32, partial(numbers.clone)))
        write_pieces(folder / rank_file(dp_rank * tp + tp_rank), tp_rank, iter(held))
    index = Index(tp, adam_steps=7, shapes=SHAPES, splits=splits, aliases={"head": "words"})
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
            share = take(whole(name, kind), splits[name], their_tp, tp_rank)
            assert share.shape == local_shape(SHAPES[name], splits[name], their_tp)
            for start, length in cuts(share.numel(), their_dp):
                found = written.read_piece(Piece(name, start, length), kind, splits[name], their_tp, tp_rank)
                assert torch.equal(found, share.flatten()[start : start + length])


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
    written.read_piece(Piece("qkv", 10, 20), WEIGHT, SPLITS["qkv"], 2, 1)
    assert sum(read) == 20
    read.clear()
    written.read_piece(Piece("qkv", 10, 20), WEIGHT, None, 1, 0)
    assert sum(read) == 120  # another degree: the whole parameter


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "state", 1, 2)
    with safe_open(tmp_path / "state" / rank_file(1), "pt") as file:
        share = take(whole("out", "exp_avg"), SPLITS["out"], 2, 1)
        assert torch.equal(file.get_tensor("out/exp_avg"), share.flatten())
        assert "norm/weight" not in file.keys()  # noqa: SIM118 - no mapping


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    write(tmp_path / "state", 2, 1)
    (tmp_path / "state" / rank_file(1)).unlink()
    with pytest.raises(CheckpointError, match=r"qkv/weight: numbers 42 to 120 of rank 0 are in no file"):
        TrainingState(tmp_path / "state").read("qkv")


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        TrainingState(tmp_path)
