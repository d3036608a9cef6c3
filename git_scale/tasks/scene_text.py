"""Scene text recognition: the word that a cropped image shows is its caption."""

from __future__ import annotations

from typing import Any, ClassVar

from git_scale.metrics.metric import Prediction
from git_scale.tasks.caption import CaptionTask


class SceneTextTask(CaptionTask):
    """Learns and asks for the word of an image: MJSynth and SynthText in the paper, tested on six other sets."""

    metrics: ClassVar = ("word_accuracy", "word_accuracy_cased", "edit_similarity", "distinct")
    final_metrics: ClassVar = ()

    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        return {"image_id": prediction.identity, "text": prediction.generated}
