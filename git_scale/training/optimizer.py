"""Which parameter learns at which rate; how the rates move over the run, git_scale/schedules.py says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from git_scale.config import OptimizerConfig
from git_scale.models.interface import tower_of


def parameter_groups(
    model: Any, shapes: Mapping[str, torch.Size], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """AdamW groups {name, params, lr, weight_decay}: each tower of the model x decay / no_decay, none empty.

    `shapes` are those of the whole parameters: a partitioned one shows none. Norms, biases and other vectors have no
    weight decay. An empty group would shift the rates of those after it inside DeepSpeed (DeepSpeedExamples#756).
    """
    towers = model.towers()
    groups: dict[str, dict[str, Any]] = {
        f"{tower}_{decay}": {
            "name": f"{tower}_{decay}",
            "params": [],
            "lr": getattr(config, f"{tower}_lr"),
            "weight_decay": config.weight_decay if decay == "decay" else 0.0,
        }
        for tower in towers
        for decay in ("decay", "no_decay")
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[group_name(tower_of(name, towers), len(shapes[name]))]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def group_name(tower: str, ndim: int) -> str:
    return f"{tower}_{'decay' if ndim >= 2 else 'no_decay'}"
