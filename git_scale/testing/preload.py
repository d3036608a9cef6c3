"""Imported once by the server that ranks fork from: what every rank would import on its own, 6 s of CPU time each.

timm brings torchvision and torch's compiler, megatron-core the parts of a trainer of its own; DeepSpeed's engine
compiles an optimizer that is never used here, which imports the rest; the first model on `meta` brings
torch's decompositions. The processor's peak rates are measured here: 0.4 s for each rank otherwise. Garbage
collection passes over all of it from then on: it would take 0.3 s a time in each rank, DeepSpeed asks for it, and it
would copy the server's memory.
"""

from __future__ import annotations

import gc
import importlib
import warnings

import torch

import git_scale.training.build  # noqa: F401
from git_scale.config import EncoderConfig
from git_scale.models.build import build_encoder
from git_scale.monitoring.peak import peak_flops
from git_scale.precision import DTYPES

importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # see parallel/comm.py
    importlib.import_module("git_scale.parallel.tensor")
with torch.device("meta"):
    build_encoder(EncoderConfig(name="vit_tiny_patch16_224"))
threads = torch.get_num_threads()
torch.set_num_threads(1)  # a pool of threads would be lost to the ranks that fork from here, and hang them
for precision in DTYPES:
    peak_flops(torch.device("cpu"), precision)
torch.set_num_threads(threads)
gc.freeze()
