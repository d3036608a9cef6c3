"""Beam search against exhaustive enumeration, and against the textbook's, one text at a time without a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from git_scale.inference.generate import Decoding, GeneratedText, Trie, generate
from git_scale.models.git import GitModel

BuildModel = Callable[..., GitModel]
LogProbabilities = Callable[[list[int]], list[float]]  # of the token after a text
Scored = list[tuple[list[int], float]]
BEGIN, END, VOCAB, LONGEST = 3, 2, 5, 4


def every_text(shortest: int) -> Iterable[list[int]]:
    words = [word for word in range(VOCAB) if word != END]
    for length in range(shortest, LONGEST + 1):
        yield from map(list, itertools.product(words, repeat=length))


def score(sum_of_logs: float, prefix: list[int], text: list[int], penalty: float) -> float:
    return sum_of_logs / ((5 + len(prefix) + len(text)) / 6) ** penalty


def enumerate_texts(
    after: LogProbabilities, prefix: list[int], texts: Iterable[list[int]], penalty: float
) -> Scored:
    found = []
    for text in texts:
        said = text if len(text) == LONGEST else [*text, END]  # no room for the end token
        logs = [after(prefix + said[:at])[token] for at, token in enumerate(said)]
        found.append((text, score(sum(logs), prefix, text, penalty)))
    return sorted(found, key=lambda pair: -pair[1])


def search_slowly(after: LogProbabilities, prefix: list[int], decoding: Decoding, end: int) -> Scored:
    """Never stops early; candidates one after the other, best first, until `beams` of them are open."""
    results: Scored = []
    beams: Scored = [([], 0.0)]
    for step in range(decoding.max_new_tokens):
        candidates = [
            ([*text, word], total + gain)
            for text, total in beams
            for word, gain in enumerate(after(prefix + text))
            if word != end or step >= decoding.min_new_tokens
        ]
        beams = []
        for text, total in sorted(candidates, key=lambda pair: -pair[1]):
            if text[-1] == end:
                results.append((text[:-1], score(total, prefix, text[:-1], decoding.length_penalty)))
            else:
                beams.append((text, total))
            if len(beams) == decoding.beams:
                break
    results += [(text, score(total, prefix, text, decoding.length_penalty)) for text, total in beams]
    return sorted(results, key=lambda pair: -pair[1])


def assert_same(found: list[GeneratedText], expected: Scored) -> None:
    assert [text.tokens for text in found] == [text for text, _ in expected]
    assert [text.score for text in found] == pytest.approx([value for _, value in expected], rel=1e-9)


def table(oracle: Any, picture: int) -> LogProbabilities:
    return lambda text: oracle.logits(picture, tuple(text)).log_softmax(-1).tolist()


def recomputed(model: GitModel, image: Tensor) -> LogProbabilities:
    def after(text: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(image[None], torch.tensor([[text]]), torch.tensor([len(text) - 1]))
        return logits[0].log_softmax(-1).tolist()

    return after


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.5, -0.7])
@pytest.mark.parametrize("shortest", [0, 2])
def test_beams_as_wide_as_the_space_find_what_enumeration_finds(
    make_oracle: Any, number_images: Any, penalty: float, shortest: int
) -> None:
    oracle = make_oracle(VOCAB, seed=1, spread=2.0)
    prefixes = [[[BEGIN], [BEGIN, 4, 4]], [[BEGIN, 0], [BEGIN, 1]]]
    decoding = Decoding(LONGEST, shortest, beams=256, length_penalty=penalty, n_best=3)
    found = generate(oracle, number_images(2), prefixes, END, decoding)
    for picture, k in itertools.product(range(2), range(2)):
        prefix = prefixes[picture][k]
        expected = enumerate_texts(table(oracle, picture), prefix, every_text(shortest), penalty)
        assert_same(found[picture][k], expected[:3])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 3.0])
def test_with_a_trie_they_find_the_best_of_its_texts(
    make_oracle: Any, number_images: Any, penalty: float
) -> None:
    names = [[0], [0, 1], [0, 1, 1], [1], [4, 4, 4], [4, 4, 3], [3, 0], [3, 4]]
    oracle = make_oracle(VOCAB, seed=2)
    found = generate(
        oracle,
        number_images(6),
        [[[BEGIN]]] * 6,
        END,
        Decoding(LONGEST, beams=8, length_penalty=penalty, n_best=8),
        Trie(names, END),
    )
    for picture in range(6):
        expected = enumerate_texts(table(oracle, picture), [BEGIN], names, penalty)
        assert_same(found[picture][0], expected)


def test_a_narrow_beam_in_a_trie_still_says_names_and_as_many_as_asked_for(
    make_oracle: Any, number_images: Any
) -> None:
    names = [list(name) for name in itertools.product([0, 1, 3, 4], repeat=3)][::3]
    oracle = make_oracle(VOCAB, spread=4.0)
    found = generate(
        oracle, number_images(5), [[[BEGIN]]] * 5, END, Decoding(4, beams=2, n_best=2), Trie(names, END)
    )
    said = [[text.tokens for text in row[0]] for row in found]
    assert all(len(texts) == 2 and texts[0] != texts[1] for texts in said)
    assert all(text in names for texts in said for text in texts)


@pytest.mark.parametrize(
    ("tiny_model", "beams", "n_best", "penalty", "seed", "end"),
    [
        ("joint", 2, 1, 0.6, 2, 12),
        ("joint", 4, 4, 0.0, 2, 9),
        ("joint", 4, 2, 0.6, 5, 16),
        ("joint", 5, 3, 2.0, 2, 6),
        ("cross", 2, 1, 0.6, 17, 17),
        ("cross", 4, 4, 0.0, 3, 15),
        ("cross", 4, 2, 0.6, 17, 4),
        ("cross", 5, 3, 2.0, 17, 17),
    ],
    indirect=["tiny_model"],
)
def test_cache_batch_and_early_stop_change_nothing(
    tiny_model: BuildModel, beams: int, n_best: int, penalty: float, seed: int, end: int
) -> None:
    """Ragged prefixes, three frames, three prefixes per image; against whole passes over one text each."""
    model = tiny_model(3, seed=seed, tied=False).eval()
    torch.manual_seed(0)
    images = torch.randn(2, 3, 3, 16, 16, dtype=torch.float64)
    prefixes = [[[1], [1, 7, 8, 9], [1, 3]], [[1, 11, 12], [1], [1, 5, 5, 5]]]
    decoding = Decoding(7, beams=beams, n_best=n_best, length_penalty=penalty)
    found = generate(model, images, prefixes, end, decoding)
    for image, row, texts in zip(images, prefixes, found, strict=True):
        for prefix, best in zip(row, texts, strict=True):
            assert_same(best, search_slowly(recomputed(model, image), prefix, decoding, end)[:n_best])
    alone = [
        [generate(model, image[None], [[prefix]], end, decoding)[0][0] for prefix in row]
        for image, row in zip(images, prefixes, strict=True)
    ]
    for one, many in zip(itertools.chain(*alone), itertools.chain(*found), strict=True):
        assert_same(one, [(text.tokens, text.score) for text in many])
    texts = [tuple(text.tokens) for row in found for best in row for text in best]
    assert len(set(texts)) >= len(texts) // 2  # neither image nor prefix goes unheard
    assert len({len(text) for text in texts}) >= 3


@pytest.mark.parametrize("seed", range(12))
def test_narrow_beams_walk_as_the_textbooks(make_oracle: Any, number_images: Any, seed: int) -> None:
    oracle = make_oracle(9, seed=seed, spread=1.5)
    decoding = Decoding(
        max_new_tokens=6, min_new_tokens=seed % 3, beams=2 + seed % 4, n_best=2, length_penalty=0.4 * seed - 2
    )
    found = generate(oracle, number_images(3), [[[BEGIN]]] * 3, END, decoding)
    for picture in range(3):
        assert_same(found[picture][0], search_slowly(table(oracle, picture), [BEGIN], decoding, END)[:2])


def test_the_textbook_itself_is_told_apart_from_greedy_and_from_enumeration(make_oracle: Any) -> None:
    """Otherwise the tests above would compare nothing."""
    best = []
    for beams in (1, 2, 256):
        decoding = Decoding(LONGEST, beams=beams)
        best.append(
            [
                search_slowly(table(make_oracle(VOCAB, seed), 0), [BEGIN], decoding, END)[0]
                for seed in range(30)
            ]
        )
    for narrow, wide in itertools.pairwise(best):
        assert narrow != wide


class Certain:
    """Says word 4 `words` times, then ends, with that much certainty; counts its calls."""

    vocab_size, max_positions = VOCAB, 64

    def __init__(self, words: list[int], certainty: float = 20.0) -> None:
        self._words = torch.tensor(words)
        self._certainty = certainty
        self.calls = 0

    def __call__(
        self, images: Any, tokens: Tensor, rows: Tensor, placement: Any = None, cache: Any = None
    ) -> Tensor:
        said = torch.where(self._words > self.calls, 4, END)
        self.calls += 1
        logits = torch.nn.functional.one_hot(said, VOCAB).double() * self._certainty
        return logits.repeat_interleave(len(rows) // len(self._words), dim=0)

    def new_cache(self) -> list[Any]:
        return []


def test_the_search_stops_once_nothing_better_can_come() -> None:
    model = Certain([2, 2])
    found = generate(model, torch.zeros(2, 1, 3, 8, 8), [[[BEGIN]]] * 2, END, Decoding(40, beams=4))
    assert [row[0][0].tokens for row in found] == [[4, 4]] * 2
    assert model.calls == 3
    unsure = Certain([2, 2], certainty=0.0)
    generate(unsure, torch.zeros(2, 1, 3, 8, 8), [[[BEGIN]]] * 2, END, Decoding(40, beams=4))
    assert unsure.calls > 3


@pytest.mark.parametrize("penalty", [-2.0, 0.6])
def test_it_does_not_stop_at_a_first_text_that_a_longer_one_beats(penalty: float) -> None:
    """Below 0 the penalty is least for the soonest end, above for the latest: neither bound may be forgotten."""
    model = Certain([2], certainty=3.0)  # ends at once with a probability of 0.04, after two words with 0.6
    decoding = Decoding(40, beams=2, length_penalty=penalty)
    found = generate(model, torch.zeros(1, 1, 3, 8, 8), [[[BEGIN]]], END, decoding)
    assert found[0][0][0].tokens == [4, 4]


def test_a_done_image_stays_as_it_is_while_others_go_on() -> None:
    model = Certain([1, 6])
    found = generate(model, torch.zeros(2, 1, 3, 8, 8), [[[BEGIN]]] * 2, END, Decoding(40, beams=3))
    assert [row[0][0].tokens for row in found] == [[4], [4] * 6]
    assert model.calls == 7
    assert (
        found[0]
        == generate(Certain([1]), torch.zeros(1, 1, 3, 8, 8), [[[BEGIN]]], END, Decoding(40, beams=3))[0]
    )


def test_it_goes_on_without_effect_until_it_is_told_to_stop() -> None:
    """As under ZeRO-3, where other ranks may need longer."""
    model = Certain([1, 3])
    asked: list[list[bool]] = []

    def is_finished(done: Tensor) -> bool:
        asked.append(done.tolist())
        return len(asked) == 9

    images, prefixes = torch.zeros(2, 1, 3, 8, 8), [[[BEGIN]]] * 2
    found = generate(model, images, prefixes, END, Decoding(40, beams=3, n_best=2), is_finished=is_finished)
    assert model.calls == 9
    assert asked[0] == [False, False] and asked[-1] == [True, True]
    assert found == generate(Certain([1, 3]), images, prefixes, END, Decoding(40, beams=3, n_best=2))


@pytest.mark.parametrize(
    ("penalty", "expected"), [(0.6, {(0,), (1,), (3,), (4,)}), (0.0, {(), (0,), (1,), (3,), (4,)})]
)
def test_of_equal_texts_the_earlier_one_stays_first(penalty: float, expected: set[tuple[int, ...]]) -> None:
    decoding = Decoding(1, beams=4, n_best=4, length_penalty=penalty)
    runs = [
        generate(Certain([0], certainty=0.0), torch.zeros(1, 1, 3, 8, 8), [[[BEGIN]]], END, decoding)[0][0]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len({text.score for text in runs[0]}) == 1  # every token has probability 1/5
    said = [tuple(text.tokens) for text in runs[0]]
    assert set(said) <= expected and len(set(said)) == 4
    assert (
        said[0] == () if () in expected else () not in said
    )  # the end comes before the words of the last step
