"""Beam search with GIT's length penalty; all texts of a batch at once, without a loop over beams or tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.inference.decoding import Decoding, GeneratedText, TokenRules
from git_scale.inference.stream import TextStream


def search_beams(
    stream: TextStream, rules: TokenRules, decoding: Decoding, is_finished: Callable[[Tensor], bool]
) -> list[list[GeneratedText]]:
    """Up to n_best texts per prefix [G], best first; fewer where fewer exist.

    Each step keeps the `beams` open texts with the largest sums of log-probabilities. A text that ends is kept as
    a result when fewer than `beams` open ones have a larger sum than it. At the last step open ones count too.
    A prefix is done when none of its open texts can beat the worst of its n_best results: from now on its
    log-probabilities only fall, so its score stays below its sum divided as for the most favourable of the
    lengths at which it could still end. Of equal texts the earlier one, then the lower beam, comes first.
    """
    search = _Search(stream, rules, decoding)
    for _ in range(decoding.max_new_tokens):
        search.advance()
        if is_finished(search.done_G):
            break
    return search.results()


class _Search:
    """Searches on for G prefixes with W open texts each (W grows to `beams` where the first steps offer fewer)."""

    def __init__(self, stream: TextStream, rules: TokenRules, decoding: Decoding) -> None:
        groups, device = len(stream.lengths_G), stream.lengths_G.device
        self._stream = stream
        self._rules = rules
        self._decoding = decoding
        self._lengths_G1 = stream.lengths_G[:, None]
        self._nodes_GW = rules.first_nodes[:, None]
        self._parents_GW = torch.zeros_like(self._nodes_GW)
        self._texts_GWT = torch.zeros(groups, 1, 0, dtype=torch.long, device=device)
        self._sums_GW = torch.zeros(groups, 1, device=device)
        self._results = _Results(groups, decoding, device)
        self.done_G = torch.zeros(groups, dtype=torch.bool, device=device)

    def advance(self) -> None:
        """One more token for each open text."""
        step = self._texts_GWT.shape[2]
        logs = self._stream.feed(self._texts_GWT[..., -1], self._parents_GW) if step else self._stream.begin()
        allowed = self._rules.mask_disallowed(logs, step, self._nodes_GW)
        ended = self._sums_GW + allowed[..., self._rules.end_token]
        tokens, candidates = self._extend(allowed)
        ranked, order = candidates.flatten(1).sort(dim=1, descending=True, stable=True)
        beams = self._decoding.beams
        worst_open = ranked[:, beams - 1 : beams] if ranked.shape[1] >= beams else -math.inf
        self._offer(ended.masked_fill(ended < worst_open, -math.inf))
        order = order[:, :beams]
        self._grow(ranked[:, :beams], order // tokens.shape[2], tokens.flatten(1).gather(1, order))
        self._close()

    def _extend(self, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [G, W, C] that may go on each open text, the likeliest ones, and the sums with them."""
        count = min(self._decoding.beams + 1, allowed.shape[2])  # one more, should the end be among them
        values, tokens = allowed.topk(count)
        sums = self._sums_GW[..., None] + values
        return tokens, sums.masked_fill(tokens == self._rules.end_token, -math.inf)

    def _grow(self, sums_GW: Tensor, parents_GW: Tensor, tokens_GW: Tensor) -> None:
        """The open texts of the next step: those of `parents`, each with its token."""
        before = self._texts_GWT.shape[2]
        histories = self._texts_GWT.gather(1, parents_GW[..., None].expand(-1, -1, before))
        self._texts_GWT = torch.cat([histories, tokens_GW[..., None]], dim=2)
        self._nodes_GW = self._rules.advance(self._nodes_GW.gather(1, parents_GW), tokens_GW)
        self._parents_GW = parents_GW
        self._sums_GW = sums_GW

    def _close(self) -> None:
        """Tells the prefixes whose open texts cannot win; fed on with the others, they stay so."""
        soonest = max(self._texts_GWT.shape[2], self._decoding.min_new_tokens)
        extremes = soonest, self._decoding.max_new_tokens  # the divisor is monotone: one of them is the best
        best = self._sums_GW[:, :1]  # they are sorted
        bounds = [self._decoding.length_normalised(best, self._lengths_G1 + length) for length in extremes]
        self.done_G = (self._results.worst >= torch.maximum(*bounds))[:, 0]

    def _offer(self, sums_GW: Tensor) -> None:
        lengths = self._lengths_G1 + self._texts_GWT.shape[2]
        self._results.offer(self._decoding.length_normalised(sums_GW, lengths), self._texts_GWT)

    def results(self) -> list[list[GeneratedText]]:
        """Whatever is still open competes as it is."""
        self._offer(self._sums_GW)
        return self._results.texts()


class _Results:
    """Keeps the n best texts per prefix, in order; -inf where there is none yet, -1 behind a text's last token."""

    def __init__(self, groups: int, decoding: Decoding, device: torch.device) -> None:
        self._length = decoding.max_new_tokens
        self._scores_Gn = torch.full((groups, decoding.n_best), -math.inf, device=device)
        self._tokens_GnT = torch.full((groups, decoding.n_best, self._length), -1, device=device)

    @property
    def worst(self) -> Tensor:
        """[G, 1]"""
        return self._scores_Gn[:, -1:]

    def offer(self, scores_GW: Tensor, texts_GWT: Tensor) -> None:
        count = self._scores_Gn.shape[1]
        padded = F.pad(texts_GWT, (0, self._length - texts_GWT.shape[2]), value=-1)
        tokens = torch.cat([self._tokens_GnT, padded], dim=1)
        # stable: an earlier text stays before an equal new one
        scores, order = torch.cat([self._scores_Gn, scores_GW], dim=1).sort(
            dim=1, descending=True, stable=True
        )
        self._scores_Gn, order = scores[:, :count], order[:, :count]
        self._tokens_GnT = tokens.gather(1, order[..., None].expand(-1, -1, self._length))

    def texts(self) -> list[list[GeneratedText]]:
        pairs = zip(self._tokens_GnT.tolist(), self._scores_Gn.tolist(), strict=True)
        return [
            [
                GeneratedText([token for token in tokens if token >= 0], score)
                for tokens, score in zip(texts, scores, strict=True)
                if score > -math.inf
            ]
            for texts, scores in pairs
        ]
