"""Captions: the whole text is learned, and generated after the begin token alone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from git_scale.data.captions import (
    CAPTION_NAMES,
    TextRecord,
    choose_captions,
    clean_caption,
    clean_captions,
)
from git_scale.data.store import RawSample
from git_scale.data.texts import Query, Text
from git_scale.errors import DataError
from git_scale.metrics.metric import DOMAINS, Prediction
from git_scale.tasks.task import Task, TextRequirement, identity_of

MAX_REFERENCE_TEXTS = 5  # captions of an image that the held-out loss looks at: COCO's number


def _has_caption(text: TextRecord) -> bool:
    return any(map(clean_caption, text.clip_captions))


class CaptionTask(Task):
    """Learns and asks for captions of images; of clips where `model.frames` is above 1."""

    metrics: ClassVar[tuple[str, ...]] = (
        *("exact_match", "distinct", "distinct_references"),
        *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "segmented_by_character"),
    )
    final_metrics: ClassVar[tuple[str, ...]] = ("meteor", "spice")
    learns_from: ClassVar = TextRequirement("captions", _has_caption)
    asks_about: ClassVar = learns_from

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        stored = self._stored(raw)
        meta = raw.text.meta
        if not stored and meta and meta.keys().isdisjoint(CAPTION_NAMES):
            raise DataError(
                f"no caption: its json holds {', '.join(list(meta)[:8])}, but none of {', '.join(CAPTION_NAMES)}"
            )
        captions = choose_captions(clean_captions(stored), self.run.data.texts_per_image, rng)
        return [self.prompts.caption(caption) for caption in captions]

    def queries(self, raw: RawSample) -> list[Query]:
        stored = self._stored(raw)
        references = clean_captions(stored) if stored else []
        identity = identity_of(raw.text.meta.get("image_id"), raw.key)
        domain = raw.text.meta.get("domain")
        domain = domain if domain in DOMAINS else ""
        return [Query(self.prompts.prefix([]), references, identity=identity, domain=domain)]

    def reference_texts(self, raw: RawSample) -> list[Text]:
        stored = self._stored(raw)
        captions = clean_captions(stored)[:MAX_REFERENCE_TEXTS] if stored else []
        return [self.prompts.caption(caption) for caption in captions]

    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        """COCO's format."""
        return {"image_id": prediction.identity, "caption": prediction.generated}

    def _stored(self, raw: RawSample) -> list[str]:
        return raw.text.captions if self.run.model.frames == 1 else raw.text.clip_captions
