"""Closed sets of texts, as trees of tokens that generation can only walk along."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from git_scale.errors import UserError

ROOT, ENDED, FREE = 0, 1, 2
# ENDED follows itself by the end token, so that an ended text always has a next token. After FREE comes any token.


Texts: TypeAlias = Iterable[Sequence[int]]


class Trie:
    """Holds texts as token lists without begin and end; equal ones count once.

    The edges lie sorted in one vector under the key node * base + token: any number of rows is served by a few
    binary searches, whatever the number of texts and the size of the vocabulary.
    Raises UserError when there is no text, or an empty one.
    """

    def __init__(self, texts: Texts, end_token: int, others: Iterable[Texts] = ()) -> None:
        """`others`: further sets, of which texts about other images are chosen; their trees begin at `roots`."""
        sets = [_unique(items, end_token) for items in (texts, *others)]
        every = [text for unique in sets for text in unique]
        self.end_token = end_token
        self.roots = [ROOT, *range(FREE + 1, FREE + len(sets))]
        self.shortest, self.longest = min(map(len, every)), max(map(len, every))
        self.largest_token = max(end_token, *map(max, every))
        self._count = min(map(len, sets))
        self._base = self.largest_token + 1
        edges = sorted(
            (node * self._base + token, to)
            for (node, token), to in _edges(dict(zip(self.roots, sets, strict=True)), end_token).items()
        )
        self._keys, self._targets = torch.tensor(edges).T.contiguous()

    def to(self, device: torch.device) -> Trie:
        moved = copy.copy(self)
        moved._keys, moved._targets = self._keys.to(device), self._targets.to(device)
        return moved

    def __len__(self) -> int:
        """Texts of the smallest set."""
        return self._count

    def mask_disallowed(self, logs: Tensor, nodes: Tensor) -> Tensor:
        """New log-probabilities [..., V]: -inf where no text of the set goes on so from nodes [...]."""
        rows_RV, nodes_R = logs.flatten(0, -2), nodes.flatten()
        first = self._find(nodes_R * self._base)
        counts = self._find((nodes_R + 1) * self._base) - first
        row = torch.arange(len(nodes_R), device=nodes.device).repeat_interleave(counts)
        within = torch.arange(len(row), device=nodes.device) - (counts.cumsum(0) - counts)[row]
        token = self._keys[first[row] + within] % self._base
        allowed = torch.full_like(rows_RV, -math.inf)
        allowed[row, token] = rows_RV[row, token]
        return torch.where(nodes_R[:, None] == FREE, rows_RV, allowed).view_as(logs)

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The nodes that allowed tokens lead to; any node for others, which only lost beams are given."""
        edge = self._find(nodes * self._base + tokens).clamp(max=len(self._targets) - 1)
        return torch.where(nodes == FREE, nodes, self._targets[edge])

    def _find(self, keys: Tensor) -> Tensor:
        return torch.searchsorted(self._keys, keys)


def _unique(texts: Texts, end_token: int) -> set[tuple[int, ...]]:
    unique = {tuple(text) for text in texts}
    if not unique:
        raise UserError("no text to choose from: a trie needs at least one")
    if () in unique:
        raise UserError("one of the texts to choose from has no tokens: leave it out")
    if any(end_token in text or min(text) < 0 for text in unique):
        raise ValueError(f"token lists hold no negative number and not the end token {end_token}")
    return unique


def _edges(sets: Mapping[int, Iterable[tuple[int, ...]]], end_token: int) -> dict[tuple[int, int], int]:
    """(node, token) -> next node, of the texts below each root."""
    edges = {(ENDED, end_token): ENDED}
    nodes = max(FREE, *sets) + 1
    for root, texts in sets.items():
        for text in texts:
            node = root
            for token in text:
                following = edges.setdefault((node, token), nodes)
                nodes += following == nodes
                node = following
            edges[node, end_token] = ENDED
    return edges
