"""Image encoders: any timm architecture, seen as a sequence of feature tokens."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import EncoderConfig
from git_scale.errors import ConfigError
from git_scale.models.attention import take_over_attentions
from git_scale.models.patch_drop import with_patch_drop

Grid = tuple[int, int]

# Keyword arguments of timm.create_model that are no option of an architecture, and who has them instead
TAKEN_OPTIONS = {
    "img_size": "set model.encoder.image_size",
    "in_chans": "images have three channels",
    "num_classes": "a GIT has no classifier",
    "global_pool": "a GIT takes all tokens",
    "features_only": "a GIT takes the last features",
    "patch_drop_rate": "set model.encoder.patch_drop_rate",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "first weights come from model.encoder.start",
    ),
    **dict.fromkeys(
        ("scriptable", "exportable", "no_jit"), "the model is neither scripted nor exported by timm"
    ),
}

# What timm's constructors raise at values that they cannot use
REFUSALS = (TypeError, AssertionError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)

# Keeps the declared operators alive: torch.library drops them with the object.
_TORCHVISION_STAND_IN: list[torch.library.Library] = []


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def declare_torchvision_operators() -> None:
    """Makes `import torchvision` work beside a CPU-only torch.

    timm imports torchvision, whose published wheel is a CUDA build; beside a CPU-only torch its C++ library
    does not load and the import fails with "operator torchvision::nms does not exist". No encoder calls these
    operators, so declaring them is enough. Does nothing where the real ones load: declared beside them, the
    stand-ins would stop that library from loading.
    """
    try:
        import torchvision  # noqa: F401

        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _TORCHVISION_STAND_IN.append(library)


declare_torchvision_operators()  # here, as a plugin may import timm before any encoder is built


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation.

    As a SiLU it keeps one tensor for the backward pass where the plain form keeps two: 3 of 23.5 GiB in bf16
    for 64 images through ViT-L/14.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


def resize_positions(table_1IC: Tensor, old: Grid, new: Grid, prefix_tokens: int) -> Tensor:
    """A learned table of grid positions (rows, columns) for another grid; the leading class token is untouched.

    Bicubic without antialiasing and with align_corners=False, as GIT's own code and transformers do; timm's own
    filters, which for smaller images gives other features than the published ones.
    """
    if old == new:
        return table_1IC
    prefix, grid = table_1IC[:, :prefix_tokens], table_1IC[:, prefix_tokens:]
    grid_1CHW = grid.float().unflatten(1, old).permute(0, 3, 1, 2)
    grid_1CHW = F.interpolate(grid_1CHW, size=new, mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid_1CHW.permute(0, 2, 3, 1).flatten(1, 2).to(grid.dtype)], dim=1)


def _add_positions(vit: Any, x_BHWC: Tensor) -> Tensor:
    """timm's VisionTransformer._pos_embed with resize_positions."""
    vit_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    grid = (x_BHWC.shape[1], x_BHWC.shape[2])
    table = resize_positions(vit.pos_embed, vit.patch_embed.grid_size, grid, vit_prefix)
    x = x_BHWC.flatten(1, 2)
    extra = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    x = torch.cat([*extra, x + table], dim=1) if vit.no_embed_class else torch.cat([*extra, x], dim=1) + table
    return vit.pos_drop(x)


class ImageEncoder(nn.Module):
    """A timm model without its classifier: images to normalised feature tokens.

    A ViT keeps its class token (GIT uses all tokens after the last norm); a feature grid is read row by row.
    """

    def __init__(self, config: EncoderConfig, published: bool = False) -> None:
        """Random first values, whatever config.start says; `published`: timm's weights of that name."""
        super().__init__()
        self._name = config.name
        self.backbone: Any = _create_timm_model(config, published)  # timm's models share no typed base class
        self._patch_drop = with_patch_drop(self.backbone, config.name, config.patch_drop_rate)
        if config.position_std is not None:
            _scale_positions(self.backbone, config.name, config.position_std)
        # of what leaves the model: some families widen the last grid in their head
        self.width = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.size_step = _size_step(self.backbone)  # pixels per token and side
        self.own_sizes = _own_sizes(self.backbone)
        self._channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        self._patch = self.backbone.patch_embed.patch_size if _takes_any_size(self.backbone) else (1, 1)

    def forward(self, images_BCHW: Tensor, draws_B: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] normalised pixels to [B, I, C] tokens.

        What lies beyond a ViT's last whole patch is not seen, as in GIT's own convolution. `draws_B`: with
        config.patch_drop_rate, a number of each image by which some of its patches are left out.
        """
        if self._patch_drop is not None:
            self._patch_drop.draws = draws_B
        height, width = images_BCHW.shape[-2:]
        features = self.backbone(
            images_BCHW[..., : height - height % self._patch[0], : width - width % self._patch[1]]
        )
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            found = (
                f"a {type(features).__name__}" if not isinstance(features, Tensor) else list(features.shape)
            )
            raise ConfigError(
                [
                    f"model.encoder.name={self._name!r} gives {found} for an image, neither feature tokens nor a"
                    " feature grid: take an encoder of another family"
                ]
            )
        if features.ndim == 4:
            features = features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)
        return features

    def problem_of_size(self, side: int) -> str:
        """Why it would see a part of such images, and the nearest sides that it sees whole; empty when it does."""
        step = self.size_step
        if side % step == 0 or side in self.own_sizes:
            return ""
        below = side // step * step
        near = f"nearest are {below} and {below + step}" if below else f"nearest is {step}"
        return f"no multiple of the {step} pixels that a token of {self._name} stands for; the {near}"

    def blocks(self) -> Iterator[nn.Module]:
        """What timm repeats: the children of its `blocks`; an encoder without them is one block."""
        repeated = [
            block
            for name, part in self.backbone.named_modules()
            if name.rpartition(".")[2] == "blocks"
            for block in part.children()
        ]
        yield from repeated or [self.backbone]

    def set_activation_checkpointing(self, enable: bool) -> None:
        """Block by block. timm's DaViT would checkpoint its stages around that, and run each block three times."""
        self.backbone.set_grad_checkpointing(enable)
        parts = list(self.backbone.modules())[1:]
        if any(getattr(part, "grad_checkpointing", False) for part in parts):
            self.backbone.grad_checkpointing = False


