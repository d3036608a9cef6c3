"""How texts are searched, what comes of it, and the score that ranks them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from git_scale.errors import ConfigError
from git_scale.inference.trie import Trie


@dataclass(frozen=True)
class Decoding:
    """Says how texts are searched: greedily, with beams, or by sampling. Raises ConfigError when that is no way.

    A text's score is the sum of its tokens' log-probabilities, the end token's included, over
    ((5 + length) / 6) ** length_penalty; its length counts the begin token, prefix and generated tokens.
    """

    max_new_tokens: int = 40
    """The end token is one of them; a text that has not ended by then stands as it is."""
    min_new_tokens: int = 0
    """Without the end token, which is forbidden before."""
    beams: int = 1
    """1: greedy. The paper's captions come from 4."""
    length_penalty: float = 0.6
    n_best: int = 1
    """Texts returned per prefix, best first: at most as many as beams, but any number of samples."""
    temperature: float | None = None
    """None: search. A number: sampling, from the softmax of logits / temperature."""
    top_k: int | None = None
    """Of sampling: from this many of the likeliest tokens."""
    top_p: float | None = None
    """Of sampling: from the fewest likeliest tokens that hold this much of the probability."""

    def __post_init__(self) -> None:
        if problems := [*self._problems_of_lengths(), *self._problems_of_sampling()]:
            raise ConfigError(problems)

    @property
    def samples(self) -> bool:
        return self.temperature is not None

    def _problems_of_lengths(self) -> list[str]:
        problems = [
            f"{name}={value}: {'at least 1' if _is_whole(value) else 'a whole number'} is needed"
            for name in ("max_new_tokens", "beams", "n_best")
            if not _is_whole(value := getattr(self, name)) or value < 1
        ]
        if problems:
            return problems
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            problems.append(
                f"min_new_tokens={self.min_new_tokens} does not lie in 0..max_new_tokens={self.max_new_tokens}"
            )
        if not math.isfinite(self.length_penalty):
            problems.append(f"length_penalty={self.length_penalty}: a finite number is needed")
        if self.n_best > self.beams and not self.samples:
            problems.append(f"n_best={self.n_best} exceeds beams={self.beams}: set beams={self.n_best}")
        return problems

    def _problems_of_sampling(self) -> list[str]:
        if self.temperature is None:
            given = [name for name in ("top_k", "top_p") if getattr(self, name) is not None]
            return [f"{name} is of sampling: set temperature too, 1.0 say" for name in given]
        problems = []
        if not 0 < self.temperature < math.inf:
            problems.append(f"temperature={self.temperature}: a number above 0 is needed")
        if self.beams != 1:
            problems.append(f"temperature={self.temperature} samples, which needs beams=1 (is {self.beams})")
        if self.top_k is not None and not (_is_whole(self.top_k) and self.top_k >= 1):
            problems.append(f"top_k={self.top_k!r}: a whole number of at least 1 is needed")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p} does not lie in (0, 1]")
        return problems

    def length_normalised(self, sums: Tensor, lengths: Tensor | int) -> Tensor:
        """The scores of texts with these sums of log-probabilities and lengths."""
        divisor = ((5 + torch.as_tensor(lengths, dtype=sums.dtype)) / 6) ** self.length_penalty
        return sums / divisor.to(sums.device)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class GeneratedText:
    """Holds one text: its tokens without prefix and end token, and what it is ranked by."""

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class TokenRules:
    """Says which token may follow. A row's node is where it stands in the trie; without one it has no meaning."""

    end_token: int
    min_new_tokens: int
    trie: Trie | None
    first_nodes: Tensor
    """[G]: where each text begins."""

    def mask_disallowed(self, logs: Tensor, step: int, nodes: Tensor) -> Tensor:
        """Log-probabilities [..., V], in place or new: -inf for what may not be token number `step` at nodes."""
        if step < self.min_new_tokens:
            logs[..., self.end_token] = -math.inf
        return logs if self.trie is None else self.trie.mask_disallowed(logs, nodes)

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        return nodes if self.trie is None else self.trie.advance(nodes, tokens)


def log_probabilities(logits: Tensor) -> Tensor:
    """In fp32 or better: their sums need more than the 8 bits of bf16."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
