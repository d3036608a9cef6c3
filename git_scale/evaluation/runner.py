"""What an evaluation needs of a model on all ranks."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Runner(Protocol):
    """A model on all ranks: the training engine, or one that only runs forward."""

    device: torch.device
    dtype: torch.dtype

    @property
    def model(self) -> Any:
        """A Decodable with train() and eval()."""

    @property
    def is_whole_on_each_rank(self) -> bool:
        """False where every forward pass is collective."""
