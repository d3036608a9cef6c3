"""Texts for the queries of an evaluation, generated on all ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from git_scale.config import EvalConfig
from git_scale.data.batch import EvalBatch
from git_scale.data.images import normalise
from git_scale.data.tokenizer import Tokenizer
from git_scale.inference.generate import FREE, Decoding, Trie, generate
from git_scale.metrics.metric import Prediction
from git_scale.models.interface import Runner
from git_scale.parallel import collectives

RANKED = 5
"""Texts of a closed set that are kept of each query, as far as eval.beams finds so many."""

Item = TypeVar("Item")


class TextGenerator:
    """Answers the queries of batches with a model on all ranks: the EvaluationContext of git_scale/tasks/task.py."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer, config: EvalConfig) -> None:
        self.runner = runner
        self._tokenizer = tokenizer
        self._decoding = Decoding(
            max_new_tokens=config.max_new_tokens,
            beams=config.beams,
            length_penalty=config.length_penalty,
        )

    def generate(self, batch: EvalBatch) -> list[Prediction]:
        """A text for each query. Collective where the model's forward pass is."""
        runner = self.runner
        trie, roots = self._choices(batch)
        decoding = self._decoding
        if trie is not None:
            decoding = replace(decoding, n_best=min(RANKED, decoding.beams, len(trie)))
        texts = generate(
            runner.model,
            normalise(batch.images.to(runner.device), runner.dtype),
            self._prefixes(batch),
            self._tokenizer.eos_id,
            decoding,
            trie,
            roots=roots,
            is_finished=self._all_finished,
        )
        return [
            Prediction(
                index,
                key,
                query.identity,
                query.question,
                query.choices.get(tuple(text[0].tokens)) or self._tokenizer.decode(text[0].tokens),
                query.references,
                tuple(query.choices[tuple(one.tokens)] for one in text if tuple(one.tokens) in query.choices),
                query.domain,
            )
            for index, key, queries, answers in zip(
                batch.indices, batch.keys, batch.queries, texts, strict=True
            )
            # neither a filler of a short rank nor an unreadable sample has queries
            for query, text in zip(queries, answers, strict=False)
        ]

    def _all_finished(self, ended: Tensor) -> bool:
        """Under ZeRO-3 every forward pass gathers weights from all ranks: the last to finish decides."""
        running, runner = not bool(ended.all()), self.runner
        return not (running if runner.is_whole_on_each_rank else collectives.any_rank(running, runner.device))

    def _prefixes(self, batch: EvalBatch) -> list[list[list[int]]]:
        """As many for each image: where others have more questions, a bare begin token fills the place."""
        bare = [self._tokenizer.bos_id]
        return _filled([[query.prefix for query in queries] for queries in batch.queries], bare)

    def _choices(self, batch: EvalBatch) -> tuple[Trie | None, list[list[int]] | None]:
        """The different sets of choices of a batch in one trie, and where the answer to each query begins in it."""
        rows = [[tuple(query.choices) for query in queries] for queries in batch.queries]
        sets = list(dict.fromkeys(choices for row in rows for choices in row if choices))
        if not sets:
            return None, None
        trie = Trie(sets[0], self._tokenizer.eos_id, sets[1:])
        begin = dict(zip(sets, trie.roots, strict=True))
        return trie, _filled([[begin.get(choices, FREE) for choices in row] for row in rows], FREE)


def _filled(rows: list[list[Item]], filler: Item) -> list[list[Item]]:
    """Rows of one length, and none empty."""
    most = max(1, *map(len, rows))
    return [row + [filler] * (most - len(row)) for row in rows]
