from __future__ import annotations

import pickle
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import BertWordPieceTokenizer

from git_scale.data.tokenizer import Tokenizer, UncoveredText, load_tokenizer
from git_scale.data.train_tokenizer import train_sentencepiece
from git_scale.errors import DataError
from git_scale.stop import Stopped, StopRequest

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
    assert tokenizer.vocab_size == len(VOCAB) and tokenizer.vocabulary == VOCAB
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
    with pytest.raises(
        DataError, match=r"--vocab-size 5000: these texts fill at most \d+ pieces; set \d+$"
    ) as error:
        train_sentencepiece(TEXTS, tmp_path / "t.model", 5000)
    assert not (tmp_path / "t.model").exists()
    largest = int(str(error.value).split("; set ")[1])
    train_sentencepiece(TEXTS, tmp_path / "t.model", largest)
    assert load_tokenizer(tmp_path / "t.model").vocab_size == largest
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_sentencepiece(["", " \n"], tmp_path / "s.model", 30)


HAN = [chr(0x4E00 + number) for number in range(1100)]
FEW = ["a dog runs"]
ACCENTS = ["caf\u00e9 dog 30\u00b0", *(f"a dog runs in the park on day {n}" for n in range(200))]
CHINESE = ["".join(random.Random(number).choices(HAN, k=30)) for number in range(600)]


@pytest.mark.parametrize("texts", [FEW, ACCENTS, CHINESE], ids=["few", "accents", "chinese"])
@pytest.mark.parametrize("size", [5, 60, 999, 1000, 1100, 40_000])
def test_a_size_that_does_not_fit_names_one_that_does(tmp_path: Path, texts: list[str], size: int) -> None:
    """ "Set that or less" was answered by "set clearly more"."""
    with pytest.raises(DataError, match=rf"--vocab-size {size}: .* pieces; set \d+$") as error:
        train_sentencepiece(texts, tmp_path / "t.model", size)
    works = int(str(error.value).split("; set ")[1])
    train_sentencepiece(texts, tmp_path / "t.model", works)
    assert load_tokenizer(tmp_path / "t.model").vocab_size == works


@pytest.mark.parametrize("size", [-1, 0, 1, 4, 1_000_001, 3_000_000_000])
def test_a_size_that_no_vocabulary_has_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=rf"--vocab-size {size}: from 5 to 1000000 are possible"):
        train_sentencepiece(FEW, tmp_path / "t.model", size)
    with pytest.raises(DataError, match=r"--vocab-size 1000000: .* pieces; set \d+$"):
        train_sentencepiece(FEW, tmp_path / "t.model", 1_000_000)


def test_a_link_to_nothing_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.model").symlink_to("scratch/real.model")
    train_sentencepiece(TEXTS, tmp_path / "t.model", 30)
    assert (tmp_path / "t.model").is_symlink() and (tmp_path / "scratch" / "real.model").is_file()
    assert load_tokenizer(tmp_path / "t.model").vocab_size == 30


@pytest.fixture(scope="module")
def with_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 9))) for _ in range(900)]
    texts = [" ".join(draw.choices(words, k=9)) for _ in range(3000)]
    path = tmp_path_factory.mktemp("bytes") / "t.model"
    train_sentencepiece([*texts, "caf\u00e9"], path, 1000)
    return load_tokenizer(path)


@pytest.mark.parametrize(
    "text",
    [
        "caf\u00e9",
        "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "at 30\u00b0",
        "\u4e2d\u6587",
        "<0x41>",
    ],
)
def test_no_character_is_lost_from_a_vocabulary_of_1000_on(
    with_bytes: Tokenizer, model: Path, text: str
) -> None:
    assert with_bytes.decode(with_bytes.encode(text)) == text
    assert with_bytes.uncovered(text).unknown == []
    small = load_tokenizer(model)  # the negative control: 30 pieces
    assert small.decode(small.encode(text)) != text and small.uncovered(text).unknown != []


def test_what_has_no_piece_is_told_apart(with_bytes: Tokenizer, model: Path, vocab: Path) -> None:
    assert with_bytes.uncovered("abe 3\u00b0 \u4e2d") == UncoveredText([], ["3", "\u00b0", "\u4e2d"])
    assert with_bytes.uncovered("abe") == UncoveredText([], [])
    assert load_tokenizer(model).uncovered("dog 3\u00b0 cat!") == UncoveredText(["3\u00b0", "!"], [])
    assert load_tokenizer(vocab).uncovered("a Zebra dog \u4e2d") == UncoveredText(["Zebra", "\u4e2d"], [])


def test_a_small_vocabulary_keeps_every_character_that_fits(tmp_path: Path) -> None:
    """One of 9,000 characters, which the default coverage leaves out."""
    texts = ["abc cab bca"] * 1000 + ["a\u00b0"]
    train_sentencepiece(texts, tmp_path / "t.model", 10)
    assert load_tokenizer(tmp_path / "t.model").uncovered("a\u00b0") == UncoveredText([], [])
    many = ["abc cab bca"] * 10_000 + ["".join(map(chr, range(0x4E00, 0x4E00 + 30)))]
    train_sentencepiece(many, tmp_path / "s.model", 10)  # these do not fit
    assert load_tokenizer(tmp_path / "s.model").uncovered("a\u4e00") == UncoveredText(["\u4e00"], [])


def test_a_place_that_cannot_be_written_is_refused_before_the_training(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        raise AssertionError("read")
        yield ""

    class Texts:
        __iter__ = staticmethod(texts)

    (tmp_path / "folder.model").mkdir()
    (tmp_path / "file").write_text("")
    for place, words in (
        (tmp_path / "folder.model", "is a folder: name a file in it"),
        (tmp_path / "file" / "t.model", "cannot be written: .*; choose another place"),
    ):
        with pytest.raises(DataError, match=words):
            train_sentencepiece(Texts(), place, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.model"]


def test_a_stop_is_heard_while_sentencepiece_trains(tmp_path: Path) -> None:
    """Its training takes minutes of one call, in which no handler of Python runs."""
    draw = random.Random(0)
    texts = [
        " ".join("".join(draw.choices("abcdefghijklmnop", k=7)) for _ in range(9)) for _ in range(20_000)
    ]

    def all_read() -> Iterator[str]:
        yield from texts
        signal.raise_signal(signal.SIGTERM)  # what follows is sentencepiece's own

    class Texts:
        __iter__ = staticmethod(all_read)

    with StopRequest(), pytest.raises(Stopped):
        train_sentencepiece(Texts(), tmp_path / "t.model", 8000)
    assert list(tmp_path.iterdir()) == []
