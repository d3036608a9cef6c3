"""Training of a sentencepiece tokenizer.

From a vocabulary of 1,000 on it has byte fallback: a character without a piece is spelled in the bytes of its UTF-8,
and no text is lost. These 256 pieces, and a coverage of 0.9995 of all characters, leave the places for words; the
rare characters cost two to four tokens each. In a smaller vocabulary the bytes would take more places than the words:
there every character that occurs gets a piece, or, where they do not fit, those that make up 0.9995 of the texts.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread

import sentencepiece

from git_scale.data.captions import MAX_CAPTION_BYTES, clean_caption
from git_scale.data.tokenizer import SentencePieceTokenizer
from git_scale.errors import DataError
from git_scale.files import replaced_atomically
from git_scale.paths import problem_of_file
from git_scale.stop import check_stop

MIN_PIECES = 5  # the four special ones and one more
MAX_PIECES = 1_000_000  # four times those of the largest models
MAX_TRAINING_TEXTS = 10_000_000  # a random sample of more: about 20 GB in sentencepiece, and no better pieces
BYTES = 256  # pieces of byte fallback
BYTE_FALLBACK_FROM = 1000  # of the vocabulary: a quarter of it goes to the bytes
COVERAGE = 0.9995  # of all characters that have a piece of their own: sentencepiece's default
LOOK_EVERY = 0.2  # seconds between two looks at the stop request


def train_sentencepiece(texts: Iterable[str], destination: str | Path, vocab_size: int) -> None:
    """Trains a unigram model on `texts` and writes it whole or not at all; same texts, same bytes.

    `texts` may be read again, when the first way does not fit. A link stays, and what it leads to is written.
    Raises DataError, before the training, when the destination cannot be written or no vocabulary has that size, and
    when the texts cannot fill `vocab_size` or it has no place for their characters, naming the nearest size that
    works; Stopped when a stop was asked for.
    """
    if isinstance(texts, Iterator):
        texts = list(texts)
    destination = Path(os.path.realpath(destination))
    if not MIN_PIECES <= vocab_size <= MAX_PIECES:
        raise DataError(f"--vocab-size {vocab_size}: from {MIN_PIECES} to {MAX_PIECES} are possible")
    _check_destination(destination)
    model = _train(texts, vocab_size)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(destination) as temporary:
        temporary.write_bytes(model)


def _check_destination(destination: Path) -> None:
    if problem := problem_of_file(destination):
        raise DataError(f"{destination}: {problem}")


class _SizeError(Exception):
    """A vocabulary size that the texts do not go with, and the nearest that they do."""

    def __init__(self, problem: str, nearest: int) -> None:
        super().__init__(problem)
        self.problem, self.nearest = problem, nearest


def _train(texts: Iterable[str], vocab_size: int) -> bytes:
    try:
        return _train_at(texts, vocab_size)
    except _SizeError as error:
        problem, nearest = error.problem, error.nearest
    if vocab_size >= BYTE_FALLBACK_FROM > nearest:  # without bytes it is another; texts so few are soon tried
        try:
            _train_at(texts, BYTE_FALLBACK_FROM - 1)
            nearest = BYTE_FALLBACK_FROM - 1
        except _SizeError as error:
            problem, nearest = error.problem, error.nearest
    elif nearest >= BYTE_FALLBACK_FROM > vocab_size:
        nearest += BYTES
    raise DataError(f"--vocab-size {vocab_size}: {problem}; set {nearest}")


def _train_at(texts: Iterable[str], vocab_size: int) -> bytes:
    if vocab_size >= BYTE_FALLBACK_FROM:
        return _run_sentencepiece(texts, vocab_size, COVERAGE, byte_fallback=True)
    try:
        return _run_sentencepiece(texts, vocab_size, coverage=1.0, byte_fallback=False)
    except _SizeError as error:
        if error.nearest < vocab_size:
            raise
    return _run_sentencepiece(texts, vocab_size, COVERAGE, byte_fallback=False)


def _run_sentencepiece(texts: Iterable[str], vocab_size: int, coverage: float, byte_fallback: bool) -> bytes:
    model, failures = io.BytesIO(), list[BaseException]()

    def train() -> None:
        try:
            sentencepiece.set_random_generator_seed(0)
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_usable(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="unigram",
                max_sentence_length=MAX_CAPTION_BYTES,
                input_sentence_size=MAX_TRAINING_TEXTS,
                num_threads=4,  # the sums of the training depend on it, so it does not follow the machine
                pad_id=SentencePieceTokenizer.pad_id,
                unk_id=SentencePieceTokenizer.unk_id,
                bos_id=SentencePieceTokenizer.bos_id,
                eos_id=SentencePieceTokenizer.eos_id,
                minloglevel=2,
                character_coverage=coverage,
                byte_fallback=byte_fallback,
            )
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)

    # A signal's handler runs between two steps of Python's main thread, and the training is one of many minutes.
    worker = Thread(target=train, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(LOOK_EVERY)
        check_stop()
    if not failures:
        return model.getvalue()
    if isinstance(failures[0], RuntimeError | OSError):
        raise _explained(str(failures[0])) from None
    raise failures[0]


def _usable(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for text in filter(None, map(clean_caption, texts)):
        check_stop()
        empty = False
        yield text
    if empty:
        raise DataError("no text to train a tokenizer on: every caption is empty")


def _explained(message: str) -> Exception:
    if largest := re.search(r"value <= (\d+)", message):
        return _SizeError(f"these texts fill at most {largest[1]} pieces", int(largest[1]))
    if needed := re.search(r"required_chars\S* \S+ vs (\d+)", message):
        return _SizeError(f"the characters of these texts need at least {needed[1]} pieces", int(needed[1]))
    return DataError(f"sentencepiece cannot train: {message}")
