"""How parameters are cut over a tensor-parallel group, against slices worked out by hand."""

from __future__ import annotations

import pytest
import torch

from git_scale.checkpoint.sharding import Split, join_shards, local_shape, shard_of


def test_a_fused_layer_gives_each_rank_its_share_of_each_part() -> None:
    rows = torch.arange(12)  # q: 0-3, k: 4-7, v: 8-11
    assert shard_of(rows, Split(0, parts=3), 2, 0).tolist() == [0, 1, 4, 5, 8, 9]
    assert shard_of(rows, Split(0, parts=3), 2, 1).tolist() == [2, 3, 6, 7, 10, 11]


def test_inputs_are_cut_along_the_second_dimension() -> None:
    assert shard_of(torch.arange(8).view(2, 4), Split(1), 2, 1).tolist() == [[2, 3], [6, 7]]


def test_a_vocabulary_is_padded_with_zeros_to_a_multiple_of_eight_per_rank() -> None:
    table = torch.ones(34, 2)
    shards = [shard_of(table, Split(0, padded=True), 4, rank) for rank in range(4)]
    assert [int(shard.sum()) // 2 for shard in shards] == [16, 16, 2, 0]
    assert all(shard.shape == (16, 2) for shard in shards)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    ("shape", "split"),
    [
        ((24, 5), Split(0, parts=3)),
        ((24,), Split(0, parts=3)),
        ((5, 8), Split(1)),
        ((34, 3), Split(0, padded=True)),
        ((7, 3), None),
    ],
)
def test_joined_shares_are_the_whole(shape: tuple[int, ...], split: Split | None, tp: int) -> None:
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shards = [shard_of(whole, split, tp, rank) for rank in range(tp)]
    assert {shard.shape for shard in shards} == {local_shape(whole.shape, split, tp)}
    assert torch.equal(join_shards(shards.__getitem__, split, tp, whole.shape), whole)
