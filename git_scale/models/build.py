"""The only place where a model is made from its configuration."""

from __future__ import annotations

from git_scale.config import EncoderConfig, ModelConfig
from git_scale.models.encoders import ImageEncoder
from git_scale.models.git import GitModel


def build_model(config: ModelConfig) -> GitModel:
    """A model with random first values; on meta, where that is the default device, without any."""
    return GitModel(config)


def build_encoder(config: EncoderConfig, published: bool = False) -> ImageEncoder:
    """The image encoder alone, as it stands in a model; `published`: with timm's weights of that name."""
    return ImageEncoder(config, published)
