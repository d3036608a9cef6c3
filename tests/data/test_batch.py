from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from git_scale.data.batch import EvalSample, Sample, black, collate, collate_eval
from git_scale.data.texts import Example, Query, Text, next_words


def test_collate_pads_texts_and_keeps_places() -> None:
    image = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    long, asked = Text([2, 7, 8, 3], [False, True, True, True]), Text([2, 9, 3], [False, False, True])
    blank = Text([2, 3], [False, False])
    batch = collate(
        [
            Sample("a", image, [[next_words(long)], [next_words(asked)]]),
            Sample("b", black(2, 4), 2 * [[next_words(blank)]], problem="b: broken"),
        ],
        pad_id=1,
    )
    assert batch.tokens.tolist() == [[[2, 7, 8, 3], [2, 9, 3, 1]], [[2, 3, 1, 1], [2, 3, 1, 1]]]
    assert batch.rows.tolist() == [0, 1, 2, 5]  # of 16 places: each predicts the token behind it
    assert batch.labels.tolist() == [7, 8, 3, 3]
    assert batch.num_targets == 4
    assert batch.keys == ["a", "b"] and batch.problems == ["b: broken"]
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (2, 2, 3, 4, 4)
    assert np.array_equal(batch.images[0], image) and not batch.images[1].any()
    assert {batch.tokens.dtype, batch.rows.dtype, batch.labels.dtype} == {torch.int64}


def test_the_longest_text_decides_the_length() -> None:
    blank = Text([2, 3], [False, False])
    batch = collate([Sample("a", black(1, 8), [[next_words(blank)]], "bad")])
    assert batch.tokens.tolist() == [[[2, 3]]] and batch.num_targets == 0


def test_texts_read_in_two_ways_stand_behind_each_other() -> None:
    """Two samples, two texts each; the second way reads masked words, ahead."""
    first, second = Text([2, 7, 8, 3], [False, True, True, True]), Text([2, 9, 3], [False, True, True])
    masked = Example([2, 0, 8, 3], [1], [7], sees_ahead=True), Example([2, 0, 3], [1], [9], sees_ahead=True)
    texts = [[next_words(first), masked[0]], [next_words(second), masked[1]]]
    batch = collate([Sample("a", black(1, 8), texts), Sample("b", black(1, 8), texts[::-1])], pad_id=1)
    assert batch.tokens[0].tolist() == [[2, 7, 8, 3], [2, 9, 3, 1], [2, 0, 8, 3], [2, 0, 3, 1]]
    assert batch.tokens[1].tolist() == [[2, 9, 3, 1], [2, 7, 8, 3], [2, 0, 3, 1], [2, 0, 8, 3]]
    assert batch.readings == (10, 4) and batch.num_targets == 14
    assert batch.labels.tolist() == [7, 8, 3, 9, 3, 9, 3, 7, 8, 3, 7, 9, 9, 7]
    ahead = batch.of(1)
    assert ahead.rows.tolist() == [9, 13, 25, 29] and ahead.labels.tolist() == [7, 9, 9, 7]
    assert batch.tokens.flatten()[ahead.rows].tolist() == [0, 0, 0, 0]
    assert batch.of(0).labels.tolist() == [7, 8, 3, 9, 3, 9, 3, 7, 8, 3]
    assert batch.visible is not None
    assert batch.visible[0, 0].tolist() == np.tri(4).astype(bool).tolist()
    assert batch.visible[0, 3].tolist() == [*3 * [[True, True, True, False]], 4 * [True]], "not the padding"


def test_to_moves_every_tensor() -> None:
    batch = collate([Sample("a", black(1, 8), [[next_words(Text([2, 5, 3], [False, True, True]))]])])
    visible = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    batch = replace(batch, extras={"reward": torch.ones(2)}, visible=visible).to("meta")
    assert batch.visible is not None
    moved = (batch.images, batch.tokens, batch.rows, batch.labels, batch.visible, batch.extras["reward"])
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert batch.keys == ["a"]


def test_collate_eval() -> None:
    batch = collate_eval(
        [
            EvalSample(4, "s:a", black(1, 8), [Query([2], ["x", "y"])]),
            EvalSample(6, "s:b", black(1, 8), [], "s:b: bad"),
            EvalSample(-1, "", black(1, 8), []),
        ]
    )
    assert batch.indices == [4, 6, -1] and batch.queries == [[Query([2], ["x", "y"])], [], []]
    assert batch.problems == ["s:b: bad"] and batch.images.shape == (3, 1, 3, 8, 8)
