"""First weights out of another checkpoint: taken as they are, brought to other images, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint.initial import initial_weights
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.config import ModelConfig, RunConfig
from git_scale.errors import CheckpointError
from git_scale.models.build import build_model
from git_scale.models.encoders import resize_positions

TEMPORAL, POSITIONS = "temporal.frames", "encoder.backbone.pos_embed"


def config_of(size: int = 32, frames: int = 1, **decoder: Any) -> ModelConfig:
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    text = {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "positions": 16, **decoder}
    encoder = {"name": "vit_tiny_patch16_224", "image_size": size, "options": vit}
    tree = {"encoder": encoder, "decoder": text, "vocab_size": 30, "frames": frames}
    return ModelConfig.model_validate(tree)


class InMemory:
    """Weights of a random model; `only`: the names that begin so."""

    def __init__(self, config: ModelConfig, only: str = "") -> None:
        torch.manual_seed(1)
        state = build_model(config).state_dict()
        self.tensors = {name: torch.randn_like(t) for name, t in state.items() if name.startswith(only)}
        if "decoder.head.weight" in self.tensors:
            self.tensors["decoder.head.weight"] = self.tensors["decoder.embedding.words.weight"]
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        self.dropped: dict[str, str] = {}

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def started(
    ours: ModelConfig, theirs: ModelConfig, only: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], InMemory, list[str]]:
    """State before and after, the source, and what was said."""
    torch.manual_seed(0)
    model = build_model(ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = InMemory(theirs, only)
    opened = OpenedCheckpoint("native", Path("there"), RunConfig(model=theirs), None, source, None)
    taken, said = initial_weights(model, ours, opened)
    after = {name: taken.read(name) if name in taken.shapes else before[name] for name in before}
    return before, after, source, said


def test_everything_is_taken_as_it_is() -> None:
    _, after, source, said = started(config_of(), config_of())
    assert said == []
    assert all(torch.equal(after[name], source.tensors[name]) for name in after)


def test_image_positions_follow_the_size() -> None:
    _, after, source, said = started(config_of(48), config_of(32))
    assert said == ["image positions interpolated from 32 to 48 pixels"]
    expected = resize_positions(source.tensors[POSITIONS], (4, 4), (6, 6), 1)
    assert torch.equal(after[POSITIONS], expected)
    assert all(torch.equal(after[name], source.tensors[name]) for name in after if name != POSITIONS)


@pytest.mark.parametrize("attention", ["joint", "cross"])
def test_an_encoder_alone_leaves_the_rest_as_it_was(attention: str) -> None:
    ours = config_of(attention=attention)
    before, after, source, said = started(ours, config_of(), only="encoder.")
    assert said == ["an image encoder alone: projection and decoder start at random"]
    for name in after:
        expected = source.tensors[name] if name.startswith("encoder.") else before[name]
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (6, 1, "the temporal embeddings of 6 frames start at zero"),
        (1, 6, "its temporal embeddings of 6 frames are left out: images have none"),
        (4, 6, "the temporal embeddings of its first 4 frames of 6"),
    ],
)
def test_images_to_clips_and_back(ours: int, theirs: int, message: str) -> None:
    _, after, source, said = started(config_of(frames=ours), config_of(frames=theirs))
    assert said == [message]
    if ours > 1 and theirs > 1:
        assert torch.equal(after[TEMPORAL], source.tensors[TEMPORAL][:ours])
    elif ours > 1:
        assert not after[TEMPORAL].any()
    else:
        assert TEMPORAL not in after


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (config_of(width=64), r"projection.0.weight has the shape \[32, 32\] instead of \[64, 32\]"),
        (config_of(layers=2), "decoder.layers.1.query.weight is missing"),
        (config_of(frames=8), r"temporal.frames has the shape \[6, 32\] instead of \[8, 32\]"),
    ],
)
def test_another_architecture_is_refused_by_name(ours: ModelConfig, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        started(ours, config_of(frames=6 if ours.frames > 1 else 1))


@pytest.mark.parametrize(("ours", "theirs"), [("joint", "cross"), ("cross", "joint")])
def test_another_kind_of_decoder_is_refused_with_both_ways_out(ours: str, theirs: str) -> None:
    _, after, source, said = started(config_of(attention=theirs), config_of(attention=theirs))
    assert said == [] and all(torch.equal(after[name], source.tensors[name]) for name in after)
    remedies = (
        f"set model.decoder.attention={theirs}, or .* model.encoder.start=there in the place of init_from"
    )
    with pytest.raises(CheckpointError, match=f"attention is {theirs}, that of this run {ours}.*{remedies}"):
        started(config_of(attention=ours), config_of(attention=theirs))


def test_weights_that_are_not_finite_are_refused() -> None:
    source = InMemory(config_of())
    source.tensors["projection.0.bias"][3] = torch.nan
    opened = OpenedCheckpoint("native", Path("there"), RunConfig(model=config_of()), None, source, None)
    taken, _ = initial_weights(build_model(config_of()), config_of(), opened)
    with pytest.raises(CheckpointError, match=r"projection.0.bias holds numbers that are not finite"):
        taken.read("projection.0.bias")
