"""The planned number of ZeRO-3's collectives against those of a real step on two ranks."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.objectives.training_loss import TrainingLoss, total
from git_scale.parallel.engine import Engine
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.topology import Topology
from git_scale.planning.local_model import build_local, parameters_of
from git_scale.planning.partition_sizes import partition_sizes
from git_scale.planning.step_time import parameter_gathers, reduce_buckets, regathered_share
from git_scale.planning.zero_config import read_zero_config
from git_scale.recipes import load_run
from git_scale.testing.distributed import run_distributed
from git_scale.training.init_model import deferred_model
from git_scale.training.optimizer import parameter_groups

WORLD = 2
RUN = load_run(
    "git_base",
    [
        "model.encoder={name: vit_tiny_patch16_224, image_size: 64, options: {embed_dim: 64, num_heads: 4}}",
        "model.decoder={layers: 4, width: 64, heads: 4, ffn: 256}",
        "model.vocab_size=200",
        "data.image_sizes=[]",
        "train.precision=fp32",
        "train.micro_batch=1",
        f"train.global_batch={WORLD}",
    ],
)


def collectives(
    topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]
) -> Counter[str]:
    """Of a step in which DeepSpeed knows what is needed when: gatherings and scatterings by part of the step."""
    deferred = deferred_model(run)
    materialised = materialise_model(deferred, run, deferred.first_value, ds_config, topology, device)
    groups = parameter_groups(materialised.model, materialised.shapes, run.optimizer)
    engine = Engine(materialised, groups, run, ds_config, topology, device)
    engine.model.train()
    images = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
    tokens = torch.ones(1, run.data.texts_per_image, run.data.max_text_tokens, dtype=torch.long)
    rows = torch.arange(tokens.numel() - 1)
    batch = Batch(images, tokens, rows, tokens.flatten()[rows], keys=[], problems=[])
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as passes:
            losses = TrainingLoss(run).of(engine.forward, batch, engine.dtype, {"lm": len(rows)}, engine.comm)
            engine.backward(total(losses))
        with profile(activities=[ProfilerActivity.CPU]) as update:
            engine.step()
    found: Counter[str] = Counter()
    for part, trace in (("passes", passes), ("update", update)):
        for name in event_names(trace):
            if name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
                found[f"{part} {name.split('_')[1]}"] += 1
    return found


def event_names(trace: profile) -> list[str]:
    """From a file, since trace.events() builds a tree of all of them, which takes half a minute."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        return [event["name"] for event in json.loads(path.read_text())["traceEvents"]]


@pytest.mark.distributed
def test_planned_collectives_are_those_of_a_step() -> None:
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 1000,
        "stage3_prefetch_bucket_size": 100_000,
        "stage3_max_live_parameters": 300_000,  # of 950,000
        "stage3_max_reuse_distance": 300_000,
        "reduce_bucket_size": 200_000,
    }
    (found, _) = run_distributed(collectives, WORLD, RUN, {"zero_optimization": zero})
    read = read_zero_config({"zero_optimization": zero}, RUN.train.precision)
    sizes = partition_sizes(parameters_of(build_local(RUN).model), read, WORLD)
    assert sizes.parameters > 3 * read.max_live_parameters
    assert found["update allgather"] == sizes.persistent_parameters
    planned = parameter_gathers(sizes, read) * (1 + regathered_share(sizes, read, checkpointing=False))
    assert found["passes allgather"] == pytest.approx(planned, rel=0.2)
    assert found["passes reduce"] == pytest.approx(reduce_buckets(sizes, read), abs=2)
