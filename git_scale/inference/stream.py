"""The texts of a batch in a model's cache: the prefixes at first, then one token per beam and step."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from git_scale.inference.decoding import log_probabilities
from git_scale.models.cache import LayerCache
from git_scale.models.decoder import TextPlacement

Prefixes = list[list[list[int]]]  # [B][K] token lists, the begin token first


class AutoregressiveModel(Protocol):
    """A GitModel, or the engine around one."""

    vocab_size: int
    max_positions: int

    def __call__(
        self,
        images_BFCHW: Tensor | None,
        tokens_BKT: Tensor,
        rows: Tensor,
        placement: TextPlacement | None = None,
        draws_B: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor: ...

    def new_cache(self) -> list[LayerCache]: ...


class TextStream:
    """Feeds the model; G = B*K prefixes, W beams each.

    An image is encoded once for all its prefixes and beams, a prefix once for all its beams. A beam is a row of
    T in the model's terms: the keys of all beams of a prefix lie in one cache, and each row sees those of its
    own ancestors. Shorter prefixes are padded at their end; no row ever sees the padding.
    """

    def __init__(self, model: AutoregressiveModel, images_BFCHW: Tensor, prefixes: Prefixes) -> None:
        self._model = model
        self._images = images_BFCHW
        self._cache = model.new_cache()
        device = images_BFCHW.device
        longest = max(len(prefix) for row in prefixes for prefix in row)
        self._tokens_BKT = torch.tensor(
            [[prefix + [0] * (longest - len(prefix)) for prefix in row] for row in prefixes], device=device
        )
        lengths_BK = torch.tensor([[len(prefix) for prefix in row] for row in prefixes], device=device)
        self.lengths_G = lengths_BK.flatten()
        self._positions_BK1 = lengths_BK[..., None]
        self._visible_BKWS = torch.arange(longest, device=device) < lengths_BK[..., None, None]

    def begin(self) -> Tensor:
        """Log-probabilities [G, 1, V] of the first new token."""
        length = self._tokens_BKT.shape[2]
        rows = torch.arange(len(self.lengths_G), device=self._images.device) * length + self.lengths_G - 1
        logits = self._model(self._images, self._tokens_BKT, rows, cache=self._cache)
        return log_probabilities(logits)[:, None]

    def feed(self, tokens_GW: Tensor, parents_GW: Tensor) -> Tensor:
        """Log-probabilities [G, W, V] after these tokens; each continues the row `parents` of the step before."""
        B, K, _, S = self._visible_BKWS.shape
        W = tokens_GW.shape[1]
        parents_BKWS = parents_GW.view(B, K, W, 1).expand(-1, -1, -1, S)
        itself = torch.eye(W, dtype=torch.bool, device=tokens_GW.device).expand(B, K, W, W)
        self._visible_BKWS = torch.cat([self._visible_BKWS.gather(2, parents_BKWS), itself], dim=-1)
        placement = TextPlacement(self._positions_BK1.expand(B, K, W), self._visible_BKWS)
        rows = torch.arange(B * K * W, device=tokens_GW.device)
        logits = self._model(None, tokens_GW.view(B, K, W), rows, placement, cache=self._cache)
        self._positions_BK1 = self._positions_BK1 + 1
        return log_probabilities(logits).view(B * K, W, -1)
