"""A closed set of texts, as a tree of tokens that generation can only walk along."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from git_scale.errors import UserError

ROOT, ENDED = 0, 1  # ENDED follows itself by the end token, so that an ended text always has a next token


class Trie:
    """Texts as token lists without begin and end; equal ones count once.

    The edges lie sorted in one vector under the key node * base + token: any number of rows is served by a few
    binary searches, whatever the number of texts and the size of the vocabulary.
    Raises UserError when there is no text, or an empty one.
    """

    def __init__(self, texts: Iterable[Sequence[int]], end_token: int) -> None:
        unique = {tuple(text) for text in texts}
        if not unique:
            raise UserError("no text to choose from: a trie needs at least one")
        if () in unique:
            raise UserError("one of the texts to choose from has no tokens: leave it out")
        if any(end_token in text or min(text) < 0 for text in unique):
            raise ValueError(f"token lists hold no negative number and not the end token {end_token}")
        self.end_token = end_token
        self.shortest, self.longest = min(map(len, unique)), max(map(len, unique))
        self.largest_token = max(end_token, *(max(text) for text in unique))
        self._count = len(unique)
        self._base = self.largest_token + 1
        edges = sorted(
            (node * self._base + token, to) for (node, token), to in _edges(unique, end_token).items()
        )
        self._keys, self._targets = torch.tensor(edges).T.contiguous()

    def to(self, device: torch.device) -> Trie:
        moved = copy.copy(self)
        moved._keys, moved._targets = self._keys.to(device), self._targets.to(device)
        return moved

    def __len__(self) -> int:
        return self._count

    def permit(self, logs: Tensor, nodes: Tensor) -> Tensor:
        """New log-probabilities [..., V]: -inf where no text of the set goes on so from nodes [...]."""
        rows_RV, nodes_R = logs.flatten(0, -2), nodes.flatten()
        first = self._find(nodes_R * self._base)
        counts = self._find((nodes_R + 1) * self._base) - first
        row = torch.arange(len(nodes_R), device=nodes.device).repeat_interleave(counts)
        within = torch.arange(len(row), device=nodes.device) - (counts.cumsum(0) - counts)[row]
        token = self._keys[first[row] + within] % self._base
        permitted = torch.full_like(rows_RV, -math.inf)
        permitted[row, token] = rows_RV[row, token]
        return permitted.view_as(logs)

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The nodes that permitted tokens lead to; any node for others, which only lost beams are given."""
        edge = self._find(nodes * self._base + tokens).clamp(max=len(self._targets) - 1)
        return self._targets[edge]

    def _find(self, keys: Tensor) -> Tensor:
        return torch.searchsorted(self._keys, keys)


def _edges(texts: Iterable[tuple[int, ...]], end_token: int) -> dict[tuple[int, int], int]:
    """(node, token) -> next node."""
    edges = {(ENDED, end_token): ENDED}
    nodes = ENDED + 1
    for text in texts:
        node = ROOT
        for token in text:
            following = edges.setdefault((node, token), nodes)
            nodes += following == nodes
            node = following
        edges[node, end_token] = ENDED
    return edges
