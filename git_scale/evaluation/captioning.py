"""Captions of held-out pictures, generated on all ranks, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.batch import EvalBatch
from git_scale.data.images import normalise
from git_scale.data.loader import build_eval_loader
from git_scale.data.shards import ShardSet
from git_scale.data.tokenizer import Tokenizer
from git_scale.evaluation.exact_match import exact_match
from git_scale.evaluation.sheet import Captioned, draw_captions
from git_scale.models.generate import generate_greedy
from git_scale.parallel import collectives
from git_scale.parallel.engine import Engine
from git_scale.parallel.topology import Topology


@dataclass(frozen=True)
class Prediction:
    """One held-out picture and its generated caption."""

    index: int
    key: str
    generated: str
    references: list[str]


@dataclass(frozen=True)
class Evaluation:
    """The same on every rank."""

    metrics: dict[str, float]
    predictions: list[Prediction]
    sheet: Image.Image | None


class CaptionEvaluator:
    """Captions the first `eval.images` held-out samples; each rank takes every dp-th of them."""

    def __init__(
        self, run: RunConfig, shards: ShardSet | None, tokenizer: Tokenizer, topology: Topology
    ) -> None:
        self._run = run
        self._shards = shards
        self._tokenizer = tokenizer
        self._topology = topology

    def evaluate(self, engine: Engine) -> Evaluation | None:
        """Collective. None when the run has no held-out data."""
        if self._shards is None:
            return None
        loader = build_eval_loader(self._run, self._shards, self._topology.dp_rank, self._topology.dp)
        predictions: list[Prediction] = []
        shown: list[tuple[int, np.ndarray]] = []
        engine.model.eval()
        for batch in loader:
            predictions += self._caption(engine, batch)
            shown += self._pictures_to_show(batch)
        engine.model.train()
        everyone = [item for part in collectives.gather_objects(predictions) for item in part]
        pictures = dict(item for part in collectives.gather_objects(shown) for item in part)
        everyone.sort(key=lambda prediction: prediction.index)
        score = exact_match([item.generated for item in everyone], [item.references for item in everyone])
        metrics = {"eval/exact_match": score, "eval/images": float(len(everyone))}
        return Evaluation(metrics, everyone, _draw(everyone, pictures))

    def _caption(self, engine: Engine, batch: EvalBatch) -> list[Prediction]:
        def all_finished(ended: torch.Tensor) -> bool:
            running = not bool(ended.all())
            # Under ZeRO-3 every forward pass gathers weights from all ranks: the last to finish decides.
            return not (
                running if engine.is_whole_on_each_rank else collectives.any_rank(running, engine.device)
            )

        texts = generate_greedy(
            engine.model,
            normalise(batch.images.to(engine.device), engine.dtype),
            self._tokenizer.bos_id,
            self._tokenizer.eos_id,
            self._run.eval.max_new_tokens,
            all_finished,
        )
        samples = zip(batch.indices, batch.keys, texts, batch.references, strict=True)
        return [
            Prediction(index, key, self._tokenizer.decode(text), references)
            for index, key, text, references in samples
            if references  # neither a filler of a short rank nor an unreadable sample
        ]

    def _pictures_to_show(self, batch: EvalBatch) -> list[tuple[int, np.ndarray]]:
        return [
            (index, image[0].permute(1, 2, 0).numpy())
            for index, image in zip(batch.indices, batch.images, strict=True)
            if 0 <= index < self._run.eval.pictures
        ]


def _draw(predictions: list[Prediction], pictures: dict[int, np.ndarray]) -> Image.Image | None:
    rows = [
        Captioned(pictures[item.index], item.references[0], item.generated)
        for item in predictions
        if item.index in pictures
    ]
    return draw_captions(rows) if rows else None
