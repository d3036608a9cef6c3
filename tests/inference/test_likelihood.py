"""Log-likelihoods of texts against a softmax after each token, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.inference.likelihood import TextToScore, log_likelihoods
from git_scale.models.git import GitModel

END = 3


@torch.no_grad()
def one_by_one(model: GitModel, image: Tensor, text: TextToScore) -> float:
    given, judged = text
    total = 0.0
    for at, token in enumerate([*judged, END]):
        tokens = torch.tensor([[given + judged[:at]]])
        logits = model(image, tokens, torch.tensor([tokens.numel() - 1]))
        total += float(F.log_softmax(logits[0], -1)[token])
    return total


@pytest.mark.parametrize("frames", [1, 3])
def test_equal_to_one_text_and_one_token_at_a_time(
    tiny_model: Callable, draw_inputs: Callable, frames: int
) -> None:
    model = tiny_model(frames=frames).eval()
    images, _ = draw_inputs(B=2, F=frames)
    texts: list[list[TextToScore]] = [
        [([2], [5, 6, 7]), ([2, 9, 8], [4]), ([2], [])],
        [([2, 4, 4, 4, 4, 4], [11, 12]), ([2], [13] * 10), ([2, 1], [END, 5])],
    ]
    found = log_likelihoods(model, images, texts, END)
    for image, row, values in zip(images.split(1), texts, found, strict=True):
        assert values == pytest.approx([one_by_one(model, image, text) for text in row], abs=1e-4)
    swapped = log_likelihoods(model, images.flip(0), texts, END)
    assert swapped[0] != pytest.approx(found[0], abs=1e-2), "the image counts"


def test_a_text_may_fill_the_table_of_positions(tiny_model: Callable, draw_inputs: Callable) -> None:
    images, _ = draw_inputs(B=1)
    ((value,),) = log_likelihoods(tiny_model().eval(), images, [[([2], [5] * 15)]], END)  # 16 positions
    assert math.isfinite(value)


def test_all_texts_of_a_length_share_the_probability(tiny_model: Callable, draw_inputs: Callable) -> None:
    """The probability of ending at once, and of each first word with anything behind it, is 1 in all."""
    model = tiny_model().eval()
    images, _ = draw_inputs(B=1)
    words = [word for word in range(model.vocab_size) if word != END]
    ended = log_likelihoods(model, images, [[([2], []), *(([2], [word]) for word in words)]], END)[0]
    behind = log_likelihoods(model, images, [[([2, word], []) for word in words]], END)[0]
    first = [whole - end for whole, end in zip(ended[1:], behind, strict=True)]
    assert math.exp(ended[0]) + sum(map(math.exp, first)) == pytest.approx(1, abs=1e-5)
