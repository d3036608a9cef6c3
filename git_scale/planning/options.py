"""One setting of a run on a cluster, weighed: memory, time, whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from git_scale.config import RunConfig
from git_scale.models.build import build_encoder
from git_scale.monitoring.flops import TRAIN_TO_FORWARD, decoder_forward_flops, encoder_forward_flops
from git_scale.planning.activations import measure
from git_scale.planning.cluster import Cluster
from git_scale.planning.local_model import count_image_tokens, largest_picture
from git_scale.planning.memory import Load, Memory, on_host, phases
from git_scale.planning.meta import Quick, on_meta
from git_scale.planning.states import BYTES, hold
from git_scale.planning.step_time import StepTime, step_time
from git_scale.planning.zero import read_zero, with_stage


@dataclass(frozen=True)
class Setting:
    """What may be chosen freely: the losses are the same."""

    tp: int
    stage: int
    micro_batch: int
    checkpointing: bool

    def of(self, run: RunConfig) -> RunConfig:
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
class Option:
    """A setting and what it costs."""

    setting: Setting
    accumulation: int
    phases: tuple[Memory, ...]
    """The highest moments of a step, that of forward and backward pass first."""
    host: int
    """Bytes of host memory per rank for what is offloaded."""
    time: StepTime

    @property
    def memory(self) -> Memory:
        return max(self.phases, key=lambda memory: memory.total)


def setting_of(run: RunConfig, ds_config: dict[str, Any]) -> Setting:
    train = run.train
    stage = read_zero(ds_config, train.precision).stage
    return Setting(run.parallel.tp, stage, train.micro_batch, train.activation_checkpointing)


def weigh(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster, setting: Setting) -> Option:
    """Raises ConfigError when the model cannot be split so; the batch must divide."""
    run = setting.of(run)
    precision = run.train.precision
    zero = read_zero(with_stage(ds_config, setting.stage, precision), precision)
    dp = cluster.world_size // setting.tp
    timeline = measure(run, cluster.kind)
    held = hold(timeline.parameters, zero, dp, BYTES[run.train.gradient_precision])
    height, width = largest_picture(run)
    load = Load(
        cluster.kind,
        setting.micro_batch,
        run.accumulation(dp),
        setting.checkpointing,
        inputs=run.model.frames * 3 * height * width,
    )
    return Option(
        setting,
        load.accumulation,
        tuple(phases(held, zero, timeline, load)),
        on_host(held, zero),
        step_time(held, zero, timeline, load, cluster, setting.tp),
    )


def model_flops(run: RunConfig) -> int:
    """Of one sample through forward and backward pass, without recomputation: what utilisation counts.

    Texts count at data.max_text_tokens, pictures at their largest; a frozen encoder as one that learns. Raises
    ConfigError when the encoder does not take pictures of that size.
    """
    return _model_flops(run.model_copy(update={"train": RunConfig().train, "run_dir": "any"}).to_yaml())


@lru_cache(maxsize=8)
def _model_flops(recipe: str) -> int:
    run = RunConfig.model_validate(yaml.safe_load(recipe))
    height, width = largest_picture(run)
    with on_meta():
        encoder = build_encoder(run.model.encoder).eval()  # one picture is too few for a batch norm
    with Quick():
        tokens = count_image_tokens(encoder, run.model.encoder.name, height, width)
        encoder_flops = encoder_forward_flops(encoder, height, width)
    texts, length, frames = run.data.texts_per_image, run.data.max_text_tokens, run.model.frames
    decoder = decoder_forward_flops(
        run.model.decoder,
        run.model.vocab_size,
        encoder.width,
        image_tokens=frames * tokens,
        texts=texts,
        text_tokens=length,
        target_tokens=texts * (length - 1),
    )
    return TRAIN_TO_FORWARD * (decoder + frames * encoder_flops)
