"""The ViTs of CLIP and SigLIP as timm architectures: sizes in, name and options out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from git_scale.config import EncoderConfig
from git_scale.errors import CheckpointError
from git_scale.models.encoders import declare_torchvision_operators

# Of OpenAI's CLIP and of the paper's code, both of which compute the number of heads from the width. Those of
# open_clip's larger models are wider, and their files do not tell.
OPENAI_HEAD_WIDTH = 64


class VitSizes(NamedTuple):
    """Holds the sizes of a ViT; `hidden` is the width of the feed-forward hidden layer."""

    patch: int
    width: int
    layers: int
    heads: int
    hidden: int


# timm's names of the CLIP ViTs that were published; the head counts are those of OpenAI's code and of open_clip's
# model_configs (ViT-H-14: head_width 80, ViT-g-14: 88, ViT-bigG-14: 104). Other sizes are the first one with options.
PUBLISHED = {
    VitSizes(16, 768, 12, 12, 3072): "vit_base_patch16_clip{}_224",
    VitSizes(32, 768, 12, 12, 3072): "vit_base_patch32_clip{}_224",
    VitSizes(14, 1024, 24, 16, 4096): "vit_large_patch14_clip{}_224",
    VitSizes(14, 1280, 32, 16, 5120): "vit_huge_patch14_clip{}_224",
    VitSizes(14, 1408, 40, 16, 6144): "vit_giant_patch14_clip{}_224",
    VitSizes(14, 1664, 48, 16, 8192): "vit_gigantic_patch14_clip{}_224",
    VitSizes(16, 896, 12, 14, 3584): "vit_base_patch16_plus_clip{}_240",
    VitSizes(32, 640, 12, 10, 2560): "vit_betwixt_patch32_clip{}_224",
    VitSizes(16, 512, 12, 8, 2048): "vit_medium_patch16_clip{}_224",
    VitSizes(32, 512, 12, 8, 2048): "vit_medium_patch32_clip{}_224",
    VitSizes(16, 256, 10, 4, 1024): "vit_xsmall_patch16_clip{}_224",
}
FIRST = next(iter(PUBLISHED.values()))
SIGLIP = "vit_base_patch16_siglip_224"


def clip_encoder(sizes: VitSizes, image_size: int, quick_gelu: bool) -> EncoderConfig:
    """The timm architecture of a CLIP ViT; it takes images of any size where the patch divides this one."""
    declare_torchvision_operators()
    import timm

    activation = "_quickgelu" if quick_gelu else ""
    name = PUBLISHED.get(sizes, FIRST).format(activation)
    options: dict[str, int | float | bool | str] = {}
    if sizes not in PUBLISHED or not timm.is_model(name):
        name, options = FIRST.format(activation), _options(sizes)
    return EncoderConfig(
        name=name, image_size=image_size, options=options | _any_size(sizes.patch, image_size)
    )


def siglip_encoder(sizes: VitSizes, image_size: int, tanh: bool) -> EncoderConfig:
    """The timm architecture of a SigLIP ViT: no class token, no norm before the blocks, a bias of the patches.

    tanh: the approximate GELU, which most of them were trained with.
    """
    options = _options(sizes) | ({"act_layer": "gelu_tanh"} if tanh else {})
    return EncoderConfig(
        name=SIGLIP, image_size=image_size, options=options | _any_size(sizes.patch, image_size)
    )


def _options(sizes: VitSizes) -> dict[str, int | float | bool | str]:
    ratio = sizes.hidden / sizes.width
    if int(sizes.width * ratio) != sizes.hidden:  # timm rounds down
        ratio = (sizes.hidden + 0.5) / sizes.width
    return {
        "patch_size": sizes.patch,
        "embed_dim": sizes.width,
        "depth": sizes.layers,
        "num_heads": sizes.heads,
        "mlp_ratio": ratio,
    }


def _any_size(patch: int, image_size: int) -> dict[str, int | float | bool | str]:
    return {"dynamic_img_size": True} if image_size % patch == 0 else {}


def read_sizes(
    shapes: dict[str, torch.Size], prefix: str, path: Path, head_width: int | None
) -> tuple[VitSizes, int]:
    """The sizes of the ViT with OpenAI's names under `prefix`, and its number of positions.

    head_width: None when nothing beside the file tells it; then the published sizes do. Raises CheckpointError for
    other sizes, because no number of heads can be read from a file of tensors.
    """
    conv = shapes.get(f"{prefix}conv1.weight", torch.Size())
    positions = shapes.get(f"{prefix}positional_embedding", torch.Size())
    hidden = shapes.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", torch.Size())
    if (len(conv), len(positions), len(hidden)) != (4, 2, 2):
        raise CheckpointError(
            f"{path}: no CLIP ViT under {prefix!r}; a ResNet or another ViT cannot be imported"
        )
    width, patch = conv[0], conv[2]
    layers = count_layers(shapes, f"{prefix}transformer.resblocks")
    found = [sizes for sizes in PUBLISHED if sizes[:3] + sizes[4:] == (patch, width, layers, hidden[0])]
    if head_width is None and not found:
        raise CheckpointError(
            f"{path}: a ViT of width {width} with {layers} layers, whose number of heads no file of tensors tells:"
            " put its open_clip_config.json beside it, or name its architecture with --encoder"
        )
    if head_width is None:
        return found[0], positions[0]
    if head_width < 1 or width % head_width:
        raise CheckpointError(
            f"{path}: its ViT has a width of {width}, no multiple of the head width {head_width}"
        )
    return VitSizes(patch, width, layers, width // head_width, hidden[0]), positions[0]


def count_layers(names: Iterable[str], prefix: str) -> int:
    found = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return len(found)


def square_side(positions: int, path: Path, class_tokens: int = 1) -> int:
    """Of the grid of a table of positions."""
    side = round(max(0, positions - class_tokens) ** 0.5)
    if side < 1 or side**2 != positions - class_tokens:
        raise CheckpointError(
            f"{path}: {positions} image positions are no square grid{' and a class token' if class_tokens else ''}"
        )
    return side


def shapes_of(module: torch.nn.Module, prefix: str = "") -> dict[str, torch.Size]:
    return {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
