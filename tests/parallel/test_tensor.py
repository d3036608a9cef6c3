"""The vocabulary over a tensor-parallel group: the loss of the whole, and no word that does not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from git_scale.checkpoint.sharding import Split, shard_of
from git_scale.objectives.language_model import language_model_loss, vocabulary_parallel_loss
from git_scale.parallel.comm import TP, TensorParallelComm
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed

ROWS, WIDTH = 6, 5
WORDS = Split(0, padded=True)


def tensors(words: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden rows, table, bias and labels."""
    generator = torch.Generator().manual_seed(words)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    table = torch.randn(words, WIDTH, generator=generator)
    bias = torch.randn(words, generator=generator)
    labels = torch.randint(words, (ROWS,), generator=generator)
    labels[0] = words - 1
    return hidden, table, bias, labels


def head_of(topology: Topology, words: int, padding: float = 0.0) -> Any:
    from git_scale.parallel.tensor import VocabularyParallelHead

    _, table, bias, _ = tensors(words)
    head = VocabularyParallelHead(words, WIDTH, topology.tp)
    shares = [shard_of(whole, WORDS, topology.tp, topology.tp_rank).clone() for whole in (table, bias)]
    own = max(0, min(words - topology.tp_rank * len(shares[1]), len(shares[1])))
    shares[1][own:] = padding
    head.weight.data, head.bias.data = shares
    return head


def loss_and_gradients(
    topology: Topology, device: torch.device, words: int, smoothing: float
) -> tuple[float, np.ndarray, np.ndarray]:
    hidden, _, _, labels = tensors(words)
    hidden.requires_grad_()
    head = head_of(topology, words).train()
    loss = vocabulary_parallel_loss(head(hidden), labels, smoothing, words, TensorParallelComm(TP))
    loss.backward()
    assert hidden.grad is not None
    return float(loss), hidden.grad.numpy(), head.weight.grad.numpy()


@pytest.mark.distributed
@pytest.mark.parametrize(("words", "tp"), [(34, 2), (34, 4), (9, 4), (48, 2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_whole_vocabulary(words: int, tp: int, smoothing: float) -> None:
    hidden, table, bias, labels = tensors(words)
    hidden.requires_grad_()
    table.requires_grad_()
    expected = language_model_loss(hidden @ table.T + bias, labels, smoothing)
    expected.backward()
    answers = run_distributed(loss_and_gradients, tp, words, smoothing, tp=tp)
    for rank, (loss, of_hidden, of_table) in enumerate(answers):
        assert loss == pytest.approx(float(expected), rel=1e-6)
        torch.testing.assert_close(torch.from_numpy(of_hidden), hidden.grad, rtol=1e-5, atol=1e-6)
        share = shard_of(table.grad, WORDS, tp, rank)  # zero where there is no word
        torch.testing.assert_close(torch.from_numpy(of_table), share, rtol=1e-5, atol=1e-6)


def best_words(topology: Topology, device: torch.device, words: int) -> tuple[list[int], np.ndarray]:
    head = head_of(topology, words, padding=1e6).eval()
    with torch.no_grad():
        logits = head(tensors(words)[0])
    return logits.argmax(-1).tolist(), logits.numpy()


@pytest.mark.distributed
@pytest.mark.parametrize("tp", [2, 4])
def test_padding_is_never_predicted(tp: int) -> None:
    hidden, table, bias, _ = tensors(34)
    expected = hidden @ table.T + bias
    for best, logits in run_distributed(best_words, tp, 34, tp=tp):
        torch.testing.assert_close(torch.from_numpy(logits), expected)
        assert best == expected.argmax(-1).tolist()


def draws(topology: Topology, device: torch.device) -> tuple[list[float], list[float], list[float]]:
    from git_scale.parallel.tensor import own_random_state

    torch.manual_seed(7)
    before = torch.rand(2).tolist()
    with own_random_state():
        own = torch.rand(2).tolist()
    return before, own, torch.rand(2).tolist()


@pytest.mark.distributed
def test_random_numbers_of_ones_own_leave_the_common_ones_alike() -> None:
    (one_before, one_own, one_after), (before, own, after) = run_distributed(draws, 2, tp=2)
    assert (one_before, one_after) == (before, after)
    assert one_own != own
    assert before != after
