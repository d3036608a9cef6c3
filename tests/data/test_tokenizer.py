from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import BertWordPieceTokenizer

from git_scale.data.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from git_scale.errors import DataError

WORDS = [
    "red",
    "green",
    "blue",
    "dog",
    "cat",
    "horse",
    "running",
    "sitting",
    "near",
    "table",
    "chair",
    "window",
]
TEXTS = [f"a {a} {b} is {c}" for a in WORDS for b in WORDS for c in WORDS if a < b]
VOCAB = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "run", "##ning", "cafe"]
VOCAB += ["sep", "[", "]", ".", ",", "\u2028x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "new" / "t.model"
    train_sentencepiece(TEXTS, path, 30)
    return path


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{word}\n" for word in VOCAB).encode())
    return path


def check_protocol(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    assert ids and not special & set(ids) and max(ids) < tokenizer.vocab_size
    wrapped = [tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id, tokenizer.pad_id]
    assert tokenizer.decode(wrapped) == tokenizer.decode(ids) == text
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(text) == ids and copy.fingerprint == tokenizer.fingerprint
    assert copy.path == tokenizer.path


def test_sentencepiece(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 2, 3, 30)
    check_protocol(tokenizer, "a red dog is sitting near a window")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert tokenizer.encode(TEXTS[7]) == theirs.encode(TEXTS[7])
    for spelled in ("</s>", "<s>", "<pad>"):
        assert not {0, 2, 3} & set(tokenizer.encode(spelled))


def test_wordpiece_equals_bert(vocab: Path) -> None:
    tokenizer = load_tokenizer(str(vocab))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 3, 4)
    assert tokenizer.vocab_size == len(VOCAB)
    check_protocol(tokenizer, "a dog running.")
    theirs = BertWordPieceTokenizer(str(vocab), lowercase=True)
    for text in ("A Dog, running.", "Caf\u00e9 dog", "unknown dog\u4e2da"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    # where BERT would take a spelled token for the token, a caption stays a caption
    assert theirs.encode("a [SEP] dog", add_special_tokens=False).ids == [6, 4, 7]
    assert tokenizer.encode("a [SEP] dog") == [6, 12, 11, 13, 7]


def test_windows_line_ends(vocab: Path) -> None:
    expected = load_tokenizer(vocab).encode("a dog running")
    vocab.write_bytes(vocab.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(vocab).encode("a dog running") == expected


def test_hugging_faces_file_of_an_uncased_bert(vocab: Path, tmp_path: Path) -> None:
    theirs = BertWordPieceTokenizer(str(vocab), lowercase=True)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == len(VOCAB) and tokenizer.words == VOCAB
    assert tokenizer.encode("A Dog, running.") == load_tokenizer(vocab).encode("A Dog, running.")
    check_protocol(tokenizer, "a dog running.")


def test_other_files_of_hugging_face_are_refused(vocab: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    cased = BertWordPieceTokenizer(str(vocab), lowercase=False)
    cased.save(str(path))
    with pytest.raises(
        DataError, match=r"not the tokenizer of an uncased BERT \(WordPiece, lowercase False\)"
    ):
        load_tokenizer(path)
    more = BertWordPieceTokenizer(str(vocab), lowercase=True)
    more.add_tokens(["giraffe"])
    more.save(str(path))
    with pytest.raises(DataError, match="added giraffe"):
        load_tokenizer(path)
    for text in ("{", "[]", '{"model": {"type": "BPE", "vocab": {}}}', '{"model": 3, "normalizer": null}'):
        path.write_text(text)
        with pytest.raises(DataError, match="not the tokenizer of an uncased BERT"):
            load_tokenizer(path)


def test_what_cannot_be_loaded(tmp_path: Path, model: Path) -> None:
    cases = {
        "missing.model": None,
        "bad.model": b"rubbish",
        "empty.model": b"",
        "bad.txt": b"a\nb",
        "t.bin": b"",
    }
    cases["latin.txt"] = b"[PAD]\ncaf\xe9"
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            load_tokenizer(tmp_path / name)
    with pytest.raises(DataError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path / "bad.txt")


def test_a_model_with_other_ids_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "other"), vocab_size=30, minloglevel=2
    )
    with pytest.raises(DataError, match=r"have the ids \[-1, 0, 1, 2\] instead of 0, 1, 2, 3"):
        load_tokenizer(tmp_path / "other.model")


def test_training_is_deterministic_and_whole(model: Path, tmp_path: Path) -> None:
    train_sentencepiece(iter(TEXTS), tmp_path / "again.model", 30)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]
    train_sentencepiece(TEXTS[:300], tmp_path / "other.model", 30)
    assert load_tokenizer(tmp_path / "other.model").fingerprint != load_tokenizer(model).fingerprint


def test_captions_that_cannot_fill_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--vocab-size 5000: these captions fill at most (\d+)") as error:
        train_sentencepiece(TEXTS, tmp_path / "t.model", 5000)
    assert not (tmp_path / "t.model").exists()
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    train_sentencepiece(TEXTS, tmp_path / "t.model", largest)
    assert load_tokenizer(tmp_path / "t.model").vocab_size == largest
    with pytest.raises(DataError, match=r"--vocab-size 6: these captions have .* set clearly more"):
        train_sentencepiece(TEXTS, tmp_path / "s.model", 6)
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_sentencepiece(["", " \n"], tmp_path / "s.model", 30)
