"""The tokenizer against what the Java program answered, and against that program itself where it is installed.

ptb_vectors.json: [caption, the tokens that pycocoevalcap 1.2 made of it with Java 17]; the line that followed each
caption there was the word "next".
"""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from git_scale.metrics.ptb import tokenize

VECTORS = json.loads((Path(__file__).parent / "ptb_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("caption", "tokens"), VECTORS)
def test_captions_are_cut_as_the_java_program_cut_them(caption: str, tokens: str) -> None:
    assert " ".join(tokenize(caption)) == tokens


def test_splitting_at_blanks_would_not_do() -> None:
    """The negative control: the vectors are no trivial ones."""
    naive = [caption.lower().split() != tokens.split() for caption, tokens in VECTORS]
    assert sum(naive) > 0.9 * len(VECTORS) > 100


@pytest.mark.parametrize("caption", ["", "   ", "\n", ". . .", "\u200b\ue000\U0001f600", '"?!" -- ...'])
def test_nothing_but_signs_gives_no_token(caption: str) -> None:
    assert [token for token in tokenize(caption) if token != "?!"] == []


def test_any_white_space_separates() -> None:
    assert tokenize("a\tdog\nruns\u2028off\r\nnow") == ["a", "dog", "runs", "off", "now"]


@pytest.mark.parametrize(
    "piece", ["a-", "<a ", "@", "a.", "1,", "a'", "!a", '<a b="', "a/", "x@", "ab'ab-", "(555) "]
)
def test_a_long_text_of_one_piece_comes_back_whole(piece: str) -> None:
    """No rule may try every way to cut a forged text: with such a rule this would not end."""
    text = piece * 1500
    letters = [sign for sign in text if sign.isalnum()]
    found = "".join(tokenize(text)).replace("-lrb-", "").replace("-rrb-", "")
    assert [sign for sign in found if sign.isalnum()] == letters


WORDS = """
    a the man dog kid's red black-and-white T-shirt T-shirts in on riding Two 2 12 1st 10:30 5.00 1,000
    1/2 1990s '90s U.S. p.m. Mr. St. vs. etc. J. can't don't isn't it's they're we've I'll cannot gonna
    wanna rock'n'roll o'clock men's dogs' and/or s/he AT&T R&B & #1 % 50% $5 $5.00 ice-cream frisbee
    caf\u00e9 jalape\u00f1o \u2014 \u2026 ... !! ? ?! ( ) [ ] \u201cstop\u201d \u2018go\u2019 it\u2019s
    don\u2019t ;) :( <3 www.foo.com user@x.com half-pipe x-ray 4x4 7-Eleven 747 #23 6'2" ten-year-old 24/7
    -- * 'em 'til y'all ma'am Ph.D. D.C. O'Brien's B&W \u00b0 \u00bd wow!so hey,you 3-1 Jan. Blvd. ft.
    lbs. approx. Co. sun. no. fig.
    """
MARKS = ["", "", "", "", ",", ".", "!", ";", ":", ")", '"', "'", "'s", "...", "-", '."', ".)", " .", " ,"]


@pytest.mark.skipif(not shutil.which("java"), reason="Java is not installed")
def test_generated_captions_agree_with_the_java_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer

    # it writes its input beside its own jar, which may be a folder that cannot be written
    jar = (
        Path(find_spec("pycocoevalcap.tokenizer.ptbtokenizer").origin).parent
        / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    )
    monkeypatch.setattr(ptbtokenizer, "STANFORD_CORENLP_3_4_1_JAR", str(jar))
    monkeypatch.setattr(ptbtokenizer, "__file__", str(tmp_path / "ptbtokenizer.py"))
    rng, words = random.Random(2205), WORDS.split()
    captions = [
        " ".join(["see", *(rng.choice(words) + rng.choice(MARKS) for _ in range(rng.randint(3, 10)))])
        for _ in range(1000)
    ]
    answers = ptbtokenizer.PTBTokenizer().tokenize(
        {n: [{"caption": text}] for n, text in enumerate(captions)}
    )
    differ = [
        (text, answers[n][0], " ".join(tokenize(text)))
        for n, text in enumerate(captions)
        if answers[n][0] != " ".join(tokenize(text))
    ]
    assert differ == []
