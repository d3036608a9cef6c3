"""The model card beside an exported model, and the figures in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from git_scale.checkpoint import layout
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.sources import read_json
from git_scale.checkpoint.state import EMA
from git_scale.config import RunConfig
from git_scale.data.mixture import training_sources

METRICS = "metrics.json"
METRICS_LOG = "metrics.jsonl"

USE_NATIVE = """```python
import git_scale

model = git_scale.load("path/of/this/folder")
print(model.caption(["photo.jpg"]))
```"""
USE_HUGGINGFACE = """```python
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

processor = AutoProcessor.from_pretrained("path/of/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
pixels = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="pt").pixel_values
ids = model.generate(pixel_values=pixels)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```

A question, or the beginning of a text, comes after the begin token and without an end token:

```python
question = processor(text="what is it?", add_special_tokens=False).input_ids
asked = torch.tensor([[processor.tokenizer.cls_token_id, *question]])
ids = model.generate(pixel_values=pixels, input_ids=asked, max_new_tokens=10)
```"""
USE_ENCODER = (
    """An image encoder alone: it starts the training of a GIT, with `init_from=path/of/this/folder`."""
)


def without_local_paths(run: RunConfig) -> RunConfig:
    """The recipe as it may be published: of every path of this machine its last part."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(below) for key, below in value.items()}
        if isinstance(value, list | tuple):
            return [strip(below) for below in value]
        is_local = isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
        return Path(value).name if is_local else value

    return RunConfig.model_validate(strip(run.model_dump()))


def write_card(opened: OpenedCheckpoint, use: str, header: str = "") -> str:
    """README.md: data, recipe, step, what was measured, and how to use it."""
    model, data = opened.run.model, opened.run.data
    encoder = f"{model.encoder.name} at {model.encoder.image_size} x {model.encoder.image_size} pixels"
    lines = [header, f"# {_title(opened)}", "", f"Image encoder: {encoder}."]
    if not opened.holds_encoder_only:
        decoder = model.decoder
        lines.append(
            f"Text decoder: {decoder.layers} layers of {decoder.attention} attention, {decoder.width} wide,"
            f" vocabulary of {model.vocab_size}. Frames per sample: {model.frames}."
        )
    lines += ["", "## Origin", "", _origin(opened)]
    if opened.step is not None:
        trained = " and ".join(
            f"on `{Path(source.path).name}` as a `{source.task}` task"
            for source in training_sources(data).values()
        )
        lines += ["", f"Trained {trained}."]
    lines += ["", "## Measured", "", _table(read_metrics(opened)), "", "## Use", "", use]
    if opened.step is not None:
        lines += ["", "## Recipe", "", "```yaml", without_local_paths(opened.run).to_yaml().rstrip(), "```"]
    return "\n".join(lines).lstrip("\n") + "\n"


def _title(opened: OpenedCheckpoint) -> str:
    return "An image encoder for git_scale" if opened.holds_encoder_only else "GIT image-to-text model"


def _origin(opened: OpenedCheckpoint) -> str:
    origins = {
        "training": "A run of git_scale",
        "native": "A model of git_scale",
        "huggingface": "Imported from transformers",
        "microsoft": "Imported from the paper's code",
        "encoder": "Imported image encoder",
    }
    step = "" if opened.step is None else f", step {opened.step}"
    return (
        origins[opened.kind] + step + (", the moving average of its weights." if opened.is_average else ".")
    )


def _table(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "Nothing was measured of this model here."
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items())]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def read_metrics(opened: OpenedCheckpoint) -> dict[str, float]:
    """The last evaluation of exactly this step in the run's log, or what a model folder has kept of it."""
    if opened.kind == "native":
        kept = opened.path / METRICS
        if not kept.is_file() or METRICS not in {item.name for item in layout.read_manifest(opened.path)}:
            return {}
        return {k: v for k, v in read_json(kept).items() if _is_number(v)}
    log = opened.path.parent.parent / METRICS_LOG
    if opened.kind != "training" or opened.path.parent.name != layout.checkpoints_folder(Path()).name:
        return {}
    if opened.is_average != (opened.run.eval.weights == EMA):
        return {}  # its evaluations were of the other weights
    metrics: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # a line that a killed process left unfinished
            continue
        if isinstance(record, dict) and record.get("step") == opened.step:
            metrics |= {k: v for k, v in record.items() if k.startswith("eval/") and _is_number(v)}
    return metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
