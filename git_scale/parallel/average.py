"""An exponential moving average of the weights that a rank holds, beside the vectors that its optimizer updates.

    average = decay * average + (1 - decay) * weights      after each step that was applied

Where a rank holds a share of the fp32 weights, it holds the same share of the average, on the same device: nothing is
exchanged for it. What does not learn has no average, and running statistics of batch norms stay the run's own, as in
torch's AveragedModel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from git_scale.errors import UserError
from git_scale.stop import Stopped

CHUNK = 1 << 24  # numbers that change places at a time: 64 MiB


def decay_after(steps: int, decay: float) -> float:
    """The decay of an average that takes in the weights after `steps` applied steps.

    It grows up to `decay` as that of tf.train.ExponentialMovingAverage with num_updates does: with 0.9999 from the
    first step on, the random first weights would still weigh 37 % after 10,000. A pure function of the steps, so that
    going on needs no state.

    >>> [round(decay_after(steps, 0.999), 3) for steps in (1, 100, 10_000)]
    [0.182, 0.918, 0.999]
    """
    return min(decay, (1 + steps) / (10 + steps))


class WeightAverage:
    """Holds an average of each of a rank's vectors of fp32 weights."""

    def __init__(self, decay: float, vectors: Iterable[Tensor]) -> None:
        self.steps = 0
        """Applied steps that the weights have seen."""
        self._decay = decay
        self._of = {vector: vector.detach().clone() for vector in vectors}

    def of(self, vector: Tensor) -> Tensor:
        """Has the vector's shape and device."""
        return self._of[vector]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights as an applied step has left them."""
        self.steps += 1
        if self._of:  # of a few parameters a rank may hold nothing
            update = get_ema_multi_avg_fn(decay_after(self.steps, self._decay))
            update([*self._of.values()], [vector.detach() for vector in self._of], self.steps)

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Starts anew from the weights as they are, after so many applied steps."""
        self.steps = steps
        for vector, average in self._of.items():
            average.copy_(vector)

    @contextmanager
    def in_place(self, refresh: Callable[[], None]) -> Iterator[None]:
        """The average stands in the place of the weights, which then come back as they were, to the bit. Collective.

        `refresh` makes the weights of the forward pass from the fp32 ones.
        """
        self._change_places()
        refresh()
        ended_together = False
        try:
            yield
            ended_together = True
        except (Stopped, UserError):  # the same on all ranks
            ended_together = True
            raise
        finally:
            self._change_places()
            if ended_together:  # else this rank alone has failed, and the others do not wait for it here
                refresh()

    @torch.no_grad()
    def _change_places(self) -> None:
        for vector, average in self._of.items():
            pairs = zip(vector.detach().view(-1).split(CHUNK), average.view(-1).split(CHUNK), strict=True)
            for here, there in pairs:
                kept = here.clone()
                here.copy_(there)
                there.copy_(kept)
