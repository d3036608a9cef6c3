"""Training steps on one GPU through the DeepSpeed engine: images/s, model FLOP utilisation, peak memory.

bf16, ZeRO stage 1, synthetic images at the recipe's size, texts of 40 tokens, dropout as in the recipe, four
micro-batches per step. The images lie on the GPU already: no loader is involved.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import BenchmarkShapes
from benchmarks.synthetic import synthetic_batch
from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.models.build import build_model
from git_scale.models.compiled import compile_blocks
from git_scale.models.deferred import DeferredModel
from git_scale.models.git import count_parameters
from git_scale.monitoring.peak import peak_flops
from git_scale.objectives.training_loss import TrainingLoss, total
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.engine import Engine
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.topology import Topology
from git_scale.planning.model_flops import ModelFlops
from git_scale.recipes import load_run
from git_scale.training.init_model import deferred_model
from git_scale.training.optimizer import parameter_groups

DS_CONFIG = Path(__file__).parents[2] / "ds_configs" / "zero1.json"
GIB = 2**30
MEMORY_SHARE = 0.9  # of the GPU; the rest is left to fragments and to CUDA itself
STATE_BYTES = {"bf16": 18, "fp32": 20}
"""Per parameter, by train.gradient_precision: bf16 weight, gradient, fp32 master, two moments, 2 for buffers."""

Case = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkSetting:
    """Says in what a case differs from the others."""

    texts: int = 1
    activation_checkpointing: bool = False
    compile: bool = False


class TrainingSession:
    """Trains a recipe's model under the engine, in one setting after another."""

    def __init__(
        self, recipe: str, shapes: BenchmarkShapes, device: torch.device, overrides: tuple[str, ...] = ()
    ) -> None:
        self.recipe, self.shapes, self.device = recipe, shapes, device
        self.run = recipe_run(recipe, shapes, overrides)
        topology, ds_config = Topology(), read_ds_config(DS_CONFIG)
        deferred = deferred_model(self.run)
        values = functools.partial(_quick_value, deferred, device)
        materialised = materialise_model(deferred, self.run, values, ds_config, topology, device)
        self.model: Any = materialised.model
        groups = parameter_groups(materialised.model, materialised.shapes, self.run.optimizer)
        self.engine = Engine(materialised, groups, self.run, ds_config, topology, device)
        self.engine.model.train()
        self.loss = TrainingLoss(self.run)
        compile_blocks(self.model, shapes.backend)
        self.switch_to(BenchmarkSetting())
        self.step(self.batch(1, 1))  # the first step makes the optimizer's states

    def switch_to(self, setting: BenchmarkSetting) -> None:
        self.model.set_activation_checkpointing(setting.activation_checkpointing)
        torch.compiler.set_stance("default" if setting.compile else "force_eager")

    def batch(self, images: int, texts: int) -> Batch:
        generator = torch.Generator().manual_seed(0)
        tokens = self.shapes.text_tokens
        return synthetic_batch(self.run.model, images, texts, tokens, generator).to(self.device)

    def step(self, batch: Batch) -> torch.Tensor:
        """One step of all micro-batches as the trainer does it."""
        loss = torch.zeros(())
        for _ in range(self.shapes.accumulation):
            loss = self._micro_loss(batch)
            self.engine.backward(loss)
            self.engine.step()
        return loss.detach()

    def measure(self, setting: BenchmarkSetting, micro_batch: int) -> Case:
        self.switch_to(setting)
        shapes, batch = self.shapes, self.batch(micro_batch, setting.texts)
        reset_peak(self.device)
        started = time.perf_counter()
        losses = [self.step(batch) for _ in range(shapes.warm_up)]
        synchronise(self.device)
        warm = time.perf_counter()
        losses += [self.step(batch) for _ in range(shapes.timed)]
        synchronise(self.device)
        step_s = (time.perf_counter() - warm) / shapes.timed
        flops = ModelFlops(self.run.model).of_step([batch] * shapes.accumulation)
        return {
            "recipe": self.recipe,
            **asdict(setting),
            "gradient_precision": self.run.train.gradient_precision,
            "micro_batch": micro_batch,
            "accumulation": shapes.accumulation,
            "text_tokens": shapes.text_tokens,
            "warm_up_s": round(warm - started, 1),
            "step_s": round(step_s, 5),
            "images_per_s": round(shapes.accumulation * micro_batch / step_s, 1),
            "model_tflops_per_s": round(flops / step_s / 1e12, 2),
            "mfu": round(flops / step_s / peak_flops(self.device, self.run.train.precision), 4),
            "peak_gib": round(peak_gib(self.device), 2),
            "first_loss": round(float(losses[0]), 4),
            "last_loss": round(float(losses[-1]), 4),
        }

    def fitting_micro_batch(self, setting: BenchmarkSetting) -> int:
        """The largest whose forward and backward pass, extrapolated from two small ones, fit.

        Fitted plain: compiled blocks take no more memory, but compile anew for each size.
        """
        self.switch_to(BenchmarkSetting(setting.texts, setting.activation_checkpointing))
        small, larger = self.shapes.probes
        peaks = []
        for images in (small, larger):
            batch = self.batch(images, setting.texts)
            for number in range(self.shapes.accumulation):
                reset_peak(self.device)
                self.engine.backward(self._micro_loss(batch))
                if number == 1:  # all gradients are there already
                    peaks.append(peak_gib(self.device))
                self.engine.step()
        per_image = (peaks[1] - peaks[0]) / (larger - small)
        room = MEMORY_SHARE * memory_gib(self.device) - peaks[1]
        sizes = self.shapes.micro_batches
        return next((size for size in sizes if (size - larger) * per_image <= room), larger)

    def _micro_loss(self, batch: Batch) -> torch.Tensor:
        counts = {
            name: self.shapes.accumulation * term.count(batch) for name, term in self.loss.terms.items()
        }
        return total(self.loss.of(self.engine.forward, batch, self.engine.dtype, counts, self.engine.comm))


