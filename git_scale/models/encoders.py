"""Image encoders: any timm architecture, seen as a sequence of feature tokens."""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import EncoderConfig
from git_scale.errors import ConfigError

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


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation.

    As a SiLU it keeps one tensor for the backward pass where the plain form keeps two: 3 of 23.5 GiB in bf16
    for 64 pictures through ViT-L/14.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


class ImageEncoder(nn.Module):
    """A timm model without its classifier: pictures to normalised feature tokens.

    A ViT keeps its class token (GIT uses all tokens after the last norm); a feature grid is read row by row.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone: Any = _create_timm_model(config)  # timm's models share no typed base class
        self.width = int(self.backbone.num_features)
        self._channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] normalised pixels to [B, I, C] tokens."""
        features = self.backbone(images_BCHW)
        if features.ndim == 3:
            return features
        return features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)

    def set_activation_checkpointing(self, enable: bool) -> None:
        self.backbone.set_grad_checkpointing(enable)


def _create_timm_model(config: EncoderConfig) -> Any:
    declare_torchvision_operators()
    import timm

    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError([f"model.encoder.name={config.name!r}: timm has no such model{hint}"])
    options = dict(config.options)
    if timm.get_pretrained_cfg(config.name, allow_unregistered=True).fixed_input_size:
        options["img_size"] = config.image_size
    try:
        backbone = timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=0, global_pool="", **options
        )
    except (TypeError, AssertionError, ValueError, LookupError) as error:
        raise ConfigError(
            [f"model.encoder: timm refuses {config.name!r} with options {options}: {error}"]
        ) from error
    _replace_modules(backbone, timm.layers.QuickGELU, QuickGelu)
    return backbone


def _replace_modules(root: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if isinstance(child, old):
                setattr(parent, name, new())
