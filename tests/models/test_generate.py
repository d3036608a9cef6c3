"""Greedy generation against the slow way: the whole text anew for every token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from git_scale.models.decoder import LayerCache
from git_scale.models.generate import generate_greedy
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
BEGIN, END = 1, 2


def generate_slowly(model: GitModel, image_FCHW: Tensor, end: int, most: int) -> list[int]:
    """One picture, no cache, no batch."""
    tokens = [BEGIN]
    for _ in range(most):
        text = torch.tensor(tokens)[None, None]
        logits = model(image_FCHW[None], text, torch.tensor([len(tokens) - 1]))
        tokens.append(int(logits[0].argmax()))
        if tokens[-1] == end:
            return tokens[1:-1]
    return tokens[1:]


class Script:
    """A model that says given texts, one row per picture, and counts its calls."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.heard: list[list[int]] = []
        self.saw_images: list[bool] = []

    def __call__(
        self, images: Tensor | None, tokens: Tensor, rows: Tensor, cache: list[LayerCache] | None = None
    ) -> Tensor:
        step = len(self.heard)
        self.heard.append(tokens.flatten().tolist())
        self.saw_images.append(images is not None)
        said = torch.tensor([text[step] for text in self.texts])
        return torch.nn.functional.one_hot(said, 10).float()[rows]

    def new_cache(self) -> list[LayerCache]:
        return []


@pytest.mark.parametrize(
    ("frames", "seed", "end"), [(1, 1, 10), (1, 2, 16), (1, 4, 21), (2, 2, 21), (2, 4, 5), (2, 8, 18)]
)
def test_the_cache_and_the_batch_change_nothing(
    tiny_model: BuildModel, frames: int, seed: int, end: int
) -> None:
    model = tiny_model(frames, seed=seed).eval()
    images = torch.randn(6, frames, 3, 16, 16, dtype=torch.float64)
    texts = generate_greedy(model, images, BEGIN, end, 12)
    assert texts == [generate_slowly(model, image, end, 12) for image in images]
    assert texts == [generate_greedy(model, image[None], BEGIN, end, 12)[0] for image in images]
    assert len({len(text) for text in texts}) > 1  # the pictures matter, and some texts end before others


def test_no_gradient_is_kept(tiny_model: BuildModel) -> None:
    model = tiny_model()
    seen: list[bool] = []
    model.decoder.head.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.requires_grad)
    )
    generate_greedy(model, torch.randn(1, 1, 3, 16, 16, dtype=torch.float64), BEGIN, END, 2)
    assert seen and not any(seen)


def test_a_text_ends_at_its_end_token_and_a_finished_batch_stops() -> None:
    model = Script([[5, END, 7, 7, 7], [5, 6, 7, END, 7]])
    assert generate_greedy(model, torch.zeros(2, 1, 3, 8, 8), BEGIN, END, 5) == [[5], [5, 6, 7]]
    assert len(model.heard) == 4
    assert model.heard[0] == [BEGIN, BEGIN]
    assert model.heard[2] == [END, 6]  # an ended text is fed its end token, whatever the model goes on saying
    assert model.heard[3] == [END, 7]
    assert model.saw_images == [True, False, False, False]  # each picture is encoded once


def test_an_empty_text_is_empty() -> None:
    assert generate_greedy(Script([[END]]), torch.zeros(1, 1, 3, 8, 8), BEGIN, END, 5) == [[]]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_tokens_than_asked_for(most: int) -> None:
    model = Script([[5, 6, 7, 8]])
    assert generate_greedy(model, torch.zeros(1, 1, 3, 8, 8), BEGIN, END, most) == [[5, 6, 7, 8][:most]]
    assert len(model.heard) == most


def test_the_end_is_asked_for_after_each_token_and_may_be_put_off() -> None:
    """As under ZeRO-3, where a rank goes on until the others are done too."""
    model = Script([[5, END, 6, 6], [END, 7, 7, 7]])
    asked: list[list[bool]] = []

    def is_finished(ended: Tensor) -> bool:
        asked.append(ended.tolist())
        return len(asked) == 3

    texts = generate_greedy(model, torch.zeros(2, 1, 3, 8, 8), BEGIN, END, 9, is_finished)
    assert texts == [[5], []]
    assert asked == [[False, True], [True, True], [True, True]]
    assert model.heard[2] == [END, END]
