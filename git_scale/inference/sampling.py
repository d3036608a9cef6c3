"""Texts that are drawn token by token: the likeliest one each time, or one by chance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from git_scale.inference.decoding import Decoding, GeneratedText, TokenRules
from git_scale.inference.stream import TextStream


def draw_texts(
    stream: TextStream,
    rules: TokenRules,
    decoding: Decoding,
    generator: torch.Generator | None,
    is_finished: Callable[[Tensor], bool],
) -> list[GeneratedText]:
    """One text per prefix [G]. The score is the model's own, whatever it was drawn from."""
    device = stream.lengths_G.device
    ended = torch.zeros(len(stream.lengths_G), dtype=torch.bool, device=device)
    nodes = rules.first_nodes
    itself = torch.zeros_like(nodes)[:, None]
    sums: Tensor | float = 0.0
    steps: list[Tensor] = []
    for step in range(decoding.max_new_tokens):
        logs = stream.feed(steps[-1][:, None], itself) if steps else stream.begin()
        allowed = rules.mask_disallowed(logs, step, nodes[:, None])[:, 0]
        tokens = _choose(allowed, decoding, generator).masked_fill(ended, rules.end_token)
        gained = allowed.gather(1, tokens[:, None])
        sums = sums + gained[:, 0].masked_fill(ended, 0.0)
        nodes = rules.advance(nodes, tokens)
        ended = ended | (tokens == rules.end_token)
        steps.append(tokens)
        if is_finished(ended):
            break
    texts = [_until(row, rules.end_token) for row in torch.stack(steps, dim=1).tolist()]
    lengths = stream.lengths_G.cpu() + torch.tensor([len(text) for text in texts])
    scores = decoding.length_normalised(torch.as_tensor(sums).cpu(), lengths)
    return [GeneratedText(text, score) for text, score in zip(texts, scores.tolist(), strict=True)]


def _choose(logs_RV: Tensor, decoding: Decoding, generator: torch.Generator | None) -> Tensor:
    """One token per row; of equally likely ones the first when nothing is left to chance."""
    if decoding.temperature is None:
        return logs_RV.argmax(-1)
    order = None
    if decoding.top_k is not None or decoding.top_p is not None:
        logs_RV, order = logs_RV.topk(min(decoding.top_k or logs_RV.shape[1], logs_RV.shape[1]))
    # the largest becomes 0, which no temperature can make infinite
    scaled = (logs_RV - logs_RV.amax(-1, keepdim=True)) / decoding.temperature
    probabilities = scaled.softmax(-1)
    if decoding.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= decoding.top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return (drawn if order is None else order.gather(1, drawn))[:, 0]


def _until(tokens: list[int], end_token: int) -> list[int]:
    return tokens[: tokens.index(end_token)] if end_token in tokens else tokens
