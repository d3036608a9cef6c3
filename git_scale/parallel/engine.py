"""DeepSpeed behind the few verbs that the training loop needs. Nothing else imports deepspeed."""

from __future__ import annotations

import datetime
import logging
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # unasked, DeepSpeed prints a warning among a tool's results

import deepspeed
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn

from git_scale.config import OptimizerConfig, RunConfig
from git_scale.files import FileDigest, write_durably
from git_scale.parallel.ds_config import merge_ds_config, offloads_optimizer, zero_stage
from git_scale.parallel.topology import Topology

try:
    from apex.optimizers import FusedAdam as ApexAdam  # NVIDIA's, not the package of that name on PyPI
except ImportError:
    ApexAdam = None

log = logging.getLogger(__name__)

# A rank that waits longer for its peers than any evaluation or checkpoint takes is waiting for a dead one.
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)

ParameterGroup = dict[str, Any]  # name, params, lr, weight_decay


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did; grad_norm is the global one before clipping, inf when not finite."""

    grad_norm: float
    skipped: bool


def start_processes(topology: Topology) -> torch.device:
    """Joins the process group (NCCL on CUDA, gloo elsewhere) and returns this process's device."""
    os.environ.update(
        RANK=str(topology.global_rank),
        WORLD_SIZE=str(topology.world_size),
        LOCAL_RANK=str(topology.local_rank),
        MASTER_ADDR=topology.master_addr,
        MASTER_PORT=str(topology.master_port),
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    _quiet_deepspeed()
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return device


def stop_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quiet_deepspeed() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives under names that torch 2.13 renamed: a line per call and rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # DeepSpeed's shared-memory collectives for CPU are compiled at the first start, under a lock that a killed
    # process leaves behind and later ones wait for without end. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Engine:
    """One model under DeepSpeed: forward, backward, step, learning rates, state on disk."""

    def __init__(
        self,
        model: nn.Module,
        groups: list[ParameterGroup],
        run: RunConfig,
        ds_config: dict[str, Any],
        topology: Topology,
        device: torch.device,
    ) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
        self.stage = zero_stage(ds_config)
        self.base_learning_rates = {group["name"]: group["lr"] for group in groups}
        self._dp = topology.dp
        optimizer = build_adamw(groups, run.optimizer, device, offloads_optimizer(ds_config))
        config = merge_ds_config(ds_config, run, topology.dp)
        # DeepSpeed keeps no norm and skips no step for stage 0 in fp32: there both are done here.
        self._clip_norm = config["gradient_clipping"]
        self._clips_itself = self.stage == 0 and self.dtype == torch.float32
        if self._clips_itself:
            config["gradient_clipping"] = 0.0
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self._engine.checkpoint_engine = self._files = _DurableCheckpointEngine(self._engine)

    @property
    def model(self) -> Any:
        """The model as the engine wraps it: a Decodable with train() and eval()."""
        return self._engine

    @property
    def is_whole_on_each_rank(self) -> bool:
        """False under ZeRO-3, where every forward pass is collective."""
        return self.stage < 3

    def forward(self, images_BFCHW: Tensor, tokens_BKT: Tensor, rows: Tensor) -> Tensor:
        return self._engine(images_BFCHW, tokens_BKT, rows)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` to the sum over this step's micro-batches and ranks.

        DeepSpeed averages gradients over the dp ranks; the factor undoes that. Its own division by the number
        of micro-batches is switched off.
        """
        self._engine.backward(loss * self._dp, scale_wrt_gas=False)

    def step(self) -> StepReport | None:
        """Ends a micro-batch; at the last one of a step clips, updates the weights and reports.

        A step whose gradients are not finite on any rank changes nothing on all of them.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return None
        grad_norm = self._clip() if self._clips_itself else None
        self._engine.step()
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        skipped = not math.isfinite(grad_norm) or not self._engine.was_step_applied()
        return StepReport(grad_norm=grad_norm if math.isfinite(grad_norm) else math.inf, skipped=skipped)

    def _clip(self) -> float:
        """Clips the gradients, which all ranks share by now; takes them away when they are not finite."""
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if bool(norm.isfinite()):
            nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        else:
            self._engine.module.zero_grad(set_to_none=True)  # AdamW passes over parameters without gradient
        return float(norm)

    def average_statistics(self) -> None:
        """Makes the running statistics of batch norms, which each rank keeps of its own samples, one. Collective."""
        for module in self._engine.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistic in (buffer for buffer in module.buffers() if buffer.is_floating_point()):
                    torch.distributed.all_reduce(statistic)
                    statistic /= self._dp

    def set_learning_rates(self, factor: float) -> None:
        """Each group's learning rate = its configured one x factor."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.base_learning_rates[group["name"]] * factor

    def learning_rates(self) -> dict[str, float]:
        """The rates that the innermost optimizer will use, by group name."""
        return {group["name"]: float(group["lr"]) for group in self._engine.basic_optimizer.param_groups}

    def save(self, folder: Path) -> tuple[list[FileDigest], OSError | None]:
        """Writes this rank's share of weights and optimizer state; collective.

        Returns what was written and the error, if the disk refused: the other ranks are not left waiting.
        """
        self._files.begin()
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        return self._files.digests, self._files.error

    def load(self, folder: Path) -> None:
        """Restores weights and optimizer state written by `save` with the same number of ranks; collective."""
        self._engine.load_checkpoint(str(folder.parent), tag=folder.name)


class InferenceEngine:
    """A model that only runs forward: whole on each rank or, under ZeRO-3, partitioned over them."""

    def __init__(
        self, model: nn.Module, ds_config: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.is_whole_on_each_rank = zero_stage(ds_config) < 3
        self.model: Any = model.to(dtype)
        if self.is_whole_on_each_rank:
            self.model.to(device)
            return
        config = {
            **ds_config,
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants one; nothing is trained
            "bf16": {"enabled": dtype == torch.bfloat16},
        }
        self.model, *_ = deepspeed.initialize(model=model, config=config)


class _DurableCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's file layer: files that hold tensors and plain values only, written durably, with digests.

    Write errors are remembered instead of raised: a raised one would leave the other ranks in DeepSpeed's
    barrier until the collective timeout.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        super().__init__()
        self._engine = engine
        self.begin()

    def begin(self) -> None:
        self.digests: list[FileDigest] = []
        self.error: OSError | None = None

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        plain = _without_objects(state_dict)
        try:
            self.digests.append(write_durably(Path(path), lambda file: torch.save(plain, file)))
        except OSError as error:
            self.error = error
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            self.error = OSError(f"{path}: {error}")

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        if "zero_stage" in (optimizer := state.get("optimizer_state_dict", {})):
            optimizer["loss_scaler"] = self._engine.optimizer.loss_scaler
        return state


def _without_objects(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state without what only a pickle can hold.

    The loss scaler is constant without fp16, and the slice mappings serve DeepSpeed's own converter alone.
    """
    optimizer = state_dict.get("optimizer_state_dict", {})
    if "zero_stage" not in optimizer:
        return state_dict
    objects = ("loss_scaler", "param_slice_mappings")
    plain = {key: value for key, value in optimizer.items() if key not in objects}
    return {**state_dict, "optimizer_state_dict": {**plain, "zero_stage": int(optimizer["zero_stage"])}}


def build_adamw(
    groups: list[ParameterGroup], config: OptimizerConfig, device: torch.device, offload: bool = False
) -> torch.optim.Optimizer:
    """A fused AdamW: DeepSpeed's on the host when states are offloaded, else apex's on CUDA or torch's."""
    options: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if offload:
        return deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    if device.type == "cuda" and ApexAdam is not None:
        return ApexAdam(groups, **options)
    # Fused also on CPU: 0.16 s instead of 1.19 s for the 153M parameters of git_base on two cores.
    return torch.optim.AdamW(groups, fused=True, **options)
