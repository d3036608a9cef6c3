"""CLIP's ViT: which timm architecture it is, its table of positions, and image encoders that come alone."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from git_scale.checkpoint.names import ENCODER, RenamedWeights, Row, Source, clip_rows
from git_scale.checkpoint.opened import Opened, architecture
from git_scale.checkpoint.sources import open_tensors, read_json
from git_scale.checkpoint.weights import Weights
from git_scale.config import EncoderConfig, ModelConfig, RunConfig
from git_scale.errors import CheckpointError
from git_scale.models.encoders import ImageEncoder, declare_torchvision_operators, resize_positions

log = logging.getLogger(__name__)


class Sizes(NamedTuple):
    """Of a CLIP ViT; `hidden` is the width of the feed-forward hidden layer."""

    patch: int
    width: int
    layers: int
    heads: int
    hidden: int


POSITIONS = f"{ENCODER}pos_embed"
HEAD_WIDTH = 64  # of every published CLIP ViT, whose files do not tell the number of heads
# timm's names of these shapes (patch, width, layers, heads, hidden width); others are the first one with options
PUBLISHED = {
    Sizes(16, 768, 12, 12, 3072): "vit_base_patch16_clip{}_224",
    Sizes(14, 1024, 24, 16, 4096): "vit_large_patch14_clip{}_224",
}
FIRST = next(iter(PUBLISHED.values()))
TEXT_TOWER = (
    r"transformer\..*|token_embedding\.weight|positional_embedding|text_projection|ln_final\..*|logit_scale|logit_bias"
    r"|attn_mask"
)


def clip_encoder(sizes: Sizes, image_size: int, quick_gelu: bool) -> EncoderConfig:
    """The timm architecture of a CLIP ViT; it takes pictures of any size where the patch divides this one."""
    options: dict[str, int | float | bool] = {}
    if sizes not in PUBLISHED:
        ratio = sizes.hidden / sizes.width
        if int(sizes.width * ratio) != sizes.hidden:  # timm rounds down
            ratio = (sizes.hidden + 0.5) / sizes.width
        options = {
            "patch_size": sizes.patch,
            "embed_dim": sizes.width,
            "depth": sizes.layers,
            "num_heads": sizes.heads,
            "mlp_ratio": ratio,
        }
    if image_size % sizes.patch == 0:
        options["dynamic_img_size"] = True
    name = PUBLISHED.get(sizes, FIRST).format("_quickgelu" if quick_gelu else "")
    return EncoderConfig(name=name, image_size=image_size, options=options)


def read_sizes(shapes: dict[str, torch.Size], prefix: str, path: Path) -> tuple[Sizes, int]:
    """The sizes of the ViT with OpenAI's names under `prefix`, and its number of positions."""
    conv = shapes.get(f"{prefix}conv1.weight", torch.Size())
    positions = shapes.get(f"{prefix}positional_embedding", torch.Size())
    hidden = shapes.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", torch.Size())
    if (len(conv), len(positions), len(hidden)) != (4, 2, 2):
        raise CheckpointError(
            f"{path}: no CLIP ViT under {prefix!r}; a ResNet or another ViT cannot be imported"
        )
    width, patch = conv[0], conv[2]
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: its ViT has a width of {width}, no multiple of {HEAD_WIDTH} as CLIP's"
        )
    layers = count_layers(shapes, f"{prefix}transformer.resblocks")
    return Sizes(patch, width, layers, width // HEAD_WIDTH, hidden[0]), positions[0]


def count_layers(names: Iterable[str], prefix: str) -> int:
    found = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return len(found)


def square_side(positions: int, path: Path) -> int:
    """Of the grid of a table with a class token."""
    side = round((positions - 1) ** 0.5)
    if side < 1 or side**2 != positions - 1:
        raise CheckpointError(f"{path}: {positions} image positions are no square grid and a class token")
    return side


class ResizedWeights:
    """Weights whose table of image positions is brought to another grid."""

    def __init__(
        self, weights: Weights, old: tuple[int, int], new: tuple[int, int], prefix_tokens: int
    ) -> None:
        self.shapes = dict(weights.shapes)
        width = self.shapes[POSITIONS][2]
        self.shapes[POSITIONS] = torch.Size([1, new[0] * new[1] + prefix_tokens, width])
        self.dropped = weights.dropped
        self._weights, self._grids, self._prefix_tokens = weights, (old, new), prefix_tokens

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        return resize_positions(tensor, *self._grids, self._prefix_tokens) if name == POSITIONS else tensor


def shapes_of(module: torch.nn.Module, prefix: str = "") -> dict[str, torch.Size]:
    return {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}


def open_encoder(path: Path, name: str | None) -> Opened | None:
    """An image encoder alone: CLIP's own file, open_clip's, or with `name` timm's. None: it is none of these.

    Raises CheckpointError when the file cannot be read or does not fit.
    """
    source = open_tensors(path)
    if any(key.startswith("visual.") for key in source.shapes):
        return _open_clip(path, source, name)
    return _open_timm(path, source, name) if name is not None else None


def _open_clip(path: Path, source: Source, name: str | None) -> Opened:
    sizes, positions = read_sizes(source.shapes, "visual.", path)
    side = square_side(positions, path)
    encoder = clip_encoder(sizes, side * sizes.patch, _has_quick_gelu(path, name))
    with torch.device("meta"):
        shapes = shapes_of(ImageEncoder(encoder), "encoder.")
    dropped = {
        key: "CLIP's text tower" for key in source.shapes if re.fullmatch(TEXT_TOWER, key)
    } | dict.fromkeys(("input_resolution", "context_length", "vocab_size"), "a number about CLIP")
    dropped["visual.proj"] = "CLIP's projection into the space it shares with texts"
    weights = RenamedWeights(source, list(clip_rows(sizes.layers, "visual.")), shapes, dropped, path)
    return _alone(path, encoder, weights)


def _has_quick_gelu(path: Path, name: str | None) -> bool:
    """A file of tensors does not tell: CLIP's own has quick GELU, open_clip's may have either."""
    if name is not None:
        return "quickgelu" in name
    beside = path.parent / "open_clip_config.json"
    if beside.is_file():
        model = read_json(beside).get("model_cfg")
        return bool(isinstance(model, dict) and model.get("quick_gelu", False))
    log.warning(
        "%s is taken for OpenAI's own, with quick GELU; for one of open_clip with GELU add"
        " --encoder vit_base_patch16_clip_224",
        path,
    )
    return True


def _open_timm(path: Path, source: Source, name: str) -> Opened:
    declare_torchvision_operators()
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise CheckpointError(
            f"--encoder {name}: timm has no such model; near ones: {', '.join(close) or 'none'}"
        )
    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    encoder = EncoderConfig(name=name, image_size=published.input_size[-1])
    with torch.device("meta"):
        shapes = shapes_of(ImageEncoder(encoder), "encoder.")
    heads = published.classifier or ()
    classifiers = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    dropped = {key: "timm's classifier" for key in source.shapes if key.startswith(classifiers or ("\0",))}
    rows = [Row(key, (key.removeprefix(ENCODER),)) for key in shapes]
    return _alone(path, encoder, RenamedWeights(source, rows, shapes, dropped, path))


def _alone(path: Path, encoder: EncoderConfig, weights: Weights) -> Opened:
    run = RunConfig(model=ModelConfig(encoder=encoder))
    return Opened(kind="encoder", path=path, run=run, tokenizer=None, weights=weights, step=None)


def with_image_size(opened: Opened, image_size: int) -> Opened:
    """The same model for pictures of another size: its table of positions, where it has one, is interpolated.

    Raises CheckpointError for pictures that are smaller than a patch.
    """
    encoder = opened.run.model.encoder
    if image_size == encoder.image_size:
        return opened
    with torch.device("meta"):
        vit = ImageEncoder(architecture(opened).encoder).backbone
    if POSITIONS not in opened.weights.shapes or not hasattr(vit, "num_prefix_tokens"):
        return _resized(opened, encoder.model_copy(update={"image_size": image_size}), opened.weights)
    patch = vit.patch_embed.patch_size
    if image_size < max(patch):
        raise CheckpointError(f"image size {image_size}: less than one patch of {patch[0]} pixels")
    old, new = vit.patch_embed.grid_size, (image_size // patch[0], image_size // patch[1])
    options = {key: value for key, value in encoder.options.items() if key != "dynamic_img_size"}
    if image_size % patch[0] == image_size % patch[1] == 0:
        options["dynamic_img_size"] = True
    prefix_tokens = 0 if vit.no_embed_class else vit.num_prefix_tokens
    weights = ResizedWeights(opened.weights, old, new, prefix_tokens)
    return _resized(
        opened, encoder.model_copy(update={"image_size": image_size, "options": options}), weights
    )


def _resized(opened: Opened, encoder: EncoderConfig, weights: Weights) -> Opened:
    model = opened.run.model.model_copy(update={"encoder": encoder})
    return replace(opened, run=opened.run.model_copy(update={"model": model}), weights=weights)
