"""Masked words: which ones, what stands in their place, and what a model is asked about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from git_scale.config import RunConfig
from git_scale.data.batch import Batch, Sample, collate
from git_scale.data.texts import Example, Text, next_words
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.objectives.examples import heldout_examples, training_examples
from git_scale.objectives.masked_lm import MaskedLanguageModelObjective
from git_scale.objectives.objective import inputs_of
from git_scale.objectives.training_loss import TrainingLoss, check_objectives, loss_alone
from git_scale.recipes import load_run
from git_scale.testing.tiny import tiny_run

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT))
    return load_tokenizer(tmp_path / "vocab.txt")


def caption(length: int, tokenizer: Tokenizer) -> Text:
    words = [5 + number % 26 for number in range(length)]
    return Text([tokenizer.bos_id, *words, tokenizer.eos_id], [False] + [True] * (length + 1))


def masked(text: Text, tokenizer: Tokenizer, rng: np.random.Generator) -> Example:
    return MaskedLanguageModelObjective(RunConfig()).example(text, tokenizer, rng)


@pytest.mark.parametrize(("words", "count"), [(1, 1), (6, 1), (10, 2), (20, 3), (38, 6)])
def test_fifteen_percent_of_the_words_and_at_least_one(bert: Tokenizer, words: int, count: int) -> None:
    text = caption(words, bert)
    example = masked(text, bert, np.random.default_rng(0))
    assert len(example.rows) == count and example.sees_ahead
    assert example.labels == [text.tokens[row] for row in example.rows]
    assert all(1 <= row <= words for row in example.rows), "neither begin nor end"
    untouched = set(range(words + 2)) - set(example.rows)
    assert all(example.tokens[row] == text.tokens[row] for row in untouched)


def test_eighty_ten_ten(bert: Tokenizer) -> None:
    text, rng = caption(20, bert), np.random.default_rng(0)
    became, words = Counter[str](), Counter[int]()
    for _ in range(4000):
        example = masked(text, bert, rng)
        for row, label in zip(example.rows, example.labels, strict=True):
            word = example.tokens[row]
            became["mask" if word == bert.mask_id else "itself" if word == label else "another"] += 1
            words[word] += word != bert.mask_id
    total = sum(became.values())
    assert total == 12_000
    # a random word is the word itself in one of 26 draws; three standard deviations of 12,000 draws are 0.011
    assert became["mask"] / total == pytest.approx(0.8, abs=0.011)
    assert became["another"] / total == pytest.approx(0.1 * 25 / 26, abs=0.01)
    assert became["itself"] / total == pytest.approx(0.1 + 0.1 / 26, abs=0.01)
    assert {BERT[word] for word in words if words[word]} == set("abcdefghijklmnopqrstuvwxyz"), (
        "no special token"
    )


def test_every_word_has_its_turn_and_the_same_numbers_mask_the_same(bert: Tokenizer) -> None:
    text = caption(10, bert)
    rows = Counter(row for seed in range(500) for row in masked(text, bert, np.random.default_rng(seed)).rows)
    assert set(rows) == set(range(1, 11)) and min(rows.values()) > 60  # of 100 each
    assert masked(text, bert, np.random.default_rng(7)) == masked(text, bert, np.random.default_rng(7))


def test_of_a_question_only_the_answer_is_masked(bert: Tokenizer) -> None:
    text = Text([2, 5, 6, 7, 8, 9, 3], [False, False, False, False, True, True, True])
    drawn = [masked(text, bert, np.random.default_rng(seed)) for seed in range(50)]
    assert {row for example in drawn for row in example.rows} == {4, 5}
    nothing = masked(Text([2, 5, 3], [False, False, True]), bert, np.random.default_rng(0))
    assert nothing == Example([2, 5, 3], [], [], sees_ahead=True), "an answer without words teaches nothing"


def test_every_tokenizer_has_a_mask_token(bert: Tokenizer, squares: Path, tmp_path: Path) -> None:
    assert BERT[bert.mask_id] == "[MASK]"
    (tmp_path / "none.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    for path in (tmp_path / "none.txt", squares / "tokenizer.model"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.mask_id == tokenizer.pad_id
        assert tokenizer.mask_id not in tokenizer.encode("a small red square b [PAD] <pad>")


# The loss, against the model asked by hand


def a_batch(run: RunConfig, texts: list[Text], tokenizer: Tokenizer) -> Batch:
    make, rng = training_examples(run, tokenizer), np.random.default_rng(3)
    pixels = np.random.default_rng(0).integers(256, size=(len(texts), 1, 3, 32, 32), dtype=np.uint8)
    return collate([Sample("", image, [make(text, rng)]) for image, text in zip(pixels, texts, strict=True)])


def run_of(squares: Path, tmp_path: Path, **train: Any) -> RunConfig:
    return tiny_run(squares, tmp_path / "run", train={"label_smoothing": 0.0, **train})


def test_the_loss_is_the_masked_words_alone(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    run = run_of(squares, tmp_path, objective="masked_lm")
    torch.manual_seed(0)
    model = build_model(run.model).eval()
    texts = [caption(12, bert), caption(3, bert)]
    batch = a_batch(run, texts, bert)
    found = loss_alone(run, model, batch, torch.float32)
    nats = []
    for number in range(2):  # each alone, without padding; what it may see is all of itself
        lone = batch.tokens[number : number + 1, :, : len(texts[number].tokens)]
        rows = [row for row in range(lone.numel()) if number * 14 + row in batch.rows.tolist()]
        one = Batch(
            batch.images[number : number + 1],
            lone,
            torch.tensor(rows),
            torch.tensor([texts[number].tokens[row] for row in rows]),
            [],
            [],
            visible=torch.ones(1, 1, lone.shape[-1], lone.shape[-1], dtype=torch.bool),
        )
        logits = model(*inputs_of(one, torch.float32))
        nats.append(F.cross_entropy(logits, one.labels, reduction="sum"))
    assert len(batch.rows) == 3
    torch.testing.assert_close(found, sum(nats) / 3, rtol=1e-5, atol=1e-6)
    causal = Batch(batch.images, batch.tokens, batch.rows, batch.labels, [], [])
    assert abs(loss_alone(run, model, causal, torch.float32) - found) > 1e-3, (
        "words must be seen on both sides"
    )


def test_next_and_masked_words_share_one_pass(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    """The weighted sum of what each is alone."""
    both = run_of(squares, tmp_path, objectives={"lm": 0.25, "masked_lm": 2.0})
    torch.manual_seed(0)
    model = build_model(both.model).eval()
    texts = [caption(9, bert), caption(5, bert)]
    together = a_batch(both, texts, bert)
    assert together.readings == (16, 2) and together.tokens.shape == (2, 2, 11)
    apart = 0.0
    for name, weight in both.train.objectives.items():
        alone = run_of(squares, tmp_path, objective=name)
        apart += weight * loss_alone(alone, model, a_batch(alone, texts, bert), torch.float32)
    torch.testing.assert_close(loss_alone(both, model, together, torch.float32), apart, rtol=1e-5, atol=1e-6)
    assert TrainingLoss(both).counts([together, together]) == [32, 4]


def test_prepare_may_not_lose_the_readings(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    loss = TrainingLoss(run_of(squares, tmp_path, objectives={"lm": 1.0, "masked_lm": 1.0}))
    batch = a_batch(loss.terms["lm"].run, [caption(9, bert)], bert)
    loss.terms["lm"].prepare = (
        lambda runner, batches: [  # type: ignore[method-assign]
            Batch(one.images, one.tokens, one.rows[:3], one.labels[:3], [], [], readings=one.readings)
            for one in batches
        ]
    )
    with pytest.raises(
        ConfigError,
        match=r"prepare of lm gave '3 rows with readings=\(10, 1\)'",
    ):
        loss.prepare(None, [batch])  # type: ignore[arg-type]


def test_held_out_words_are_masked_by_those_that_learn_them(
    squares: Path, tmp_path: Path, bert: Tokenizer
) -> None:
    assert heldout_examples(run_of(squares, tmp_path), bert) == {}
    (made,) = heldout_examples(
        run_of(squares, tmp_path, objectives={"lm": 1.0, "masked_lm": 1.0}), bert
    ).items()
    assert made[0] == "masked_lm" and len(made[1](caption(9, bert), np.random.default_rng(0))) == 1


# Parallel prediction


def test_all_words_from_mask_tokens_alone(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    run = run_of(squares, tmp_path, parallel_share=1.0)
    text = caption(5, bert)
    (example,) = training_examples(run, bert)(text, np.random.default_rng(0))
    assert example.tokens == [bert.mask_id] * 15, "as many for every text: data.max_text_tokens - 1"
    assert example.rows == [0, 1, 2, 3, 4, 5] and example.labels == text.tokens[1:]
    assert example.sees_ahead
    asked = Text([2, 5, 6, 7, 3], [False, False, True, True, True])
    assert training_examples(run, bert)(asked, np.random.default_rng(0)) == [next_words(asked)]


def test_the_share_is_of_the_captions(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    make = training_examples(run_of(squares, tmp_path, parallel_share=0.75), bert)
    rng = np.random.default_rng(0)
    ahead = sum(make(caption(5, bert), rng)[0].sees_ahead for _ in range(4000))
    assert ahead / 4000 == pytest.approx(0.75, abs=0.021)  # three standard deviations
    make = training_examples(run_of(squares, tmp_path), bert)
    assert make(caption(5, bert), rng) == [next_words(caption(5, bert))]


def test_the_words_that_are_read_do_not_matter(squares: Path, tmp_path: Path, bert: Tokenizer) -> None:
    """Of texts that share their last words: the loss on these depends on image and place alone."""
    run = run_of(squares, tmp_path, parallel_share=1.0)
    torch.manual_seed(0)
    model = build_model(run.model).eval()
    first, second = caption(5, bert), Text([2, 9, 9, 7, 8, 9, 3], [False] + 6 * [True])
    logits = [model(*inputs_of(a_batch(run, [text], bert), torch.float32)) for text in (first, second)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    causal = run_of(squares, tmp_path)
    logits = [model(*inputs_of(a_batch(causal, [text], bert), torch.float32)) for text in (first, second)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.parallel_share=0.5", "data.task=vqa", "eval.max_new_tokens=8"],
            r"train.parallel_share=0.5 is of captions, and vqa has questions alone: set train.parallel_share=0",
        ),
        (["train.parallel_share=1.5"], r"train.parallel_share=1.5: input should be less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_run("demo", overrides)


def test_a_share_that_no_objective_takes_is_refused(squares: Path, tmp_path: Path) -> None:
    alone = run_of(squares, tmp_path, objective="masked_lm", parallel_share=0.5)
    with pytest.raises(
        ConfigError, match=r"train.parallel_share=0.5 is of the objective lm, and masked_lm reads"
    ):
        check_objectives(alone, dp=2)
    check_objectives(
        run_of(squares, tmp_path, objectives={"lm": 1.0, "masked_lm": 1.0}, parallel_share=0.5), dp=2
    )


def test_captions_beside_questions_may_be_predicted_in_parallel() -> None:
    sources = "data.sources=[{path: a, task: caption}, {path: b, task: vqa}]"
    assert (
        load_run("demo", ["train.parallel_share=0.5", "data.train=null", sources]).train.parallel_share == 0.5
    )
