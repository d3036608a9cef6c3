"""The average of a rank's vectors against a loop by hand, and what stands where while it is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from git_scale.errors import UserError
from git_scale.parallel import average as average_module
from git_scale.parallel.average import WeightAverage, decay_after
from git_scale.stop import Stopped


def two_vectors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, generator=generator), torch.randn(3, 5, generator=generator, requires_grad=True)]


def move(vectors: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for vector in vectors:
            vector += torch.randn(vector.shape, generator=generator)


@pytest.mark.parametrize(
    ("steps", "decay", "expected"),
    [(1, 0.9999, 2 / 11), (10, 0.9999, 11 / 20), (100, 0.9, 0.9), (90, 0.9, 0.9), (10**6, 0.9999, 0.9999)],
)
def test_the_decay_grows_up_to_its_bound(steps: int, decay: float, expected: float) -> None:
    assert decay_after(steps, decay) == pytest.approx(expected)


def test_the_average_is_that_of_a_loop_by_hand() -> None:
    vectors = two_vectors()
    average = WeightAverage(0.8, vectors)
    expected = [vector.detach().double().clone() for vector in vectors]
    for step in range(1, 60):
        move(vectors, step)
        average.update()
        decay = min(0.8, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, vectors, strict=True)]
    assert average.steps == 59
    for vector, by_hand in zip(vectors, expected, strict=True):
        torch.testing.assert_close(average.of(vector).double(), by_hand.detach(), rtol=1e-6, atol=1e-6)
        assert not average.of(vector).requires_grad


def test_once_the_decay_is_reached_it_is_torchs_average() -> None:
    model = torch.nn.Linear(3, 2)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    reference.update_parameters(model)
    average = WeightAverage(0.5, model.parameters())
    average.begin(steps=100)
    for step in range(5):
        move([*model.parameters()], step)
        average.update()
        reference.update_parameters(model)
    for parameter, averaged in zip(model.parameters(), reference.module.parameters(), strict=True):
        assert torch.equal(average.of(parameter), averaged)


def test_a_rank_that_holds_nothing_averages_nothing() -> None:
    average = WeightAverage(0.9, [])
    average.update()
    assert average.steps == 1


def test_an_average_that_begins_anew_begins_with_the_weights() -> None:
    vectors = two_vectors()
    average = WeightAverage(0.9, vectors)
    move(vectors, 1)
    average.begin(steps=20)
    assert average.steps == 20
    assert all(torch.equal(average.of(vector), vector) for vector in vectors)


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize("error", [None, Stopped, UserError, ValueError, KeyboardInterrupt])
def test_the_average_stands_in_for_the_weights_and_both_come_back_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, chunk: int, error: type[BaseException] | None
) -> None:
    monkeypatch.setattr(average_module, "CHUNK", chunk)
    vectors = two_vectors()
    average = WeightAverage(0.9, vectors)
    move(vectors, 1)
    average.update()
    weights = [vector.detach().clone() for vector in vectors]
    averages = [average.of(vector).clone() for vector in vectors]
    refreshed: list[bool] = []

    def refresh() -> None:
        refreshed.append(all(torch.equal(one, other) for one, other in zip(vectors, averages, strict=True)))

    def ask() -> None:
        with average.in_place(refresh):
            assert refreshed == [True], "the forward pass has the average"
            if error is not None:
                raise error("in the middle")

    if error is None:
        ask()
    else:
        with pytest.raises(error):
            ask()
    for vector, weight, averaged in zip(vectors, weights, averages, strict=True):
        assert torch.equal(vector, weight) and torch.equal(average.of(vector), averaged)
        assert not torch.equal(weight, averaged)
    # Of an error that one rank alone may have, the others know nothing: they are not waited for.
    assert refreshed == ([True] if error in (ValueError, KeyboardInterrupt) else [True, False])