def _create_timm_model(config: EncoderConfig, published: bool) -> Any:
    import timm

    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError([f"model.encoder.name={config.name!r}: timm has no such model{hint}"])
    if taken := TAKEN_OPTIONS.keys() & config.options.keys():
        raise ConfigError([f"model.encoder.options.{key}: {TAKEN_OPTIONS[key]}" for key in sorted(taken)])
    if problems := _texts_for_switches(config):
        raise ConfigError(problems)
    options = copy.deepcopy(config.options)  # timm changes lists that it is given
    if timm.get_pretrained_cfg(config.name, allow_unregistered=True).fixed_input_size:
        options["img_size"] = config.image_size
    try:
        backbone = timm.create_model(
            config.name, pretrained=published, num_classes=0, global_pool="", **options
        )
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        if published and isinstance(error, RuntimeError):  # of the download
            raise
        hint = _nearest_options(config) if isinstance(error, TypeError) else ""
        raise ConfigError(
            [f"model.encoder: timm refuses {config.name!r} with options {options}: {error}{hint}"]
        ) from error
    is_vit = isinstance(backbone, timm.models.VisionTransformer)
    if is_vit and backbone.dynamic_img_size and backbone.pos_embed is not None:
        backbone._pos_embed = functools.partial(_add_positions, backbone)
    _replace_modules(backbone, timm.layers.QuickGELU, QuickGelu)
    take_over_attentions(backbone)
    return backbone


def _texts_for_switches(config: EncoderConfig) -> list[str]:
    """What is wrong with texts in the places of switches: any text would pass for true."""
    texts = {name: value for name, value in config.options.items() if isinstance(value, str)}
    known = _parameters_of(config.name) if texts else {}
    return [
        f"model.encoder.options.{name}={value!r}: a switch, true or false without quotes, is needed"
        for name, value in texts.items()
        if name in known and isinstance(known[name].default, bool)
    ]


def _parameters_of(name: str) -> Mapping[str, inspect.Parameter]:
    """Of the constructor of an architecture."""
    import timm

    with torch.device("meta"):
        kind = type(timm.create_model(name))
    return inspect.signature(kind.__init__).parameters


def _nearest_options(config: EncoderConfig) -> str:
    """Of the options that the architecture does not name, the nearest that it does."""
    known = [name for name in _parameters_of(config.name) if name not in TAKEN_OPTIONS]
    close = {
        name: match[0]
        for name in config.options
        if name not in known and (match := difflib.get_close_matches(name, known, n=1))
    }
    return "".join(f"; did you mean {match} for {name}?" for name, match in close.items())


def _size_step(backbone: Any) -> int:
    """The stride of the last features, or that of the patches."""
    stages = getattr(backbone, "feature_info", None)
    stride = stages[-1].get("reduction") if isinstance(stages, list) and stages else None
    if isinstance(stride, int):
        return stride
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    return math.lcm(*patch) if isinstance(patch, tuple | list) else int(patch)


def _own_sizes(backbone: Any) -> set[int]:
    """Sides of the images it was published for: some families (LeViT, SHViT) pad 224 to tokens of 64 pixels."""
    known = backbone.pretrained_cfg
    return {known[key][-1] for key in ("input_size", "test_input_size") if known.get(key)}


def _scale_positions(backbone: Any, name: str, std: float) -> None:
    table = getattr(backbone, "pos_embed", None)
    if table is None:
        raise ConfigError([f"model.encoder.position_std: {name} has no table of positions; leave it out"])
    nn.init.normal_(table, std=std)


def _takes_any_size(backbone: Any) -> bool:
    import timm

    return isinstance(backbone, timm.models.VisionTransformer) and backbone.dynamic_img_size


def _replace_modules(root: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if isinstance(child, old):
                setattr(parent, name, new())
