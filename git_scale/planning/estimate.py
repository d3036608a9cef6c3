"""The memory and time that a setting of a run is estimated to take on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from git_scale.config import RunConfig
from git_scale.planning.cluster import Cluster
from git_scale.planning.local_model import largest_image
from git_scale.planning.longest_text import longest_examples, share_with_images
from git_scale.planning.memory import PhaseMemory, StepShape, host_bytes, phase_peaks
from git_scale.planning.model_flops import ModelFlops
from git_scale.planning.partition_sizes import partition_sizes
from git_scale.planning.profiling import profile_micro_batch
from git_scale.planning.step_time import StepTime, step_time
from git_scale.planning.zero_config import read_zero_config, with_zero_stage
from git_scale.precision import DTYPES


@dataclass(frozen=True)
class TunableSetting:
    """What a plan may choose for a run: its losses stay the same."""

    tp: int
    stage: int
    micro_batch: int
    checkpointing: bool

    def applied_to(self, run: RunConfig) -> RunConfig:
        """The run with this setting; the stage lies in its DeepSpeed configuration."""
        train = {"micro_batch": self.micro_batch, "activation_checkpointing": self.checkpointing}
        return run.model_copy(
            update={
                "train": run.train.model_copy(update=train),
                "parallel": run.parallel.model_copy(update={"tp": self.tp}),
            }
        )

    def __str__(self) -> str:
        """As it is written on a command line."""
        ds_config = f"--ds_config ds_configs/zero{self.stage}.json" if self.stage else "no --ds_config"
        return (
            f"parallel.tp={self.tp} train.micro_batch={self.micro_batch}"
            f" train.activation_checkpointing={str(self.checkpointing).lower()}, {ds_config}"
        )


@dataclass(frozen=True)
class SettingEstimate:
    """A setting, and the memory and time that it takes."""

    setting: TunableSetting
    accumulation: int
    phases: tuple[PhaseMemory, ...]
    """The highest moments of a step, that of forward and backward pass first."""
    host: int
    """What is offloaded takes so many bytes of host memory per rank."""
    time: StepTime

    @property
    def memory(self) -> PhaseMemory:
        return max(self.phases, key=lambda memory: memory.total)


def setting_of(run: RunConfig, ds_config: dict[str, Any]) -> TunableSetting:
    train = run.train
    stage = read_zero_config(ds_config, train.precision).stage
    return TunableSetting(run.parallel.tp, stage, train.micro_batch, train.activation_checkpointing)


def estimate_setting(
    run: RunConfig, ds_config: dict[str, Any], cluster: Cluster, setting: TunableSetting
) -> SettingEstimate:
    """Raises ConfigError when the model cannot be split so; the batch must divide."""
    run = setting.applied_to(run)
    precision = run.train.precision
    zero = read_zero_config(with_zero_stage(ds_config, setting.stage, precision), precision)
    dp = cluster.world_size // setting.tp
    profile = profile_micro_batch(run, cluster.kind)
    gradient = DTYPES[run.train.gradient_precision].itemsize
    sizes = partition_sizes(profile.parameters, zero, dp, gradient, has_average=run.optimizer.ema is not None)
    height, width = largest_image(run)
    shape = StepShape(
        cluster.kind,
        setting.micro_batch,
        run.accumulation(dp),
        setting.checkpointing,
        sample_bytes=run.model.frames * 3 * height * width,
    )
    return SettingEstimate(
        setting,
        shape.accumulation,
        tuple(phase_peaks(sizes, zero, profile, shape)),
        host_bytes(sizes, zero),
        step_time(sizes, zero, profile, shape, cluster, setting.tp),
    )


def flops_per_sample(run: RunConfig) -> int:
    """Texts count at data.max_text_tokens, images at their largest; a frozen encoder counts as one that learns.

    Raises ConfigError when the encoder does not take images of that size.
    """
    examples, texts = longest_examples(run), run.data.texts_per_image
    flops, share = ModelFlops(run.model), share_with_images(run)
    length = max(len(example.tokens) for example in examples)
    of_texts = texts * len(examples), length, texts * sum(len(example.rows) for example in examples)
    with_image = flops.of_sample(run.model.frames, *largest_image(run), *of_texts)
    return round(share * with_image + (1 - share) * flops.of_text(*of_texts))
