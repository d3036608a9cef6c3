"""The tree of allowed texts against the plain list of them."""

from __future__ import annotations

import math
import random

import pytest
import torch

from git_scale.errors import UserError
from git_scale.inference.trie import ENDED, FREE, ROOT, Trie

END = 2


def followers(texts: list[list[int]], said: list[int]) -> set[int]:
    """By looking at every text."""
    return {(*text, END)[len(said)] for text in texts if len(text) >= len(said) and text[: len(said)] == said}


def allowed(trie: Trie, nodes: torch.Tensor, vocab: int) -> list[set[int]]:
    logits = torch.arange(vocab, dtype=torch.float32).expand(len(nodes), vocab)
    rows = trie.mask_disallowed(logits, nodes)
    for row in rows:
        assert torch.equal(row[row > -math.inf], torch.arange(vocab)[row > -math.inf].float())  # untouched
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in rows]


def test_every_node_permits_what_the_list_permits() -> None:
    rng = random.Random(0)
    texts = [[rng.choice([0, 1, 3, 4, 5]) for _ in range(rng.randint(1, 5))] for _ in range(60)]
    trie = Trie(texts, END)
    assert len(trie) == len({tuple(text) for text in texts})
    assert (trie.shortest, trie.longest, trie.largest_token) == (1, 5, 5)
    walks = [text[:at] for text in texts for at in range(len(text) + 1)]
    nodes = []
    for walk in walks:
        node = torch.tensor([ROOT])
        for token in walk:
            node = trie.advance(node, torch.tensor([token]))
        nodes.append(node)
    found = allowed(trie, torch.cat(nodes), vocab=9)
    assert found == [followers(texts, walk) for walk in walks]
    assert len({frozenset(each) for each in found}) > 10


def test_thousands_of_names_over_a_real_vocabulary() -> None:
    rng = random.Random(1)
    names = [[rng.randrange(3, 30_000) for _ in range(rng.randint(1, 6))] for _ in range(5_000)]
    trie = Trie(names, END)
    assert len(trie) == len({tuple(name) for name in names})
    assert allowed(trie, torch.tensor([ROOT]), 30_522) == [{name[0] for name in names}]


def test_each_set_permits_its_own_texts_and_a_free_text_any() -> None:
    sets = [[[4], [4, 5]], [[4, 6], [7]], [[5]]]
    trie = Trie(sets[0], END, sets[1:])
    assert (len(trie), trie.shortest, trie.longest, trie.largest_token) == (1, 1, 2, 7)
    assert trie.roots[0] == ROOT and len({*trie.roots, ENDED, FREE}) == 5
    begin = torch.tensor([*trie.roots, FREE])
    assert allowed(trie, begin, 9) == [{4}, {4, 7}, {5}, set(range(9))]
    after = trie.advance(begin, torch.tensor([4, 4, 5, 8]))
    assert allowed(trie, after, 9) == [{5, END}, {6}, {END}, set(range(9))]
    with pytest.raises(UserError, match="at least one"):
        Trie(sets[0], END, [[]])


def test_an_ended_text_goes_on_ending_and_shapes_are_kept() -> None:
    trie = Trie([[4], [4, 5]], END)
    nodes = trie.advance(torch.tensor([[ROOT, ROOT]]), torch.tensor([[4, 4]]))
    ended = trie.advance(nodes, torch.full((1, 2), END))
    assert ended.tolist() == [[ENDED, ENDED]]
    assert trie.advance(ended, torch.full((1, 2), END)).tolist() == [[ENDED, ENDED]]
    logits = trie.mask_disallowed(torch.zeros(1, 2, 7), torch.stack([nodes[0, :1], ended[0, :1]], dim=1))
    assert logits.shape == (1, 2, 7)
    assert [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits[0]] == [{END, 5}, {END}]


def test_a_token_that_is_not_permitted_leads_to_some_node() -> None:
    """Lost beams are given such: they must not break the others' step."""
    trie = Trie([[4], [4, 5]], END)
    nodes = trie.advance(torch.tensor([ROOT, ENDED, ROOT]), torch.tensor([5, 4, 1]))
    assert all(0 <= node <= 3 for node in nodes.tolist())


def test_a_trie_can_move() -> None:
    trie = Trie([[4], [4, 5]], END)
    moved = trie.to(torch.device("meta"))
    assert moved._keys.device.type == "meta" and trie._keys.device.type == "cpu"
    assert len(moved) == 2


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], UserError, "at least one"),
        ([[3], []], UserError, "no tokens"),
        ([[3, END]], ValueError, "end token 2"),
        ([[-1]], ValueError, "negative"),
    ],
)
def test_what_is_no_set_of_texts_is_refused(
    texts: list[list[int]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Trie(texts, END)
