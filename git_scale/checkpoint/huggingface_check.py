"""What a user of transformers does with an exported folder, done before it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_model, tokenizer_of
from git_scale.errors import CheckpointError
from git_scale.models.encoders import declare_torchvision_operators

PROMPT = "a"
NEW_TOKENS = 3
MARGIN = 1e-3  # by which a greedy choice may miss our largest logit, relative to that: rounding


def check_as_a_user(folder: Path, opened: OpenedCheckpoint) -> None:
    """Processor, generate and pipeline, with and without a text, with both ways to bound a length.

    Raises CheckpointError for a call that fails, and for texts that our model would not have chosen.
    """
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM, AutoProcessor

    side, frames = opened.run.model.encoder.image_size, opened.run.model.frames
    noise = np.random.default_rng(0).integers(0, 255, (side + side // 4, side, 3), np.uint8)
    image = Image.fromarray(noise)
    call = "loading it"
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
        ours, begin = load_model(opened).eval(), tokenizer_of(opened).bos_id
        for text in ({}, {"text": PROMPT}):
            call = f"processor({', '.join(['images', *text])})"
            inputs = dict(processor(images=[image] * frames, return_tensors="pt", **text))
            if frames > 1:
                inputs["pixel_values"] = inputs["pixel_values"][None]
            given = inputs["input_ids"].shape[1] if text else 1
            for limit in ({"max_length": given + NEW_TOKENS}, {"max_new_tokens": NEW_TOKENS}):
                call = f"generate({', '.join([*inputs, *limit])})"
                ids = theirs.generate(**inputs, **limit, num_beams=1, do_sample=False)
                if int(ids[0, 0]) != begin:
                    raise ValueError(f"its texts begin with token {int(ids[0, 0])} instead of {begin}")
                _compare_greedy(ours, inputs["pixel_values"], ids[0], given)
        if frames == 1:
            call = "the image-text-to-text pipeline"
            _run_pipeline(theirs, processor, image)
    except CheckpointError:
        raise
    except Exception as error:  # whatever transformers raises is a folder that does not work there
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{opened.path}: what was written does not work in transformers: {call}: {reason}; nothing was published"
        ) from error


@torch.inference_mode()
def _compare_greedy(ours: Any, pixels: torch.Tensor, ids: torch.Tensor, given: int) -> None:
    """Of the tokens after the first `given` ones, each must be our model's choice as well."""
    count = len(ids) - given
    if not 1 <= count <= NEW_TOKENS:
        raise ValueError(f"{count} tokens were generated where at most {NEW_TOKENS} were asked for")
    images = pixels if pixels.ndim == 5 else pixels[:, None]
    logits = ours(images, ids[None, None, :-1], torch.arange(given - 1, len(ids) - 1))
    best = logits.max(dim=-1).values
    chosen = logits.gather(1, ids[given:, None])[:, 0]
    if bool((best - chosen > MARGIN * best.abs().clamp(min=1)).any()):
        raise ValueError("it generates other texts than git_scale does from the same weights")


def _run_pipeline(theirs: Any, processor: Any, image: Image.Image) -> None:
    from transformers import pipeline

    run = pipeline("image-text-to-text", model=theirs, processor=processor)
    (found,) = run(images=image, text=PROMPT, max_new_tokens=NEW_TOKENS)
    if not isinstance(found.get("generated_text"), str):
        raise TypeError(f"it gives {found} instead of a generated_text")
