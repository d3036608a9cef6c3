"""One small model of each of timm's families; a family is a module of timm."""

from __future__ import annotations

from typing import Any

from git_scale.config import EncoderConfig
from git_scale.models.encoders import declare_torchvision_operators

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_PATCHES = VIT | {"patch_size": 8}
DEPTHS, DIMS = [1, 1, 1, 1], [16, 32, 48, 64]
PYRAMID = {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [1, 2]}
SWIN = {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 2]}
RESNET = {"channels": DIMS, "layers": DEPTHS}
# These take more than about 3 s of CPU time, for their size or number of layers: the tests leave them to the sweep.
SLOW = frozenset(
    [
        "byoanet",
        "convmixer",
        "csatv2",
        "cspnet",
        "dla",
        "dpn",
        "efficientformer_v2",
        "efficientvit_msra",
        "fastvit",
        "focalnet",
        "gcvit",
        "ghostnet",
        "hardcorenas",
        "hgnet",
        "hrnet",
        "iformer",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "levit",
        "lowformer",
        "maxxvit",
        "metaformer",
        "mlp_mixer",
        "mobilenetv5",
        "mobilevit",
        "mvitv2",
        "nasnet",
        "nest",
        "nextvit",
        "pit",
        "pnasnet",
        "rdnet",
        "regnet",
        "rexnet",
        "selecsls",
        "senet",
        "shvit",
        "tnt",
        "tresnet",
        "vgg",
        "vitamin",
        "volo",
        "xception",
        "xception_aligned",
    ]
)
# family -> (model, side of its images, options); of the others the model with the shortest name as it is
TINY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 32, SMALL_PATCHES),
    "byoanet": ("lambda_resnet26t", 64, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "cait": ("cait_xxs24_224", 32, VIT),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 32, VIT),
    "convmixer": ("convmixer_768_32", 28, {}),
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
    "efficientvit_msra": ("efficientvit_m0", 128, {"depth": [1, 1, 1, 1]}),
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
    "levit": ("levit_128s", 128, {}),
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
    "selecsls": ("selecsls42", 128, {}),
    "senet": ("legacy_seresnet18", 64, {"layers": DEPTHS}),
    "sequencer": ("sequencer2d_s", 28, {"layers": DEPTHS, "embed_dims": DIMS}),
    "shvit": ("shvit_s1", 128, {"depth": [1, 1, 1, 1]}),
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
