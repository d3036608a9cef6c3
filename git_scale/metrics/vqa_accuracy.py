"""VQA accuracy: an answer is right when three of ten people gave it (VQA v2's definition, arXiv 1505.00468).

As in the published program (GT-Vision-Lab/VQA), both sides are normalised first, but for a question to which all
people gave the same answer: there both stay as they are written.
"""

from __future__ import annotations

import re

from git_scale.metrics.metric import Metric

ENOUGH = 3  # people who must agree with an answer

_SIGNS = ';/[]"{}()=+\\_->@<`,?!'  # not the apostrophe, the colon and the period
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(["a", "an", "the"])
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"""
# "dont" and, of two apostrophes, either one missing; not "shell", "were" and "id", which are words.
_MENDED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as the program has it


def answer_accuracy(generated: str, answers: list[str]) -> float:
    """min(people who agree / 3, 1), averaged over leaving out each one of the people.

    Of three answers or fewer none is left out: it is the share that agrees, and with one answer exact match. Where
    all of more people wrote the same, that is compared as it is written.
    """
    clean = [" ".join(text.split()) for text in (generated, *answers)]
    if len(answers) <= ENOUGH or len(set(clean[1:])) > 1:
        clean = [normalize_answer(text) for text in clean]
    agree, people = clean[1:].count(clean[0]), len(answers)
    if people <= ENOUGH:
        return agree / people
    if_one_of_them_is_left_out = min((agree - 1) / ENOUGH, 1.0) * agree
    return (if_one_of_them_is_left_out + min(agree / ENOUGH, 1.0) * (people - agree)) / people


def normalize_answer(text: str) -> str:
    """Lower case without articles and punctuation, number words as digits, apostrophes of contractions mended.

    A sign vanishes when a blank is beside it anywhere in the text or a comma stands between two digits; else a blank
    takes its place: "1,000-2,000" -> "10002000", "black/white" -> "black white".
    """
    text = " ".join(text.split())
    has_comma = bool(_COMMA_IN_NUMBER.search(text))
    plain = text
    for sign in _SIGNS:
        vanishes = has_comma or f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if vanishes else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


VQA_ACCURACY = Metric.mean_of(
    lambda texts: [answer_accuracy(item.generated, item.references) for item in texts]
)
