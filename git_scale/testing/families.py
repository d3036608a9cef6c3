"""One small model of each of timm's families, and what a GIT with it must be able to do.

A family is a module of timm. Each is trained for two steps, saved, loaded, exported and read back; the features must
be the same numbers at every station. `make sweep` does it with all of them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from git_scale.checkpoint.huggingface_export import export_huggingface
from git_scale.checkpoint.initial import values_from
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened import Opened, load_model, open_checkpoint
from git_scale.config import EncoderConfig, RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.models.encoders import declare_torchvision_operators
from git_scale.parallel.topology import Topology
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer
from git_scale.training.start import build_model

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_PATCHES = VIT | {"patch_size": 8}
DEPTHS, DIMS = [1, 1, 1, 1], [16, 32, 48, 64]
PYRAMID = {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [1, 2]}
SWIN = {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 2]}
RESNET = {"channels": DIMS, "layers": DEPTHS}
# Whose smallest model has 10 million parameters and more, or takes seconds per picture: left out of the tests.
LARGE = {
    "byoanet",
    "convmixer",
    "focalnet",
    "gcvit",
    "hrnet",
    "iformer",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lowformer",
    "metaformer",
    "mvitv2",
    "nest",
    "nextvit",
    "pnasnet",
    "rdnet",
    "selecsls",
    "tnt",
    "tresnet",
    "vgg",
    "vitamin",
    "volo",
    "xception",
    "xception_aligned",
}
# family -> (model, side of its pictures, options); of the others the model with the shortest name as it is
TINY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 32, SMALL_PATCHES),
    "byoanet": ("lambda_resnet26t", 64, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "cait": ("cait_xxs24_224", 32, VIT),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 32, VIT),
    "convmixer": ("convmixer_768_32", 32, {}),
    "convnext": ("convnext_atto", 64, {"depths": DEPTHS, "dims": DIMS}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 128, {"dims": DIMS}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {"depths": DEPTHS, "channels": DIMS}),
    "davit": ("davit_tiny", 32, PYRAMID),
    "deepseek_vit": ("deepseek_vit_412m", 32, SMALL_PATCHES),
    "deit": ("deit_tiny_patch16_224", 32, VIT),
    "densenet": ("densenet121", 64, {"growth_rate": 8, "block_config": DEPTHS}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {"depths": DEPTHS, "dims": DIMS}),
    "efficientformer": ("efficientformer_l1", 224, {"depths": DEPTHS, "embed_dims": DIMS}),
    "efficientformer_v2": ("efficientformerv2_s0", 64, {"depths": DEPTHS, "embed_dims": DIMS}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "efficientvim": ("efficientvim_m1", 224, {}),
    "efficientvit_mit": ("efficientvit_b0", 224, {}),
    "efficientvit_msra": ("efficientvit_m0", 96, {"depth": [1, 1, 1, 1]}),
    "eva": ("eva02_tiny_patch14_224", 28, VIT),
    "fasternet": ("fasternet_t0", 64, {"depths": DEPTHS, "embed_dim": 16}),
    "fastvit": ("fastvit_t8", 64, {"layers": DEPTHS}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, {}),
    "gemma4_vit": ("gemma4_vit_167m", 32, SMALL_PATCHES),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_a", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, {"stages": DEPTHS, "embed_dim": 32}),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, {"stages": DEPTHS}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {"dims": DIMS}),
    "inception_next": ("inception_next_atto", 224, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 128, {}),
    "inception_v3": ("inception_v3", 128, {}),
    "inception_v4": ("inception_v4", 128, {}),
    "lcnetv2": ("lcnetv2_small", 64, {"depths": DEPTHS}),
    "levit": ("levit_128s", 96, {}),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("test_mambaout", 64, {}),
    "maxxvit": ("test_maxvit", 160, {}),
    "metaformer": ("poolformer_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 32, {}),
    "mobilenetv3": ("lcnet_035", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {"channel_multiplier": 0.25}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 64, {}),
    "naflexvit": ("naflexvit_base_patch16_siglip", 32, SMALL_PATCHES),
    "nasnet": ("nasnetalarge", 64, {"stem_size": 16, "num_features": 96}),
    "nest": ("nest_tiny", 32, {}),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("test_nfnet", 64, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pnasnet": ("pnasnet5large", 64, {}),
    "pvt_v2": ("pvt_v2_b0", 32, PYRAMID),
    "qwen3_vit": ("qwen3_vit_416m", 32, SMALL_PATCHES),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {"depth": [1, 1, 1, 1], "embed_dim": DIMS}),
    "res2net": ("res2net50_26w_4s", 64, RESNET),
    "resnest": ("resnest14d", 64, RESNET),
    "resnet": ("resnet18", 64, RESNET),
    "resnetv2": ("resnetv2_50", 64, {"layers": DEPTHS, "channels": [16, 16, 32, 32, 64]}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 96, {}),
    "senet": ("legacy_seresnet18", 64, {"layers": DEPTHS}),
    "sequencer": ("sequencer2d_s", 32, {"layers": DEPTHS, "embed_dims": DIMS}),
    "shvit": ("shvit_s1", 96, {"depth": [1, 1, 1, 1]}),
    "sknet": ("skresnet18", 64, RESNET),
    "starnet": ("starnet_s050", 32, {"depths": [1, 1, 1]}),
    "swiftformer": ("swiftformer_xs", 64, {"layers": DEPTHS, "embed_dims": DIMS}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 32, SWIN),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 32, SWIN),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 32, SWIN),
    "tiny_vit": ("tiny_vit_5m_224", 32, PYRAMID),
    "tnt": ("tnt_s_legacy_patch16_224", 32, {"depth": 2}),
    "tresnet": ("tresnet_m", 64, {"layers": DEPTHS}),
    "twins": ("twins_svt_small", 32, PYRAMID),
    "vgg": ("vgg11", 224, {}),
    "visformer": ("visformer_tiny", 64, VIT),
    "vision_transformer": ("vit_base_patch16_clip_quickgelu_224", 32, SMALL_PATCHES),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, {"depth": 2}),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", 32, SMALL_PATCHES),
    "vision_transformer_sam": ("samvit_base_patch16_224", 32, SMALL_PATCHES),
    "vitamin": ("vitamin_small_224", 64, {}),
    "volo": ("volo_d1_224", 224, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 128, {}),
    "xception_aligned": ("xception41", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 32, VIT),
}


@dataclass(frozen=True)
class FamilyResult:
    """What became of a family: `outcome` is "same features", or the reason why it is refused, or what went wrong."""

    family: str
    model: str
    outcome: str
    tokens: int = 0
    width: int = 0
    computed_buffers: int = 0
    """Buffers that no state dict holds."""
    huggingface: bool = False
    """It can be exported to transformers too."""

    @property
    def is_right(self) -> bool:
        return self.outcome == SAME or self.outcome.startswith(REFUSED)


SAME, REFUSED = "same features", "refused: "


def families() -> list[str]:
    declare_torchvision_operators()
    import timm

    return sorted(timm.list_modules())


def tiny_encoder(family: str) -> EncoderConfig:
    """A small model of the family."""
    if family not in TINY:
        import timm

        name = min(timm.list_models(module=family), key=lambda name: (len(name), name))
        return EncoderConfig(name=name, image_size=timm.get_pretrained_cfg(name).input_size[-1])
    name, side, options = TINY[family]
    return EncoderConfig(name=name, image_size=side, options=options)


def try_family(
    topology: Topology, device: torch.device, squares: Path, folder: Path, family: str
) -> FamilyResult:
    """Two steps of training, a checkpoint, exports and imports of one family; `folder` is filled."""
    encoder = tiny_encoder(family)
    run = tiny_run(
        squares,
        folder / "run",
        model={"encoder": encoder.model_dump()},
        train={"steps": 2, "global_batch": 2, "micro_batch": 2},
        data={"heldout": None},
    )
    try:
        expected = _train(run, topology, device)
    except ConfigError as error:
        return FamilyResult(family, encoder.name, REFUSED + _reason(error))
    images = _images(run)
    trained = open_checkpoint(folder / "run")
    export_native(trained, folder / "native")
    native = open_checkpoint(folder / "native")
    deferred = build_model(run)
    values, _ = values_from(deferred, run.model, native)
    stations = {
        "loaded": load_model(trained),
        "read back from its model folder": load_model(native),
        "started from its model folder": deferred.filled(values),
    }
    if huggingface := _export_huggingface(trained, folder / "hf"):
        stations["read back from transformers' folder"] = load_model(open_checkpoint(folder / "hf"))
    outcome = SAME
    for station, model in stations.items():
        if (difference := (_features(model, images) - expected).abs().max()) != 0:
            outcome = f"{station}, its features differ by {float(difference):.2g}"
    held = deferred.module.encoder.state_dict().keys()
    computed = [name for name, _ in deferred.module.encoder.named_buffers() if name not in held]
    tokens, width = expected.shape[1:]
    return FamilyResult(family, encoder.name, outcome, tokens, width, len(computed), huggingface)


def _train(run: RunConfig, topology: Topology, device: torch.device) -> Tensor:
    """The features of the model that was trained and saved."""
    trainer = build_trainer(run, {"zero_optimization": {"stage": 0}}, topology, device)
    for _ in range(run.train.steps):
        trainer.train_step()
        trainer.step += 1
    if not trainer.save():
        raise RuntimeError("the checkpoint was not written")
    return _features(trainer.engine.model.module, _images(run))


def _images(run: RunConfig) -> Tensor:
    side = run.model.encoder.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _features(model: Any, images: Tensor) -> Tensor:
    features: Tensor = model.eval().encoder(images)
    return features


def _export_huggingface(opened: Opened, folder: Path) -> bool:
    try:
        export_huggingface(opened, folder)
    except CheckpointError as error:
        if "no CLIP ViT" not in str(error):
            raise
        return False
    return True


def _reason(error: Exception) -> str:
    return str(error).rpartition("  - ")[2]


def try_families(
    topology: Topology, device: torch.device, squares: Path, scratch: Path, names: list[str]
) -> list[FamilyResult]:
    """Each in turn; what raises anything but a ConfigError is a result as well."""
    results = []
    for family in names:
        folder = scratch / family
        try:
            results.append(try_family(topology, device, squares, folder, family))
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            results.append(FamilyResult(family, tiny_encoder(family).name, f"failed: {reason}"))
        shutil.rmtree(folder, ignore_errors=True)
    return results
