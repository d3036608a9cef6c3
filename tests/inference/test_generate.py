"""Greedy generation against the slow way, the whole text anew for every token; and what is common to all ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from git_scale.errors import ConfigError
from git_scale.inference.generate import FREE, Decoding, Trie, generate
from git_scale.models.cache import LayerCache
from git_scale.models.decoder import TextPlacement
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
BEGIN, END = 1, 2
WAYS = {
    "greedy": Decoding(5),
    "beams": Decoding(5, beams=4, n_best=2),
    "samples": Decoding(5, temperature=1.0, n_best=3),
}


def generate_slowly(model: GitModel, image_FCHW: Tensor, prefix: list[int], end: int, most: int) -> list[int]:
    """One image, no cache, no batch."""
    tokens: list[int] = []
    for _ in range(most):
        text = torch.tensor([[prefix + tokens]])
        logits = model(image_FCHW[None], text, torch.tensor([text.numel() - 1]))
        tokens.append(int(logits[0].argmax()))
        if tokens[-1] == end:
            return tokens[:-1]
    return tokens


def first_texts(found: list[list[Any]]) -> list[list[list[int]]]:
    return [[texts[0].tokens for texts in row] for row in found]


class Script:
    """A model that says given texts, one row per image, and counts its calls."""

    vocab_size, max_positions = 10, 64

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.heard: list[list[int]] = []
        self.saw_images: list[bool] = []

    def __call__(
        self,
        images: Tensor | None,
        tokens: Tensor,
        rows: Tensor,
        placement: TextPlacement | None = None,
        draws: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        step = len(self.heard)
        self.heard.append(tokens.flatten().tolist())
        self.saw_images.append(images is not None)
        said = torch.tensor([text[step] for text in self.texts])
        return torch.nn.functional.one_hot(said, 10).float()[rows]

    def new_cache(self) -> list[LayerCache]:
        return []

    def say(self, most: int, **options: Any) -> list[list[int]]:
        count = len(self.texts)
        images = torch.zeros(count, 1, 3, 8, 8)
        found = generate(self, images, [[[BEGIN]]] * count, END, Decoding(most), **options)
        return [texts for (texts,) in first_texts(found)]


@pytest.mark.parametrize(
    ("tiny_model", "frames", "seed", "end"),
    [
        *[("joint", 1, 2, 9), ("joint", 3, 2, 12), ("joint", 3, 5, 10), ("joint", 3, 5, 16)],
        *[("cross", 1, 21, 16), ("cross", 1, 22, 11), ("cross", 3, 6, 11), ("cross", 3, 17, 14)],
    ],
    indirect=["tiny_model"],
)
def test_cache_batch_and_neighbours_change_nothing(
    tiny_model: BuildModel, frames: int, seed: int, end: int
) -> None:
    model = tiny_model(frames, seed=seed, tied=False).eval()
    torch.manual_seed(0)
    images = torch.randn(4, frames, 3, 16, 16, dtype=torch.float64)
    prefixes = [[[BEGIN], [BEGIN, 7, 8, 9], [BEGIN, b + 3]] for b in range(4)]
    found = first_texts(generate(model, images, prefixes, end, Decoding(9)))
    assert found == [
        [generate_slowly(model, image, prefix, end, 9) for prefix in row]
        for image, row in zip(images, prefixes, strict=True)
    ]
    assert found == [
        [first_texts(generate(model, image[None], [[prefix]], end, Decoding(9)))[0][0] for prefix in row]
        for image, row in zip(images, prefixes, strict=True)
    ]
    texts = [tuple(text) for row in found for text in row]
    assert len(set(texts)) > 4  # images and prefixes matter,
    assert len({len(text) for text in texts}) > 2  # and some texts end before others


@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_encoded_once_for_all_its_texts(tiny_model: BuildModel, way: str) -> None:
    model = tiny_model(2).eval()
    seen: list[tuple[int, ...]] = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    streams: list[tuple[int, ...]] = []
    model.decoder.layers[0].register_forward_pre_hook(
        lambda _module, inputs: streams.append(() if inputs[0] is None else tuple(inputs[0].shape))
    )
    images = torch.randn(3, 2, 3, 16, 16, dtype=torch.float64)
    generate(model, images, [[[BEGIN], [BEGIN, 4, 5]]] * 3, 22, WAYS[way])
    assert seen == [(6, 3, 16, 16)]
    assert streams == [(3, 10, 32), *[()] * 4]  # the image rows meet the decoder once


@pytest.mark.parametrize("way", WAYS)
def test_no_gradient_is_kept(tiny_model: BuildModel, way: str) -> None:
    model = tiny_model().eval()
    kept: list[bool] = []
    model.decoder.head.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output.requires_grad)
    )
    generate(model, torch.randn(1, 1, 3, 16, 16, dtype=torch.float64), [[[BEGIN]]], END, WAYS[way])
    assert kept and not any(kept)


@pytest.mark.parametrize("way", WAYS)
def test_results_lie_by_image_prefix_and_rank(make_oracle: Any, number_images: Any, way: str) -> None:
    decoding = WAYS[way]
    prefixes = [[[BEGIN], [BEGIN, 4, 5]]] * 3
    found = generate(make_oracle(7), number_images(3), prefixes, END, decoding)
    assert [[len(texts) for texts in row] for row in found] == [[decoding.n_best] * 2] * 3
    for row in found:
        for texts in row:
            scores = [text.score for text in texts]
            assert scores == sorted(scores, reverse=True)


def test_greedy_scores_are_sums_of_log_probabilities_over_the_length(
    make_oracle: Any, number_images: Any
) -> None:
    oracle = make_oracle(6, seed=3)
    prefix = [BEGIN, 4, 5]
    found = generate(oracle, number_images(8), [[prefix]] * 8, END, Decoding(4, length_penalty=1.3))
    for picture, ((text,),) in enumerate(found):
        said = text.tokens if len(text.tokens) == 4 else [*text.tokens, END]
        logs = [
            oracle.logits(picture, (*prefix, *said[:at])).log_softmax(-1)[token].item()
            for at, token in enumerate(said)
        ]
        assert text.score == pytest.approx(sum(logs) / ((5 + 3 + len(text.tokens)) / 6) ** 1.3)
    assert len({len(text.tokens) for ((text,),) in found}) > 1


def test_a_text_ends_at_its_end_token_and_a_finished_batch_stops() -> None:
    model = Script([[5, END, 7, 7, 7], [5, 6, 7, END, 7]])
    assert model.say(5) == [[5], [5, 6, 7]]
    assert len(model.heard) == 4
    assert model.heard[0] == [BEGIN, BEGIN]
    assert model.heard[2] == [END, 6]  # an ended text is fed its end token, whatever the model goes on saying
    assert model.heard[3] == [END, 7]
    assert model.saw_images == [True, False, False, False]


def test_an_empty_text_is_empty() -> None:
    assert Script([[END]]).say(5) == [[]]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_tokens_than_asked_for(most: int) -> None:
    model = Script([[5, 6, 7, 8]])
    assert model.say(most) == [[5, 6, 7, 8][:most]]
    assert len(model.heard) == most


def test_the_end_is_asked_for_after_each_token_and_may_be_put_off() -> None:
    """As under ZeRO-3, where a rank goes on until the others are done too."""
    model = Script([[5, END, 6, 6], [END, 7, 7, 7]])
    asked: list[list[bool]] = []

    def is_finished(ended: Tensor) -> bool:
        asked.append(ended.tolist())
        return len(asked) == 3

    assert model.say(9, is_finished=is_finished) == [[5], []]
    assert asked == [[False, True], [True, True], [True, True]]
    assert model.heard[2] == [END, END]


@pytest.mark.parametrize("decoding", [Decoding(5, 3), Decoding(5, 3, beams=4), Decoding(3, 3, beams=2)])
def test_the_end_token_waits_for_the_shortest_length(
    make_oracle: Any, number_images: Any, decoding: Decoding
) -> None:
    def lengths(way: Decoding) -> list[int]:
        found = generate(make_oracle(4), number_images(30), [[[BEGIN]]] * 30, END, way)
        return [len(texts[0]) for texts in first_texts(found)]

    assert min(lengths(decoding)) == 3
    assert max(lengths(decoding)) == decoding.max_new_tokens
    assert min(lengths(Decoding(decoding.max_new_tokens, beams=decoding.beams))) < 3


@pytest.mark.parametrize("beams", [1, 3])
def test_with_a_trie_only_its_texts_are_said(make_oracle: Any, number_images: Any, beams: int) -> None:
    names = [[0], [0, 3], [4, 4], [5, 6, 7]]
    images, prefixes = number_images(12), [[[BEGIN]]] * 12
    decoding = Decoding(4, beams=beams)
    found = first_texts(generate(make_oracle(8), images, prefixes, END, decoding, Trie(names, END)))
    assert all(text in names for (text,) in found)
    assert len({tuple(text) for (text,) in found}) > 2
    free = first_texts(generate(make_oracle(8), images, prefixes, END, decoding))
    assert not all(text in names for (text,) in free)


@pytest.mark.parametrize(
    "decoding", [Decoding(4), Decoding(4, beams=3), Decoding(4, n_best=3, temperature=1.0)]
)
def test_each_prefix_has_choices_of_its_own(make_oracle: Any, number_images: Any, decoding: Decoding) -> None:
    """As with a trie for each set alone, and without any."""
    sets = [[[0], [0, 3], [4, 4]], [[5], [6], [7, 5]]]
    images, prefixes, count = number_images(12), [[[BEGIN]] * 3] * 12, decoding.n_best
    trie = Trie(sets[0], END, sets[1:])
    roots = [[trie.roots[0], trie.roots[1], FREE], [FREE, trie.roots[1], trie.roots[0]]] * 6
    found = generate(make_oracle(8), images, prefixes, END, decoding, trie, roots=roots)
    said: dict[int, list[list[int]]] = {root: [] for root in (*trie.roots, FREE)}
    for row, begin in zip(found, roots, strict=True):
        for texts, root in zip(row, begin, strict=True):
            assert len(texts) == count
            said[root] += [text.tokens for text in texts]
    for root, names in zip(trie.roots, sets, strict=True):
        assert all(text in names for text in said[root]) and len({tuple(text) for text in said[root]}) > 1
    assert not all(text in sets[0] + sets[1] for text in said[FREE])
    if not decoding.samples:
        alone = [
            generate(make_oracle(8), images, prefixes, END, decoding, Trie(names, END)) for names in sets
        ] + [generate(make_oracle(8), images, prefixes, END, decoding)]
        at = {trie.roots[0]: 0, trie.roots[1]: 1, FREE: 2}
        for b, begin in enumerate(roots):
            assert [found[b][k] for k in range(3)] == [alone[at[root]][b][k] for k, root in enumerate(begin)]


NAMES = [[3], [4, 4, 4]]


@pytest.mark.parametrize(
    ("decoding", "prefix", "names", "message"),
    [
        (Decoding(62), [BEGIN, 3, 3], None, r"model.decoder.positions=64: set max_new_tokens=61 or less"),
        (Decoding(1), [BEGIN] * 64, None, "positions=64: shorten the prefix"),
        (Decoding(2, beams=92), [BEGIN], None, "beams=92 exceed the 91 texts of at most 2 tokens"),
        (Decoding(2, 2, beams=82), [BEGIN], None, "beams=82 exceed the 81 texts"),
        (Decoding(3), [BEGIN], NAMES, "longest text to choose from has 3 tokens; set max_new_tokens=4"),
        (Decoding(9, 2), [BEGIN], NAMES, "shortest text to choose from has 1 tokens; set min_new_tokens=1"),
        (Decoding(9, beams=3, n_best=3), [BEGIN], NAMES, "n_best=3 exceeds the 2 texts to choose from"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_model_is_asked(
    decoding: Decoding, prefix: list[int], names: list[list[int]] | None, message: str
) -> None:
    model = Script([[END]])
    trie = None if names is None else Trie(names, END)
    with pytest.raises(ConfigError, match=message):
        generate(model, torch.zeros(1, 1, 3, 8, 8), [[prefix]], END, decoding, trie)
    assert model.heard == []


def test_the_last_position_of_the_table_can_be_used(tiny_model: BuildModel) -> None:
    model = tiny_model().eval()
    images = torch.randn(1, 1, 3, 16, 16, dtype=torch.float64)
    found = generate(model, images, [[[BEGIN, 3]]], END, Decoding(14, 14, beams=2))  # 16 in all
    assert len(found[0][0][0].tokens) == 14
    with pytest.raises(ConfigError, match="positions=16"):
        generate(model, images, [[[BEGIN, 3]]], END, Decoding(15))


@pytest.mark.parametrize(
    ("images", "prefixes", "message"),
    [
        (1, [], "0 lists of prefixes"),
        (2, [[[BEGIN]]], "1 lists of prefixes"),
        (0, [], "0 lists"),
        (2, [[[BEGIN]], [[BEGIN], [BEGIN]]], "same number of prefixes"),
        (1, [[]], "same number of prefixes"),
        (1, [[[]]], "at least one token"),
        (1, [[[BEGIN, 10]]], r"all in 0..9"),
        (1, [[[-1]]], r"all in 0..9"),
    ],
)
def test_mistakes_of_a_program_are_told(images: int, prefixes: list[list[list[int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(Script([]), torch.zeros(images, 1, 3, 8, 8), prefixes, END, Decoding())


def test_a_trie_of_another_tokenizer_is_told() -> None:
    for trie in (Trie([[3]], end_token=4), Trie([[10]], END)):
        with pytest.raises(ValueError, match="another tokenizer"):
            generate(Script([]), torch.zeros(1, 1, 3, 8, 8), [[[BEGIN]]], END, Decoding(), trie)