def recipe_run(recipe: str, shapes: BenchmarkShapes, overrides: tuple[str, ...] = ()) -> RunConfig:
    batch = (f"train.global_batch={shapes.accumulation}", "train.micro_batch=1")
    return load_run(recipe, [*batch, *shapes.recipes.get(recipe, ()), *overrides])


def measure_recipe(
    recipe: str,
    settings: Sequence[BenchmarkSetting],
    shapes: BenchmarkShapes,
    device: torch.device,
    overrides: tuple[str, ...] = (),
) -> Iterator[Case]:
    """The cases of one recipe, each as soon as it is measured; a case without room holds its reason."""
    if reason := reason_to_skip(recipe_run(recipe, shapes, overrides), device):
        yield {"recipe": recipe, "skipped": reason}
        return
    yield from measure_settings(TrainingSession(recipe, shapes, device, overrides), settings)


def measure_settings(session: TrainingSession, settings: Sequence[BenchmarkSetting]) -> Iterator[Case]:
    micro_batches: dict[tuple[int, bool], int] = {}
    for setting in settings:
        shape = (setting.texts, setting.activation_checkpointing)
        try:
            if shape not in micro_batches:
                micro_batches[shape] = session.fitting_micro_batch(setting)
            yield session.measure(setting, micro_batches[shape])
        except torch.OutOfMemoryError as error:
            reason = f"out of memory: {str(error).splitlines()[0]}"
            yield {"recipe": session.recipe, **asdict(setting), "skipped": reason}
            return  # gradients of half a backward pass are in the engine


def reason_to_skip(run: RunConfig, device: torch.device) -> str | None:
    """Why the model's states cannot fit, before minutes go into building them."""
    with torch.device("meta"):
        parameters = count_parameters(build_model(run.model))
    needed = parameters * STATE_BYTES[run.train.gradient_precision] / GIB
    room = MEMORY_SHARE * memory_gib(device)
    if needed <= room:
        return None
    return f"{parameters / 1e9:.2f}B parameters need {needed:.0f} GiB for their states, {room:.0f} GiB are usable"


def _quick_value(deferred: DeferredModel, device: torch.device, name: str) -> torch.Tensor:
    """Matrices at random on the GPU: seconds for billions of numbers, where a CPU takes a minute."""
    shape = deferred.shape(name)
    if len(shape) < 2:
        return deferred.first_value(name)
    return torch.empty(shape, device=device).normal_(std=0.02)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most memory that tensors held since `reset_peak`; 0 on the CPU, where torch does not count it."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
