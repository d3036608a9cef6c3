"""Train a sentencepiece tokenizer on every text of a folder of tar shards.

python tools/train_tokenizer.py data/train data/tokenizer.model --vocab-size 8000

From --vocab-size 1000 on, characters without a piece of their own are spelled in bytes, so that no text is lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

from git_scale.console import path, tool, whole
from git_scale.data.coverage import coverage_of, texts_of
from git_scale.data.store import SampleStore, open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.data.train_tokenizer import (
    BYTE_FALLBACK_FROM,
    BYTES,
    MAX_PIECES,
    MIN_PIECES,
    train_sentencepiece,
)
from git_scale.errors import DataError
from git_scale.exit import run_and_exit
from git_scale.progress import remark
from git_scale.stop import StopRequest

EXAMPLES = 3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=path, help="folder of tar shards, or one .tar")
    parser.add_argument("destination", type=path, help="the .model to write; one that is there stays")
    parser.add_argument(
        "--vocab-size",
        type=whole(MIN_PIECES, MAX_PIECES),
        required=True,
        help="must equal model.vocab_size of the run",
    )
    return parser.parse_args(argv)


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.destination.suffix != ".model":
        raise DataError(f"{args.destination}: the name of a sentencepiece tokenizer ends in .model")
    if args.destination.exists():
        raise DataError(
            f"{args.destination}: exists; runs may depend on it: remove it or choose another name"
        )
    with StopRequest():
        texts = TextsOfShards(open_store(args.shards))
        train_sentencepiece(texts, args.destination, args.vocab_size)
        for line in describe(args, texts):
            print(line)
    return 0


def describe(args: argparse.Namespace, texts: TextsOfShards) -> Iterator[str]:
    """What was trained, on what, and how it spells the texts."""
    tokenizer, samples = load_tokenizer(args.destination), len(texts.store)
    yield f"{args.destination}: {tokenizer.vocab_size} tokens, from {samples} samples of {args.shards}"
    if lost := len(texts.left_out):
        yield f"  left out: {lost} samples ({100 * lost / samples:.1f} %) without a readable text"
    if args.vocab_size < BYTE_FALLBACK_FROM:
        yield (
            f"  no byte fallback below --vocab-size {BYTE_FALLBACK_FROM}: its {BYTES} pieces would take most of the"
            " vocabulary; a character that these texts do not have is lost"
        )
    yield f"  {coverage_of(tokenizer, texts).describe()}"
    for text in islice(texts, EXAMPLES):
        ids = tokenizer.encode(text)
        yield f"  {text!r}: {len(ids)} tokens: {' | '.join(tokenizer.decode([number]) for number in ids)}"


class TextsOfShards:
    """Yields every caption, question and answer of the shards; samples whose text cannot be read are left out."""

    def __init__(self, store: SampleStore) -> None:
        self.store = store
        self.left_out: set[int] = set()
        """Numbers of samples; each is named on standard error when it is met first."""

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self.store)):
            try:
                yield from texts_of(self.store.read_text(number))
            except DataError as error:
                if number not in self.left_out:
                    remark(f"left out: {error}")
                self.left_out.add(number)


if __name__ == "__main__":
    run_and_exit(main)  # the training of a tokenizer that was stopped would go on to its end
