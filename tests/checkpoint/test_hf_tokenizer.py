"""Our tokenizers as transformers' files: the same numbers for any text, the same texts for any numbers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as FastTokenizer

from git_scale.checkpoint.hf_tokenizer import write_tokenizer_files
from git_scale.data.tokenizer import (
    SentencePieceTokenizer,
    WordPieceTokenizer,
    load_tokenizer,
)
from git_scale.data.train_tokenizer import train_sentencepiece
from git_scale.errors import CheckpointError

NOUNS = ["dogs", "cat", "horse", "chairs", "caf\u00e9", "table", "window", "street", "market", "bridge"]
NOUNS += ["kitchen", "garden", "mountain", "river", "airplane", "bicycle", "umbrella", "sandwich"]
NOUNS += ["elephant", "giraffe", "skateboard", "children", "woman", "player", "train", "bottle"]
VERBS = ["running", "sitting", "standing", "jumping", "looking", "holding", "eating", "riding", "walking"]
VERBS += ["sleeping", "d\u00e9j\u00e0", "don't"]
CAPTIONS = [
    f"{count} {noun} {verb} near the {other}"
    for number, noun in enumerate(NOUNS)
    for count, verb in zip(("a", "two", "the", "several"), VERBS[number % 9 :], strict=False)
    for other in NOUNS[number % 5 :: 7]
]
ODD = [
    "",
    " ",
    "a  red   dog",
    "  leading and trailing  ",
    "tab\tnew\nline",
    "\u4e2d\u6587 dog \u4e2d",
    "\u4e2d",
    "cafe\u0301 caf\u00e9 CAF\u00c9",
    "\uff21\uff22 \u2168 \ufb01ne",
    "zzz qqq",
    "emoji \U0001f600\U0001f600 dog",
    "a\u00a0red\u3000dog",
    "x\u200bz\u00adq",
    "1234 5,6.7!",
    "\u2581a \u2581\u2581dog",
]


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    letters = "abcdeghinorstuv  \u00e9\u00e0'\u4e2d.,Z"
    words = " ".join(CAPTIONS).split()
    texts = ["".join(draw.choices(letters, k=draw.randrange(1, 40))) for _ in range(count)]
    return texts + [" ".join(draw.choices(words, k=draw.randrange(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    train_sentencepiece(CAPTIONS, path, 80)
    return path


def export(tokenizer: SentencePieceTokenizer | WordPieceTokenizer, folder: Path) -> FastTokenizer:
    folder.mkdir()
    write_tokenizer_files(tokenizer, 40, folder)
    return FastTokenizer.from_file(str(folder / "tokenizer.json"))


def test_a_unigram_model_gives_sentencepieces_numbers(model: Path, tmp_path: Path) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    fast = export(load_tokenizer(model), tmp_path / "out")
    texts = CAPTIONS + ODD + random_texts(300)
    wrong = [text for text in texts if fast.encode(text, add_special_tokens=False).ids != theirs.encode(text)]
    assert wrong == []
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()


def test_byte_fallback_gives_sentencepieces_numbers_and_texts(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 9))) for _ in range(900)]
    texts = [" ".join(draw.choices(words, k=9)) for _ in range(3000)]
    train_sentencepiece([*texts, "caf\u00e9"], tmp_path / "bytes.model", 1000)
    ours = load_tokenizer(tmp_path / "bytes.model")
    fast = export(ours, tmp_path / "out")
    letters = "abcdegh  \u00e9\u00b0\u4e2d\U0001f600<>0xA41Z\u2581\u0e35'\"\n\t"
    odd = ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(500)]
    spelled = [f"{text[:5]}<0x{draw.randrange(256):02X}>{text[5:]}" for text in odd]  # texts, no bytes
    for text in [*ODD, *texts[:100], *odd, *spelled]:
        ids = ours.encode(text)
        assert fast.encode(text, add_special_tokens=False).ids == ids
        assert fast.decode([2, *ids, 3], skip_special_tokens=True) == ours.decode(ids)
    assert ours.decode(ours.encode("30\u00b0 \U0001f600 \u4e2d\u6587")) == "30\u00b0 \U0001f600 \u4e2d\u6587"


def test_its_texts_are_the_same(model: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(model)
    fast = export(ours, tmp_path / "out")
    for text in CAPTIONS:
        ids = [2, *ours.encode(text), 3, 0, 0]
        assert fast.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text
    draw = random.Random(1)
    for _ in range(200):
        ids = [draw.randrange(4, 80) for _ in range(draw.randrange(1, 9))]
        assert fast.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_transformers_sees_its_special_tokens(model: Path, tmp_path: Path, vocab_file: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="loads the files with transformers")
    for file, name in ((model, "sp"), (vocab_file, "bert")):
        ours = load_tokenizer(file)
        export(ours, tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        found = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id)
        assert found == (ours.pad_id, ours.bos_id, ours.eos_id)
        assert (theirs.cls_token_id, theirs.sep_token_id) == (ours.bos_id, ours.eos_id)
        assert len(theirs) == ours.vocab_size and theirs.unk_token_id is not None
        text = "a red dog"
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text), ours.eos_id]
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == ours.decode(
            ours.encode(text)
        )


def test_a_bert_vocabulary_keeps_its_numbers(vocab_file: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(vocab_file)
    fast = export(ours, tmp_path / "out")
    for text in ("A red DOG, running.", "caf\u00e9 - 1 2 \u4e2d", "tables  near\tcats"):
        assert fast.encode(text, add_special_tokens=False).ids == ours.encode(text)
    again = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert isinstance(again, WordPieceTokenizer) and again.vocabulary == ours.vocabulary
    assert load_tokenizer(tmp_path / "out" / "vocab.txt").fingerprint == ours.fingerprint


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(tmp_path / "bpe"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
    )
    with pytest.raises(CheckpointError, match="not a unigram model"):
        export(load_tokenizer(tmp_path / "bpe.model"), tmp_path / "out")
