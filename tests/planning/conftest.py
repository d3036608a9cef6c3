from __future__ import annotations

from typing import Any

import pytest

from git_scale.config import RunConfig
from git_scale.formatting import GIB
from git_scale.planning.cluster import Cluster
from git_scale.recipes import load_run


@pytest.fixture
def small_run() -> RunConfig:
    """5 million parameters in a ViT and a decoder; a global batch of 32."""
    return load_run(
        "git_base",
        [
            "model.encoder.name=vit_tiny_patch16_224",
            "model.encoder.options={depth: 2}",
            "model.decoder={layers: 2, width: 128, heads: 4, ffn: 512}",
            "model.vocab_size=30000",
            "train.global_batch=32",
            "train.micro_batch=4",
            "train.steps=1000",
        ],
    )


@pytest.fixture
def four_gpus() -> Cluster:
    return cluster()


def cluster(**given: Any) -> Cluster:
    values: dict[str, Any] = {
        "device": "Toy",
        "kind": "cuda",
        "world_size": 4,
        "per_node": 4,
        "memory": 16 * GIB,
        "peak": 1e14,
        "intra": 1e11,
        "inter": 1e10,
    }
    return Cluster(**values | given)
