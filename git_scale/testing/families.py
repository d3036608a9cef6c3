"""What a GIT must be able to do with an image encoder of each of timm's families.

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

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.huggingface_export import export_huggingface
from git_scale.checkpoint.initial import values_from
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_model
from git_scale.config import RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.parallel.topology import Topology
from git_scale.testing.tiny import tiny_run
from git_scale.testing.tiny_encoders import tiny_encoder
from git_scale.training.build import build_trainer
from git_scale.training.init_model import deferred_model


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
    deferred = deferred_model(run)
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
    if trainer.lease is not None:
        trainer.lease.release()
    return _features(trainer.engine.model.module, _images(run))


def _images(run: RunConfig) -> Tensor:
    side = run.model.encoder.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _features(model: Any, images: Tensor) -> Tensor:
    features: Tensor = model.eval().encoder(images)
    return features


def _export_huggingface(opened: OpenedCheckpoint, folder: Path) -> bool:
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
