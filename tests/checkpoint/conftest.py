"""Random GITs as transformers writes them, small but with weights large enough that every part shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

WORDS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "dog",
    "run",
    "##ning",
    "cat",
    ".",
]
WORDS += [
    "two",
    "near",
    "the",
    "table",
    "##s",
    "x",
    "-",
    "1",
    "2",
    "cafe",
    ",",
    "blue",
    "sit",
    "on",
    "is",
    "it",
]


@pytest.fixture(scope="session")
def words() -> list[str]:
    return WORDS


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    return path


def build_transformers_git(seed: int = 0, tied: bool = False, vision: Any = None, **text: Any) -> Any:
    """A GitForCausalLM with weights of deviation 0.15."""
    pytest.importorskip("transformers", reason="compares with transformers")
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import GitConfig, GitForCausalLM

    config = GitConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            **(vision or {}),
        },
        **{
            "vocab_size": len(WORDS),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 40,
            "max_position_embeddings": 16,
            "pad_token_id": 0,
            "bos_token_id": 3,
            "eos_token_id": 4,
            **text,
        },
    )
    torch.manual_seed(seed)
    model = GitForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        nn.init.normal_(parameter, 1.0 if is_scale else 0.0, std=0.15)
    if tied:
        model.output.weight.data.copy_(model.git.embeddings.word_embeddings.weight)
    return model


@pytest.fixture
def build_git() -> Callable[..., Any]:
    return build_transformers_git


@pytest.fixture
def save_git(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model of build_git as transformers does, with a vocabulary; returns the folder."""

    def save(model: Any, name: str = "hf", **options: Any) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
        return folder

    return save
