"""The language-model loss against sums written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.objectives.language_model import language_model_loss, smoothing_entropy


def kl_by_hand(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """Sum over rows of q log(q / p), in float64, word by word."""
    total = 0.0
    vocab = logits.shape[1]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(value - top) for value in row))
        for word, value in enumerate(row):
            q = 1 - smoothing if word == label else smoothing / (vocab - 1)
            if q > 0:
                total += q * (math.log(q) - (value - log_sum))
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("vocab", [2, 5, 97, 3001])
def test_the_loss_is_the_divergence_from_the_smoothed_target(vocab: int, smoothing: float) -> None:
    torch.manual_seed(vocab)
    logits, labels = 3 * torch.randn(4, vocab), torch.randint(0, vocab, (4,))
    loss = language_model_loss(logits, labels, smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(kl_by_hand(logits, labels, smoothing), rel=1e-5, abs=1e-5)


def test_without_smoothing_it_is_cross_entropy_and_with_it_not_torchs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 11), torch.randint(0, 11, (6,))
    plain = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(language_model_loss(logits, labels, 0.0), plain)
    torchs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    ours = language_model_loss(logits, labels, 0.1) + 6 * smoothing_entropy(0.1, 11)
    assert abs(ours - torchs) > 1e-3  # torch spreads 0.1 over all words, the label included


@pytest.mark.parametrize("vocab", [5, 30_522])
def test_a_perfect_prediction_costs_nothing(vocab: int) -> None:
    labels = torch.tensor([0, 3, vocab - 1])
    target = torch.full((3, vocab), 0.1 / (vocab - 1)).scatter(1, labels[:, None], 0.9)
    # fp32 sums over 30522 words: 1.3e-4 nats per row.
    assert language_model_loss(target.log(), labels, 0.1).item() == pytest.approx(0.0, abs=1e-3)
    assert language_model_loss(torch.zeros(3, vocab), labels, 0.1) > 1.0


def test_the_smoothed_targets_entropy_is_the_published_one() -> None:
    assert smoothing_entropy(0.1, 30_522) == pytest.approx(1.357700, abs=1e-6)
    assert smoothing_entropy(0.0, 30_522) == 0.0


def test_no_targets_cost_nothing_and_move_nothing(tiny_model: Any, draw_inputs: Any) -> None:
    model = tiny_model()
    images, tokens = draw_inputs()
    none = torch.zeros(0, dtype=torch.long)
    loss = language_model_loss(model(images, tokens, none), none, 0.1)
    loss.backward()
    assert loss.item() == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_half_precision_logits_are_summed_in_single() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2000, 11).bfloat16(), torch.randint(0, 11, (2000,))
    exact = kl_by_hand(logits, labels, 0.1)
    assert language_model_loss(logits, labels, 0.1).item() == pytest.approx(exact, rel=1e-5)
