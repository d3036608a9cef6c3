"""Imported once by the server that ranks fork from: what every rank would import on its own, 6 s of CPU time each.

timm brings torchvision and torch's compiler, megatron-core the parts of a trainer of its own; DeepSpeed's engine
compiles an optimizer that is never used here, which imports the rest; the first model on `meta` brings
torch's decompositions. Garbage collection passes over all of it from then on: it would take 0.3 s a time in each
rank, DeepSpeed asks for it, and it would copy the server's memory.
"""

from __future__ import annotations

import gc
import importlib
import warnings

import torch

import git_scale.training.build  # noqa: F401
from git_scale.config import EncoderConfig
from git_scale.models.encoders import ImageEncoder

importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # see parallel/groups.py
    importlib.import_module("git_scale.parallel.tensor")
with torch.device("meta"):
    ImageEncoder(EncoderConfig(name="vit_tiny_patch16_224"))
gc.freeze()
