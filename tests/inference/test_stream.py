"""Log-probabilities out of the cache against whole passes, for a tree of tokens that grows in any way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from git_scale.inference.stream import TextStream
from git_scale.models.cache import GrowingRows
from git_scale.models.decoder import TextPlacement
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
EXACT = {"rtol": 0.0, "atol": 1e-10}
PREFIXES = [[[1], [1, 7, 8, 9], [1, 3]], [[1, 11, 12], [1], [1, 5, 5, 5]]]


def draw_images(frames: int = 1) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, frames, 3, 16, 16, dtype=torch.float64)


def whole_pass(model: GitModel, image: Tensor, text: list[int]) -> Tensor:
    return model(image[None], torch.tensor([[text]]), torch.tensor([len(text) - 1]))[0]


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_each_row_sees_its_ancestors_and_nothing_else(tiny_model: BuildModel, frames: int) -> None:
    model = tiny_model(frames).eval()
    images = draw_images(frames)
    stream = TextStream(model, images, PREFIXES)
    texts = [[list(prefix)] for row in PREFIXES for prefix in row]  # [G][W]
    logs = stream.begin()
    draw = torch.Generator().manual_seed(1)
    for width in (0, 4, 4, 2, 5):  # width 0: only look at what the prefixes give
        if width:
            tokens = torch.randint(23, (6, width), generator=draw)
            parents = torch.randint(len(texts[0]), (6, width), generator=draw)
            texts = [
                [texts[g][p] + [t] for p, t in zip(parents[g].tolist(), tokens[g].tolist(), strict=True)]
                for g in range(6)
            ]
            logs = stream.feed(tokens, parents)
        for g, rows in enumerate(texts):
            expected = torch.stack([whole_pass(model, images[g // 3], text) for text in rows])
            torch.testing.assert_close(logs[g], expected.log_softmax(-1), **EXACT)


@torch.no_grad()
def test_a_row_that_sees_its_neighbour_or_stands_elsewhere_says_something_else(
    tiny_model: BuildModel,
) -> None:
    """The test above could not hold if masks and positions were without effect."""
    model = tiny_model().eval()
    images = draw_images()
    tokens, rows = torch.tensor([[[3, 4]], [[5, 6]]]), torch.arange(4)

    def second_step(visible_of_row: list[list[int]], position: int) -> Tensor:
        cache = model.new_cache()
        model(images, torch.ones(2, 1, 1, dtype=torch.long), torch.arange(2), cache=cache)
        visible = torch.tensor(visible_of_row, dtype=torch.bool).expand(2, 1, 2, 3)
        placement = TextPlacement(torch.full((2, 1, 2), position), visible)
        return model(None, tokens, rows, placement, cache=cache)

    right = second_step([[1, 1, 0], [1, 0, 1]], 1)
    expected = [whole_pass(model, images[b], [1, token]) for b, token in ((0, 3), (0, 4), (1, 5), (1, 6))]
    torch.testing.assert_close(right, torch.stack(expected), **EXACT)
    for visible, position in (
        ([[1, 1, 1], [1, 0, 1]], 1),
        ([[0, 1, 0], [1, 0, 1]], 1),
        ([[1, 1, 0], [1, 0, 1]], 2),
    ):
        assert (second_step(visible, position) - right).abs().max() > 1e-2


@torch.no_grad()
def test_keys_and_values_of_the_image_are_held_once_and_of_a_row_once(tiny_model: BuildModel) -> None:
    model = tiny_model().eval()
    caches = []
    model.new_cache = lambda: caches.append(model.decoder.new_cache()) or caches[0]
    stream = TextStream(model, draw_images(), PREFIXES)
    stream.begin()
    for layer in caches[0]:
        assert layer.image[0].shape == layer.image[1].shape == (2, 4, 5, 8)  # neither by prefix nor by beam
        assert layer.image[0].is_contiguous() and layer.image[1].is_contiguous()
    held = [layer.image[0].data_ptr() for layer in caches[0]]
    for _ in range(2):
        stream.feed(torch.ones(6, 4, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long))
    for layer in caches[0]:
        assert [rows.length for rows in layer.text] == [
            4 + 2 * 4
        ] * 2  # the longest prefix, then 4 beams twice
    assert [layer.image[0].data_ptr() for layer in caches[0]] == held


@torch.no_grad()
def test_sums_are_made_in_single_precision_at_least(tiny_model: BuildModel) -> None:
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        stream = TextStream(tiny_model().to(dtype).eval(), draw_images().to(dtype), PREFIXES)
        assert stream.begin().dtype == expected


@torch.no_grad()
def test_a_cache_goes_on_with_a_placement_only_and_begins_with_the_image_only(tiny_model: BuildModel) -> None:
    model = tiny_model().eval()
    tokens, rows = torch.ones(2, 1, 1, dtype=torch.long), torch.arange(2)
    with pytest.raises(ValueError, match="first call of a generation needs the image"):
        model(None, tokens, rows, cache=model.new_cache())
    with pytest.raises(ValueError, match="a cache is needed"):
        model(None, tokens, rows)
    cache = model.new_cache()
    model(draw_images(), tokens, rows, cache=cache)
    with pytest.raises(ValueError, match="need a placement"):
        model(None, tokens, rows, cache=cache)


def test_rows_grow_without_copying_those_that_are_there() -> None:
    torch.manual_seed(0)
    rows, parts, places = GrowingRows(), [], []
    for length in (3, 1, 1, 1, 1, 4, 20):
        parts.append(torch.randn(2, 1, 2, length, 4))
        found = rows.append(parts[-1])
        places.append(found.data_ptr())
        assert torch.equal(found, torch.cat(parts, dim=3))
    assert len(set(places)) == 3  # room for 6, for 14, for 62
