"""The metrics by name. A metric is one new file here and one line in this table; a plugin calls METRICS.add.

Tasks name the metrics that they are judged by (git_scale/tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from git_scale.registry import Registry

if TYPE_CHECKING:
    from git_scale.metrics.metric import Metric

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "exact_match": "git_scale.metrics.exact_match:EXACT_MATCH",
        "distinct": "git_scale.metrics.distinct:DISTINCT",
        "distinct_references": "git_scale.metrics.distinct:DISTINCT_REFERENCES",
        "bleu_1": "git_scale.metrics.caption_metrics:BLEU_1",
        "bleu_2": "git_scale.metrics.caption_metrics:BLEU_2",
        "bleu_3": "git_scale.metrics.caption_metrics:BLEU_3",
        "bleu_4": "git_scale.metrics.caption_metrics:BLEU_4",
        "rouge_l": "git_scale.metrics.caption_metrics:ROUGE_L",
        "cider": "git_scale.metrics.caption_metrics:CIDER",
        "meteor": "git_scale.metrics.meteor:METEOR",
        "spice": "git_scale.metrics.spice:SPICE",
        "segmented_by_character": "git_scale.metrics.caption_metrics:SEGMENTED_BY_CHARACTER",
        "vqa_accuracy": "git_scale.metrics.vqa_accuracy:VQA_ACCURACY",
        "anls": "git_scale.metrics.spelling:ANLS",
        "word_accuracy": "git_scale.metrics.spelling:WORD_ACCURACY",
        "word_accuracy_cased": "git_scale.metrics.spelling:WORD_ACCURACY_CASED",
        "edit_similarity": "git_scale.metrics.spelling:EDIT_SIMILARITY",
        "contains": "git_scale.metrics.classification:CONTAINS",
        "top_1": "git_scale.metrics.classification:TOP_1",
        "top_5": "git_scale.metrics.classification:TOP_5",
    },
    flaw_of="git_scale.metrics.metric:flaw_of",
)
