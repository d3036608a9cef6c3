"""Words to numbers and back: a sentencepiece model or a BERT vocabulary, behind one protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import xxhash
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from git_scale.errors import DataError
from git_scale.paths import special_kind
from git_scale.text_files import other_form


@dataclass(frozen=True)
class UncoveredText:
    """Holds the stretches of a text that no piece of the vocabulary covers."""

    unknown: list[str]
    """What becomes the unknown token: lost."""
    in_bytes: list[str]
    """What is spelled in pieces of one byte each: kept, at the cost of some tokens."""


class Tokenizer(Protocol):
    """What the rest of git_scale knows of a tokenizer. Picklable, so that loader processes can have it."""

    path: Path
    fingerprint: str
    """Hex, of the file's bytes."""
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    mask_id: int
    """Stands for a word that is to be predicted. Where the vocabulary has none, padding does: no text holds it, and
    what pads a text is seen by none of its words."""
    special_ids: frozenset[int]
    """Those of these, and of the unknown token: no word is among them."""

    def encode(self, text: str) -> list[int]:
        """The text's tokens, without begin and end; no text can spell a special token."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; special ones are dropped."""

    def uncovered(self, text: str) -> UncoveredText:
        """Which stretches of the text become the unknown token, and which are spelled in bytes."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A sentencepiece `.model`, a BERT `vocab.txt` or a BERT `tokenizer.json`, told apart by the name's ending.

    Raises DataError when the file is missing, unreadable or of another kind.
    """
    path = Path(path)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if path.suffix in (".txt", ".json"):
        return WordPieceTokenizer(path)
    raise DataError(f"{path}: a tokenizer is a sentencepiece .model, or a BERT vocab.txt or tokenizer.json")


class SentencePieceTokenizer:
    """A model with pad 0, unknown 1, begin 2, end 3, as train_sentencepiece makes it."""

    pad_id, unk_id, bos_id, eos_id = range(4)
    mask_id = pad_id
    special_ids = frozenset(range(4))

    def __init__(self, path: Path) -> None:
        data = _read(path)
        self.path, self.fingerprint = path, xxhash.xxh3_64_hexdigest(data)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, TypeError):
            raise DataError(
                f"{path}: not a sentencepiece model; tools/train_tokenizer.py makes one"
            ) from None
        self.vocab_size: int = self._model.get_piece_size()
        found = [self._model.pad_id(), self._model.unk_id(), self._model.bos_id(), self._model.eos_id()]
        if found != list(range(4)):
            raise DataError(
                f"{path}: its pad, unknown, begin and end token have the ids {found} instead of 0, 1, 2, 3;"
                " train one with tools/train_tokenizer.py"
            )
        self._in_bytes = frozenset(filter(self._model.is_byte, range(self.vocab_size)))
        self._beyond = self._in_bytes | {self.unk_id}

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceTokenizer, (self.path,)

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        special = (self.pad_id, self.bos_id, self.eos_id)
        return str(self._model.decode([int(number) for number in ids if number not in special]))

    def uncovered(self, text: str) -> UncoveredText:
        ids = self._model.encode(text)
        if self._beyond.isdisjoint(ids):
            return UncoveredText([], [])
        pieces = list(zip(ids, self._model.encode(text, out_type=str), strict=True))
        unknown = [
            piece for number, piece in pieces if number == self.unk_id
        ]  # which has the text's characters
        spelled = bytes(
            int(piece[1:-1], 16) for number, piece in pieces if number in self._in_bytes
        )  # "<0xC3>"
        return UncoveredText(unknown, list(spelled.decode("utf-8", "replace")))


class WordPieceTokenizer:
    """BERT, uncased: [CLS] begins a text and [SEP] ends it."""

    def __init__(self, path: Path) -> None:
        data = _read(path)
        self.path, self.fingerprint = path, xxhash.xxh3_64_hexdigest(data)
        self.vocabulary = (
            _words_of_json(data, path) if path.suffix == ".json" else _words_of_lines(data, path)
        )
        numbers = {word: number for number, word in enumerate(self.vocabulary)}
        missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in numbers]
        if missing:
            raise DataError(f"{path}: no BERT vocabulary, it lacks {', '.join(missing)}")
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.bos_id, self.eos_id = numbers["[PAD]"], numbers["[CLS]"], numbers["[SEP]"]
        self.mask_id, self._unk_id = numbers.get("[MASK]", self.pad_id), numbers["[UNK]"]
        self.special_ids = frozenset((self.pad_id, self.bos_id, self.eos_id, self.mask_id, self._unk_id))
        self._tokenizer = self.build_fast()

    def __reduce__(self) -> tuple[Any, ...]:
        return WordPieceTokenizer, (self.path,)

    def build_fast(self) -> FastTokenizer:
        """A new `tokenizers.Tokenizer` that does the same, to be changed at will."""
        return _build_wordpiece({word: number for number, word in enumerate(self.vocabulary)})

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        special = (self.pad_id, self.bos_id, self.eos_id)
        return str(self._tokenizer.decode([int(number) for number in ids if number not in special]))

    def uncovered(self, text: str) -> UncoveredText:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return UncoveredText(
            [text[begin:end] for number, (begin, end) in spans if number == self._unk_id], []
        )


def _words_of_lines(data: bytes, path: Path) -> list[str]:
    try:
        # not splitlines(): a vocabulary may hold U+2028 as a word
        return [word.rstrip("\r") for word in data.decode("utf-8-sig").removesuffix("\n").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a vocabulary (one word per line in UTF-8)") from None


def _words_of_json(data: bytes, path: Path) -> list[str]:
    """Out of Hugging Face's tokenizer.json, where it is that of an uncased BERT."""
    try:
        tree = json.loads(data)
        kind, numbers = tree["model"]["type"], tree["model"]["vocab"]
        lowers = tree["normalizer"]["lowercase"]
        words = sorted(numbers, key=lambda word: numbers[word])
        gaps = [numbers[word] for word in words] != list(range(len(words)))
        added = [item["content"] for item in tree.get("added_tokens", ()) if item["content"] not in numbers]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: not the tokenizer of an uncased BERT; give its vocab.txt") from None
    if kind != "WordPiece" or lowers is not True or gaps or added:
        found = f"{kind}, lowercase {lowers}" + (f", added {', '.join(added)}" if added else "")
        raise DataError(f"{path}: not the tokenizer of an uncased BERT ({found}); such ones only are read")
    return words


def _build_wordpiece(numbers: dict[str, int]) -> FastTokenizer:
    # no special tokens are declared to it: a caption that spells "[SEP]" is then three harmless pieces
    tokenizer = FastTokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def _read(path: Path) -> bytes:
    if kind := special_kind(path):
        raise DataError(f"{path}: the tokenizer cannot be read: it is {kind}; give a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from None
    if form := other_form(data):
        raise DataError(f"{path}: {form}")
    return data
