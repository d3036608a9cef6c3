"""What a model holds beside its parameters and forward passes change: batch norms' running statistics above all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from git_scale.checkpoint.weights import is_open_bound
from git_scale.parallel.comm import DP


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a state dict holds beside the parameters."""
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


class KeptBuffers:
    """The persistent buffers as they were before a step, to go back to when the step is skipped.

    Any of them may be changed by a forward pass: running means and variances, their counts of batches, the vectors
    of a spectral norm. Models without them, as all recipes of the paper are, pay nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept = [buffer.clone() for _, buffer in persistent_buffers(model)]

    def keep(self) -> None:
        if self._kept:
            for kept, (_, buffer) in zip(self._kept, persistent_buffers(self._model), strict=True):
                kept.copy_(buffer)

    def go_back(self) -> None:
        if self._kept:
            for kept, (_, buffer) in zip(self._kept, persistent_buffers(self._model), strict=True):
                buffer.copy_(kept)


def average_statistics(model: nn.Module) -> None:
    """Makes the statistics that each data-parallel rank keeps of its own samples one. Collective.

    Raises RuntimeError, on all ranks, when some of them are not finite: the average would carry them to all.
    """
    named = [(name, buffer) for name, buffer in persistent_buffers(model) if buffer.is_floating_point()]
    for _, statistic in named:
        DP.sum_(statistic)
        statistic /= DP.size
    if broken := [name for name, x in named if not (x.isfinite().all() or is_open_bound(x))]:
        raise RuntimeError(
            f"the running statistics {broken[0]} and {len(broken) - 1} more are not finite on some rank, though the"
            " gradients were: go on from an older checkpoint with lower learning rates"
        )
