"""A trained model in Python: `git_scale.load(folder)`, then caption, answer, score, classify.

Everywhere, `images` is one image or a list of them, and a list of results in the same order comes back. An image
is a path, bytes, a PIL image, an array [H, W, 3] or a tensor [3, H, W], see git_scale/data/clips.py; for a video
model also the path of a video or a list of frames (so the frames of one clip are a list within the list).
A result depends neither on the images beside it nor on the size of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast, overload

import torch

from git_scale.checkpoint.state import TRAINED
from git_scale.data.captions import clean_caption
from git_scale.data.clips import Clip, ClipLike, Picture
from git_scale.errors import UserError
from git_scale.inference.generate import Decoding, GeneratedText
from git_scale.inference.grouping import in_shape_of, per_image
from git_scale.inference.likelihood import TextToScore
from git_scale.inference.predictor import Predictor, load_predictor
from git_scale.inference.trie import Trie
from git_scale.tasks.prompts import Prompts

Images: TypeAlias = Clip | Picture | Sequence[ClipLike]

EXHAUSTIVE = 64  # names that are scored one by one; of more, the best are searched for
CLASSIFY_BEAMS = 8


@dataclass(frozen=True)
class ScoredText:
    """Holds a text and what it was ranked by: the higher the better."""

    text: str
    score: float


def load(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
    weights: str = TRAINED,
) -> ImageToText:
    """The model of a run's folder, a checkpoint, an imported model, a Hugging Face or a Microsoft GIT.

    `device` None: a GPU where there is one. `tokenizer`: a BERT vocab.txt or sentencepiece .model, for a folder
    that has none. `weights`: ema, for the moving average that a run has kept of them (optimizer.ema). Raises
    CheckpointError, or UserError for a device that is not there.

    >>> git_scale.load("runs/demo").caption("photo.png")
    ['a big red square']
    """
    path = None if tokenizer is None else Path(tokenizer)
    return ImageToText(load_predictor(Path(folder), device, dtype, path, weights))


class ImageToText:
    """Says what a trained model says of images. `predictor` holds model, tokenizer, recipe and `batch_size`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._tokenizer = predictor.tokenizer
        self._run = predictor.run
        self._prompts = Prompts(predictor.tokenizer, predictor.run.data)

    def prepare(self, image: ClipLike) -> Clip:
        """One image or clip as the model sees it, which every method takes too. May run in threads.

        Raises DataError for what is unreadable or of another kind.

        >>> model.prepare("photo.png").pixels.shape
        (1, 3, 32, 32)
        """
        return self.predictor.prepare(image)

    def caption(
        self,
        images: Images,
        beams: int = 4,
        length_penalty: float = 0.6,
        max_new_tokens: int | None = None,
        prefix: str = "",
    ) -> list[str]:
        """One caption per image, the best of a beam search (beams=1: greedy).

        Captions begin with the words of `prefix`. `max_new_tokens` is by default the recipe's eval.max_new_tokens.

        >>> model.caption(["photo.png", "other.png"])
        ['a big red square', 'a tiny blue square']
        """
        found = self.candidates(images, 1, beams, length_penalty, max_new_tokens, prefix)
        return [best.text for (best,) in found]

    def candidates(
        self,
        images: Images,
        count: int = 4,
        beams: int = 4,
        length_penalty: float = 0.6,
        max_new_tokens: int | None = None,
        prefix: str = "",
    ) -> list[list[ScoredText]]:
        """The `count` best captions in each image's beam search, best first, scored as the search ranks them.

        `count` is at most `beams`. Raises ConfigError for numbers that are no search, as `caption` and `answer` do.

        >>> best, second = model.candidates("photo.png", count=2)[0]
        >>> best.text, best.score > second.score
        ('a big red square', True)
        """
        begin = self._caption_prefix(prefix)
        new = self._room(len(begin)) if max_new_tokens is None else max_new_tokens
        decoding = Decoding(max_new_tokens=new, beams=beams, length_penalty=length_penalty, n_best=count)
        items = _listed(images)
        found = self.predictor.generate(items, [[begin]] * len(items), decoding)
        return [[self._scored(text, begin) for text in texts] for (texts,) in found]

    def sample(
        self,
        images: Images,
        count: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        prefix: str = "",
        seed: int = 0,
    ) -> list[list[str]]:
        """`count` captions per image, drawn at random: the same for the same image and seed.

        >>> model.sample("photo.png", count=2, temperature=0.1)
        [['a big red square', 'a big red square']]
        """
        begin = self._caption_prefix(prefix)
        new = self._room(len(begin)) if max_new_tokens is None else max_new_tokens
        decoding = Decoding(
            max_new_tokens=new, n_best=count, temperature=temperature, top_k=top_k, top_p=top_p
        )
        found = self.predictor.sample(_listed(images), begin, decoding, seed)
        return [[self._scored(text, begin).text for text in texts] for texts in found]

    @overload
    def answer(
        self, images: Images, questions: str | list[str], beams: int = ..., length_penalty: float = ...,
        max_new_tokens: int | None = ...,
    ) -> list[str]: ...  # fmt: skip
    @overload
    def answer(
        self, images: Images, questions: list[list[str]], beams: int = ..., length_penalty: float = ...,
        max_new_tokens: int | None = ...,
    ) -> list[list[str]]: ...  # fmt: skip
    def answer(
        self,
        images: Images,
        questions: str | list[str] | list[list[str]],
        beams: int = 4,
        length_penalty: float = 0.6,
        max_new_tokens: int | None = None,
    ) -> list[str] | list[list[str]]:
        """Answers to one question for all images, one for each, or a list for each; in the questions' shape.

        The questions about an image share its image pass. Of a question's first data.max_text_tokens tokens (40 for
        GIT) all but two count, the last ones, as in the authors' code.

        >>> model.answer("photo.png", "what colour?")
        ['red']
        >>> model.answer(["photo.png", "other.png"], [["what colour?", "how big?"], ["how big?"]])
        [['red', 'big'], ['tiny']]
        """
        items = _listed(images)
        asked = per_image(questions, len(items), "questions")
        prefixes = [[self._question_prefix(question) for question in row] for row in asked]
        room = self._room(self._run.data.max_text_tokens - 1)
        new = room if max_new_tokens is None else max_new_tokens
        decoding = Decoding(max_new_tokens=new, beams=beams, length_penalty=length_penalty)
        found = self.predictor.generate(items, prefixes, decoding)
        answers = [[self._tokenizer.decode(texts[0].tokens) for texts in row] for row in found]
        return in_shape_of(questions, answers)

    @overload
    def score(self, images: Images, texts: str | list[str], question: str = ...) -> list[float]: ...
    @overload
    def score(self, images: Images, texts: list[list[str]], question: str = ...) -> list[list[float]]: ...
    def score(
        self, images: Images, texts: str | list[str] | list[list[str]], question: str = ""
    ) -> list[float] | list[list[float]]:
        """Natural log-probabilities of one text for all images, one for each, or a list for each.

        Of the whole text, its end included. As captions, or as answers to a `question`. The texts about an image
        share its image pass.

        >>> right, wrong = model.score("photo.png", [["a big red square", "a tiny blue square"]])[0]
        >>> right > wrong
        True
        """
        items = _listed(images)
        begin = self._question_prefix(question) if question else [self._tokenizer.bos_id]
        rows = per_image(texts, len(items), "texts")
        split = [[(begin, self._encode(text)) for text in row] for row in rows]
        return in_shape_of(texts, self.predictor.log_likelihoods(items, split))

    def classify(
        self, images: Images, names: Sequence[str], top: int = 1, question: str = ""
    ) -> list[list[ScoredText]]:
        """The `top` likeliest of `names`, best first, with their log-probabilities; no other text can come out.

        Up to 64 names are all scored. Among more, thousands say, a beam search that can only spell names finds them.
        Names that the tokenizer cannot tell apart count as the first of them.

        >>> [best.text for best in model.classify("photo.png", ["blue", "red"], top=2, question="what colour?")[0]]
        ['red', 'blue']
        """
        items = _listed(images)
        spelled: dict[tuple[int, ...], str] = {}
        for name in names:
            spelled.setdefault(tuple(self._encode(name)), name)
        if not 1 <= top <= len(spelled):
            raise UserError(f"top={top}: of {len(spelled)} different names")
        begin = self._question_prefix(question) if question else [self._tokenizer.bos_id]
        if len(spelled) <= EXHAUSTIVE:
            texts: list[TextToScore] = [(begin, list(tokens)) for tokens in spelled]
            scores = self.predictor.log_likelihoods(items, [texts] * len(items))
            ranked = [
                sorted(map(ScoredText, spelled.values(), row), key=lambda item: -item.score) for row in scores
            ]
            return [row[:top] for row in ranked]
        decoding = Decoding(
            max_new_tokens=max(map(len, spelled)) + 1,
            beams=max(CLASSIFY_BEAMS, top),
            length_penalty=0.0,
            n_best=top,
        )
        trie = Trie(spelled, self._tokenizer.eos_id)
        found = self.predictor.generate(items, [[begin]] * len(items), decoding, trie)
        return [[ScoredText(spelled[tuple(text.tokens)], text.score) for text in texts] for (texts,) in found]

    def _room(self, prefix: int) -> int:
        """New tokens by default: the recipe's, as far as there are positions after a prefix of this length."""
        return max(1, min(self._run.eval.max_new_tokens, self._run.model.decoder.positions - prefix))

    def _encode(self, text: str) -> list[int]:
        tokens = self._tokenizer.encode(clean_caption(text) or "")
        if not tokens:
            raise UserError(f"{text!r}: a text without words cannot be asked, scored or chosen")
        return tokens

    def _caption_prefix(self, text: str) -> list[int]:
        return [self._tokenizer.bos_id, *(self._encode(text) if text else [])]

    def _question_prefix(self, question: str) -> list[int]:
        return self._prompts.prefix(self._encode(question))

    def _scored(self, text: GeneratedText, begin: list[int]) -> ScoredText:
        return ScoredText(self._tokenizer.decode(begin + text.tokens), text.score)


def _listed(images: Images) -> list[ClipLike]:
    return list(images) if isinstance(images, list | tuple) else [cast(ClipLike, images)]
