"""Greedy generation: the picture is encoded once, each further token is one cached decoder step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from git_scale.models.decoder import LayerCache


class Decodable(Protocol):
    """A GitModel, or the engine around one."""

    def __call__(
        self,
        images_BFCHW: Tensor | None,
        tokens_BKT: Tensor,
        rows: Tensor,
        cache: list[LayerCache] | None = None,
    ) -> Tensor: ...

    def new_cache(self) -> list[LayerCache]: ...


def _all_ended(ended: Tensor) -> bool:
    return bool(ended.all())


@torch.no_grad()
def generate_greedy(
    model: Decodable,
    images_BFCHW: Tensor,
    begin_token: int,
    end_token: int,
    max_new_tokens: int,
    is_finished: Callable[[Tensor], bool] = _all_ended,
) -> list[list[int]]:
    """The most likely token after token for each picture, without begin and end token.

    `is_finished` is asked after each token, with a bool [B] of the texts that have ended. Under ZeRO-3 every
    forward pass is collective: there it must give the same answer on all ranks.
    """
    batch = images_BFCHW.shape[0]
    device = images_BFCHW.device
    cache = model.new_cache()
    rows = torch.arange(batch, device=device)
    tokens = torch.full((batch,), begin_token, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    steps: list[Tensor] = []
    for _ in range(max_new_tokens):
        logits = model(None if steps else images_BFCHW, tokens[:, None, None], rows, cache)
        tokens = logits.argmax(-1).masked_fill(ended, end_token)
        ended |= tokens == end_token
        steps.append(tokens)
        if is_finished(ended):
            break
    return [_until(row, end_token) for row in torch.stack(steps, dim=1).tolist()]


def _until(tokens: list[int], end_token: int) -> list[int]:
    return tokens[: tokens.index(end_token)] if end_token in tokens else tokens
