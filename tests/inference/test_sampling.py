"""What is drawn by chance against the probabilities it is drawn from."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from git_scale.inference.generate import Decoding, GeneratedText, Trie, generate

BEGIN, END, VOCAB = 3, 2, 8
DRAWS = 4000


def draw(oracle: Any, pictures: torch.Tensor, seed: int = 0, trie: Trie | None = None, **options: Any) -> Any:
    return generate(
        oracle,
        pictures,
        [[[BEGIN]]] * len(pictures),
        END,
        Decoding(**options),
        trie,
        generator=torch.Generator().manual_seed(seed),
    )


def first_tokens(texts: list[GeneratedText]) -> list[int]:
    return [text.tokens[0] if text.tokens else END for text in texts]


def assert_drawn_from(tokens: list[int], probabilities: torch.Tensor) -> None:
    """Each share within 4.5 standard deviations: a true sampler fails once in 10,000 seeds, and the seed is fixed."""
    counts = Counter(tokens)
    for token, p in enumerate(probabilities.tolist()):
        if p == 0.0:
            assert counts[token] == 0
        assert abs(counts[token] - p * len(tokens)) <= 4.5 * math.sqrt(p * (1 - p) * len(tokens)), token


def softmax_of(oracle: Any, temperature: float) -> torch.Tensor:
    return (oracle.logits(0, (BEGIN,)) / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_the_softmax_says(
    make_oracle: Any, number_images: Any, temperature: float
) -> None:
    oracle = make_oracle(VOCAB)
    ((texts,),) = draw(oracle, number_images(1), n_best=DRAWS, max_new_tokens=1, temperature=temperature)
    assert_drawn_from(first_tokens(texts), softmax_of(oracle, temperature))
    with pytest.raises(AssertionError):
        assert_drawn_from(first_tokens(texts), softmax_of(oracle, temperature * 1.5))


def test_top_k_and_top_p_leave_the_likeliest_in_their_proportions(
    make_oracle: Any, number_images: Any
) -> None:
    oracle = make_oracle(VOCAB)
    plain = softmax_of(oracle, 1.0)
    values, order = plain.sort(descending=True)
    for options, kept in (
        ({"top_k": 3}, 3),
        ({"top_p": float(values[:2].sum()) + 1e-6}, 3),  # two hold less than that: a third is needed
        ({"top_p": float(values[:2].sum()) - 1e-6}, 2),
        ({"top_p": 1e-9}, 1),
        ({"top_p": 1.0}, VOCAB),
        ({"top_k": 1000}, VOCAB),
        ({"top_k": 4, "top_p": 0.999 * float(values[:3].sum() / values[:4].sum())}, 3),
    ):
        ((texts,),) = draw(
            oracle, number_images(1), n_best=DRAWS, max_new_tokens=1, temperature=1.0, **options
        )
        expected = torch.zeros_like(plain).scatter(0, order[:kept], values[:kept] / values[:kept].sum())
        assert_drawn_from(first_tokens(texts), expected)


def test_texts_come_as_often_as_their_probability_says(make_oracle: Any, number_images: Any) -> None:
    """Over two tokens: the second is drawn given the first."""
    oracle = make_oracle(4)
    ((texts,),) = draw(oracle, number_images(1), n_best=DRAWS, max_new_tokens=2, temperature=1.0)
    counts = Counter(tuple(text.tokens) for text in texts)
    first = oracle.logits(0, (BEGIN,)).softmax(-1)
    for a in (0, 1, 3):
        second = oracle.logits(0, (BEGIN, a)).softmax(-1)
        for text, p in [((a,), first[a] * second[END])] + [((a, b), first[a] * second[b]) for b in (0, 1, 3)]:
            p = float(p)
            assert abs(counts[text] - p * DRAWS) <= 4.5 * math.sqrt(p * (1 - p) * DRAWS)


def test_the_score_is_the_models_own_and_ranks(make_oracle: Any, number_images: Any) -> None:
    oracle = make_oracle(VOCAB, seed=4)
    found = draw(oracle, number_images(2), n_best=5, max_new_tokens=4, temperature=2.0, top_k=3)
    for image in range(2):
        for text in found[image][0]:
            said = text.tokens if len(text.tokens) == 4 else [*text.tokens, END]
            logs = [
                oracle.logits(image, (BEGIN, *said[:at])).log_softmax(-1)[token].item()
                for at, token in enumerate(said)
            ]
            assert text.score == pytest.approx(sum(logs) / ((6 + len(text.tokens)) / 6) ** 0.6)
        scores = [text.score for text in found[image][0]]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 1


def test_the_same_seed_draws_the_same_texts(make_oracle: Any, number_images: Any) -> None:
    oracle, pictures = make_oracle(VOCAB), number_images(3)
    options = {"n_best": 4, "max_new_tokens": 6, "temperature": 1.0}
    torch.manual_seed(1)
    first = draw(oracle, pictures, 11, **options)
    torch.manual_seed(2)
    assert draw(oracle, pictures, 11, **options) == first
    assert draw(oracle, pictures, 12, **options) != first


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}])
def test_without_a_choice_it_is_greedy(make_oracle: Any, number_images: Any, options: dict[str, Any]) -> None:
    oracle, pictures = make_oracle(VOCAB), number_images(8)
    drawn = draw(oracle, pictures, max_new_tokens=6, **{"temperature": 5.0, **options})
    assert drawn == generate(oracle, pictures, [[[BEGIN]]] * 8, END, Decoding(6))


def test_samples_share_the_image_and_stay_in_the_trie(make_oracle: Any, number_images: Any) -> None:
    names = [[0], [0, 1], [4, 4], [5, 6, 7]]
    oracle = make_oracle(VOCAB)
    found = draw(
        oracle, number_images(2), trie=Trie(names, END), n_best=50, max_new_tokens=9, temperature=4.0
    )
    assert oracle.saw_images == [True, *[False] * 3]
    said = [text.tokens for row in found for text in row[0]]
    assert all(text in names for text in said)
    assert len({tuple(text) for text in said}) == len(names)


def test_the_end_token_waits_for_the_shortest_length(make_oracle: Any, number_images: Any) -> None:
    oracle = make_oracle(4)
    options = {"n_best": 60, "max_new_tokens": 6, "temperature": 3.0}
    ((texts,),) = draw(oracle, number_images(1), min_new_tokens=3, **options)
    assert {len(text.tokens) for text in texts} == {3, 4, 5, 6}
    ((texts,),) = draw(oracle, number_images(1), **options)
    assert min(len(text.tokens) for text in texts) < 3
