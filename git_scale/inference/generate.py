"""Generation: texts about images, each continuing a prefix, by greedy search, beams or sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from git_scale.errors import ConfigError
from git_scale.inference.beam import search_beams
from git_scale.inference.decoding import Decoding, GeneratedText, TokenRules
from git_scale.inference.sampling import draw_texts
from git_scale.inference.stream import AutoregressiveModel, Prefixes, TextStream
from git_scale.inference.trie import FREE, ROOT, Trie

__all__ = ["FREE", "AutoregressiveModel", "Decoding", "GeneratedText", "Prefixes", "Trie", "generate"]


def _all_ended(ended: Tensor) -> bool:
    return bool(ended.all())


@torch.no_grad()
def generate(
    model: AutoregressiveModel,
    images_BFCHW: Tensor,
    prefixes: Prefixes,
    end_token: int,
    decoding: Decoding,
    trie: Trie | None = None,
    is_finished: Callable[[Tensor], bool] = _all_ended,
    generator: torch.Generator | None = None,
    roots: Sequence[Sequence[int]] | None = None,
) -> list[list[list[GeneratedText]]]:
    """Texts [B][K][n_best], best first, without prefix and end token.

    prefixes[b][k]: the tokens that a text begins with, of any length, the begin token first; K for each image.
    With a trie the generated part is one of its texts; roots[b][k] is where that of a prefix begins, which chooses
    among the sets of the trie, or FREE for any text. Sampling is repeatable through `generator`, which lives
    on the images' device.

    `is_finished` is asked after each token, with a bool tensor of the texts that are done. Under ZeRO-3 every
    forward pass is collective: there it must give the same answer on all ranks, and a rank whose own texts are
    done goes on without effect until it says so, or max_new_tokens are reached.

    Raises ConfigError, before the model is asked, when the model or the trie cannot serve `decoding`.
    """
    _check_prefixes(model, images_BFCHW, prefixes)
    longest = max(len(prefix) for row in prefixes for prefix in row)
    _check_positions(model, longest, decoding)
    _check_choice(model, decoding, trie, end_token)
    trie = None if trie is None else trie.to(images_BFCHW.device)
    count, copies = len(prefixes[0]), decoding.n_best if decoding.samples else 1
    repeated = [[prefix for prefix in row for _ in range(copies)] for row in prefixes]
    nodes = torch.tensor(roots or [[ROOT] * count for _ in prefixes], device=images_BFCHW.device)
    rules = TokenRules(
        end_token, decoding.min_new_tokens, trie, nodes.repeat_interleave(copies, dim=1).flatten()
    )
    stream = TextStream(model, images_BFCHW, repeated)
    if decoding.beams == 1:
        drawn = draw_texts(stream, rules, decoding, generator, is_finished)
        texts = [_ranked(drawn[at : at + copies]) for at in range(0, len(drawn), copies)]
    else:
        texts = search_beams(stream, rules, decoding, is_finished)
    return [texts[at : at + count] for at in range(0, len(texts), count)]


def _ranked(texts: list[GeneratedText]) -> list[GeneratedText]:
    return sorted(texts, key=lambda text: -text.score)


def _check_prefixes(model: AutoregressiveModel, images: Tensor, prefixes: Prefixes) -> None:
    """Raises ValueError: these are mistakes of a program, not of its user."""
    if images.ndim != 5 or not len(prefixes) == len(images) > 0:
        raise ValueError(f"{len(prefixes)} lists of prefixes for images of shape {tuple(images.shape)}")
    if len({len(row) for row in prefixes}) > 1 or not prefixes[0]:
        raise ValueError(f"not the same number of prefixes for each image: {[len(row) for row in prefixes]}")
    for prefix in (prefix for row in prefixes for prefix in row):
        if not prefix or min(prefix) < 0 or max(prefix) >= model.vocab_size:
            raise ValueError(
                f"a prefix has at least one token, all in 0..{model.vocab_size - 1}, not {prefix}"
            )


def _check_positions(model: AutoregressiveModel, longest: int, decoding: Decoding) -> None:
    room = model.max_positions - longest
    if decoding.max_new_tokens > room:
        remedy = f"set max_new_tokens={room} or less" if room > 0 else "shorten the prefix"
        raise ConfigError(
            [
                f"a prefix of {longest} tokens and max_new_tokens={decoding.max_new_tokens} exceed"
                f" model.decoder.positions={model.max_positions}: {remedy}"
            ]
        )


def _check_choice(model: AutoregressiveModel, decoding: Decoding, trie: Trie | None, end_token: int) -> None:
    if trie is None:
        problems = _problems_of_width(model.vocab_size, decoding)
    elif trie.end_token != end_token or trie.largest_token >= model.vocab_size:
        raise ValueError("the trie was built with another tokenizer than the model's")
    else:
        problems = _problems_of_trie(trie, decoding)
    if problems:
        raise ConfigError(problems)


def _problems_of_width(vocab_size: int, decoding: Decoding) -> list[str]:
    """More beams than there are texts."""
    choices, most = vocab_size - 1, decoding.max_new_tokens
    texts = sum(choices**length for length in range(decoding.min_new_tokens, most)) + choices**most
    if decoding.beams > texts:
        return [f"beams={decoding.beams} exceed the {texts} texts of at most {most} tokens that exist"]
    return []


def _problems_of_trie(trie: Trie, decoding: Decoding) -> list[str]:
    problems = []
    if trie.longest >= decoding.max_new_tokens:
        problems.append(
            f"max_new_tokens={decoding.max_new_tokens}: the longest text to choose from has {trie.longest}"
            f" tokens; set max_new_tokens={trie.longest + 1} or more"
        )
    if trie.shortest < decoding.min_new_tokens:
        problems.append(
            f"min_new_tokens={decoding.min_new_tokens}: the shortest text to choose from has {trie.shortest}"
            f" tokens; set min_new_tokens={trie.shortest} or less"
        )
    if decoding.n_best > len(trie) and not decoding.samples:
        problems.append(f"n_best={decoding.n_best} exceeds the {len(trie)} texts to choose from")
    return problems
