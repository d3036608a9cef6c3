"""A complete tiny run to test with: shards of coloured squares, a tokenizer, a recipe; seconds on one core."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image
from torch import Tensor

from git_scale.checkpoint.weights import TrainingWeights, check_files
from git_scale.config import RunConfig
from git_scale.data.train_tokenizer import train_sentencepiece

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "black": (20, 20, 20)}
SIDES = {"tiny": 8, "small": 14, "big": 22}
SIDE = 32
COLOUR, SIZE = "what colour?", "how big?"
VOCAB_SIZE = 34


def write_squares_data(folder: Path) -> Path:
    """folder/train (40 samples), folder/heldout (7) and folder/tokenizer.model (34 pieces)."""
    write_squares(folder / "train", 40)
    write_squares(folder / "heldout", 7)
    captions = [describe(colour, side) for colour in COLOURS for side in SIDES]
    texts = [*captions, "a square", "one big square on white", COLOUR, SIZE, *COLOURS, *SIDES]
    train_sentencepiece(texts, folder / "tokenizer.model", VOCAB_SIZE)
    return folder


def describe(colour: str, side: str) -> str:
    return f"a {side} {colour} square"


def write_squares(folder: Path, count: int) -> None:
    """One shard; each image has two captions of different length, so that batches are ragged, and two questions.

    Every third image has the question of its size alone: their number is ragged as well.
    """
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "squares-000000.tar"), encoder=False) as tar:
        for number in range(count):
            colour, side = list(COLOURS)[number % 4], list(SIDES)[number % 3]
            second = "a square" if number % 2 else "one big square on white"
            questions = [{"question": SIZE, "answers": [side]}, {"question": COLOUR, "answers": [colour]}]
            text = json.dumps(
                {
                    "captions": [describe(colour, side), second],
                    "questions": questions[: 1 if number % 3 == 2 else 2],
                    "image_id": number,
                }
            ).encode()
            tar.write({"__key__": f"{number:04d}", "png": draw_square(colour, side), "json": text})


def draw_square(colour: str, side: str) -> bytes:
    image = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    image.paste(COLOURS[colour], (4, 4, 4 + SIDES[side], 4 + SIDES[side]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tiny_run(squares: Path, run_dir: Path, **sections: dict[str, Any]) -> RunConfig:
    """A recipe of 20,000 parameters on the squares; `sections` override it key by key."""
    tree: dict[str, dict[str, Any]] = {
        "model": {
            "encoder": {
                "name": "vit_tiny_patch16_224",
                "image_size": SIDE,
                "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            },
            "decoder": {
                "layers": 2,
                "width": 32,
                "heads": 2,
                "ffn": 64,
                "positions": 16,
                "dropout": 0.0,
                "init_std": 0.1,
            },
            "vocab_size": VOCAB_SIZE,
        },
        "data": {
            "train": str(squares / "train"),
            "heldout": str(squares / "heldout"),
            "tokenizer": str(squares / "tokenizer.model"),
            "max_text_tokens": 16,
            "workers": 0,
        },
        "optimizer": {"encoder_lr": 1e-3, "decoder_lr": 2e-3, "clip_norm": 0.5, "warmup_steps": 2},
        "train": {"steps": 10, "global_batch": 8, "micro_batch": 4, "precision": "fp32"},
        "eval": {"every": 1000, "images": 7, "pictures": 4, "max_new_tokens": 8},
        "checkpoint": {"every": 1000},
        "log": {"every": 5},
    }
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    return RunConfig.model_validate({"run_dir": str(run_dir), **tree})


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights of a training checkpoint. Raises CheckpointError when a file is missing or damaged."""
    check_files(checkpoint)
    weights = TrainingWeights(checkpoint)
    return {name: weights.read(name) for name in weights.shapes}
