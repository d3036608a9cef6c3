"""Train a sentencepiece tokenizer on every text of a folder of tar shards.

python tools/train_tokenizer.py data/train data/tokenizer.model --vocab-size 8000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice

from git_scale.console import path, tool, whole
from git_scale.data.captions import TextRecord, clean_caption
from git_scale.data.shards import ShardSet, open_shards
from git_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from git_scale.errors import DataError

EXAMPLES = 3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=path, help="folder of tar shards, or one .tar")
    parser.add_argument("destination", type=path, help="the .model to write")
    parser.add_argument(
        "--vocab-size", type=whole(1), required=True, help="must equal model.vocab_size of the run"
    )
    return parser.parse_args(argv)


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.destination.suffix != ".model":
        raise DataError(f"{args.destination}: the name of a sentencepiece tokenizer ends in .model")
    shards = open_shards(args.shards)
    train_sentencepiece(read_texts(shards), args.destination, args.vocab_size)
    tokenizer = load_tokenizer(args.destination)
    print(f"{args.destination}: {tokenizer.vocab_size} tokens, from {len(shards)} samples of {args.shards}")
    for text in islice(filter(None, map(clean_caption, read_texts(shards))), EXAMPLES):
        ids = tokenizer.encode(text)
        print(f"  {text!r}: {len(ids)} tokens: {' | '.join(tokenizer.decode([number]) for number in ids)}")
    return 0


def read_texts(shards: ShardSet) -> Iterator[str]:
    """Every caption, question and answer; samples whose text cannot be read are left out with a message."""
    for number in range(len(shards)):
        try:
            yield from texts_of(shards.read_text(number))
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)


def texts_of(record: TextRecord) -> Iterator[str]:
    yield from record.captions
    yield from record.meta.get("clip_captions", [])
    for question in record.questions:
        yield question["question"]
        yield from question.get("answers", [])


if __name__ == "__main__":
    sys.exit(main())
