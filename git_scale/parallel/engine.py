"""DeepSpeed behind the few verbs that the training loop needs. zero.py is the only other file to import it."""

from __future__ import annotations

import datetime
import logging
import math
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # unasked, DeepSpeed prints a warning among a tool's results

import deepspeed
from torch import Tensor, nn

from git_scale.checkpoint import state as stored
from git_scale.checkpoint.weights import check_names
from git_scale.config import RunConfig
from git_scale.files import FileDigest
from git_scale.parallel import buffers
from git_scale.parallel.comm import DP, TP, Group, TensorParallelComm, form_groups
from git_scale.parallel.ds_config import (
    averages_gradients,
    merge_ds_config,
    offloads_optimizer,
    zero_stage,
)
from git_scale.parallel.materialise import MaterialisedModel
from git_scale.parallel.mpu import mpu_of_run
from git_scale.parallel.replicas import check_alike
from git_scale.parallel.topology import Topology
from git_scale.parallel.zero import ParameterGroup, RankState, ZeroEngine, build_adamw
from git_scale.precision import DTYPES
from git_scale.stop import listening

log = logging.getLogger(__name__)

# A rank that waits longer for its peers than any evaluation or checkpoint takes is waiting for a dead one.
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)

NO_AVERAGE_HERE = "optimizer.ema is not set: the average of the weights in the checkpoint goes no further"
NO_AVERAGE_THERE = (
    "optimizer.ema: the checkpoint has no average of the weights, so that it begins with them as they are"
)


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer step did; grad_norm is the global one before clipping, inf when not finite."""

    grad_norm: float
    skipped: bool


def start_processes(topology: Topology) -> torch.device:
    """Joins the process group (NCCL on CUDA, gloo elsewhere) and returns this process's device.

    Raises Stopped when a stop is asked for before all have joined.
    """
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
    listening(  # the ranks wait for the last of them to start
        lambda: deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=COLLECTIVE_TIMEOUT,
        )
    )
    form_groups(topology)
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
        materialised: MaterialisedModel,
        groups: list[ParameterGroup],
        run: RunConfig,
        ds_config: dict[str, Any],
        topology: Topology,
        device: torch.device,
    ) -> None:
        self.device = device
        self.dtype = DTYPES[run.train.precision]
        self.stage = zero_stage(ds_config, run.train.precision)
        self.base_learning_rates = {group["name"]: group["lr"] for group in groups}
        self._materialised = materialised
        self._topology = topology
        self.comm = TensorParallelComm(TP if run.parallel.decoder else Group(is_alone=True))
        optimizer = build_adamw(groups, run.optimizer, device, offloads_optimizer(ds_config))
        config = merge_ds_config(ds_config, run, topology.dp)
        # DeepSpeed keeps no norm and skips no step for stage 0: there both are done here.
        self._clip_norm = config["gradient_clipping"]
        self._clips_itself = self.stage == 0
        if self._clips_itself:
            config["gradient_clipping"] = 0.0
        self._engine = ZeroEngine(materialised.model, config, mpu_of_run(), optimizer)
        self._gradient_factor = topology.dp if averages_gradients(self.stage) else 1
        if self.stage in (1, 2):
            # A non-finite norm skips a step already (`step` in deepspeed/runtime/zero/stage_1_and_2.py). This check
            # before it launches some 15 kernels per parameter, for which a GPU waits.
            self._engine.optimizer.check_overflow = lambda partition_gradients: None
        self._rank_state = RankState(self._engine, self.stage, topology, run.optimizer.ema)
        self.average = self._rank_state.average
        self._kept = buffers.KeptBuffers(self._engine.module)
        self._step_begins = True

    @property
    def model(self) -> Any:
        """The model as the engine wraps it: an AutoregressiveModel with train() and eval()."""
        return self._engine

    @property
    def is_whole_on_each_rank(self) -> bool:
        """False under ZeRO-3 and tensor parallelism, where every forward pass is collective."""
        return self.stage < 3 and self._topology.tp == 1

    def forward(self, *inputs: Any) -> Tensor:
        """The model's output, of ModelInputs in objectives/objective.py."""
        if self._step_begins:
            self._kept.keep()
            self._step_begins = False
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` to the sum over this step's micro-batches and ranks.

        Where DeepSpeed averages gradients over the dp ranks, the factor undoes that. Its own division by the number
        of micro-batches is switched off.
        """
        self._engine.backward(loss * self._gradient_factor, scale_wrt_gas=False)

    def step(self) -> UpdateResult | None:
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
        if skipped:
            self._forget_step()
        elif self.average is not None:
            self.average.update()
        self._step_begins = True
        return UpdateResult(grad_norm=grad_norm if math.isfinite(grad_norm) else math.inf, skipped=skipped)

    def _forget_step(self) -> None:
        """Takes away what a skipped step has left: changed buffers, and gradients that are not finite."""
        self._kept.go_back()
        if self.stage in (1, 2):
            # With the optimizer on the host DeepSpeed leaves them there, and adds the next step's to them.
            self._engine.optimizer.averaged_gradients.clear()

    def _clip(self) -> float:
        """Clips the gradients, which the data-parallel ranks share by now; takes them away when not finite."""
        learning = [p for p in self._engine.module.parameters() if p.grad is not None]
        whole = [p.grad for p in learning if not p.tensor_model_parallel]
        split = [p.grad for p in learning if p.tensor_model_parallel]
        of_split = TP.sum_(_norm(split, self.device) ** 2)
        norm = torch.sqrt(_norm(whole, self.device) ** 2 + of_split)
        if bool(norm.isfinite()):
            nn.utils.clip_grads_with_norm_(learning, self._clip_norm, norm)
        else:
            self._engine.module.zero_grad(set_to_none=True)  # AdamW passes over parameters without gradient
        return float(norm)

    def holding(self, weights: str) -> AbstractContextManager[None]:
        """With the weights that eval.weights names in the place of the trained ones. Collective."""
        return self._rank_state.averaged() if weights == stored.EMA else nullcontext()

    def average_statistics(self) -> None:
        """Makes the running statistics of batch norms, which each rank keeps of its own samples, one. Collective.

        Raises RuntimeError when some are not finite.
        """
        buffers.average_statistics(self._engine.module)

    def set_learning_rates(self, factor: float) -> None:
        """Each group's learning rate = its configured one x factor."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.base_learning_rates[group["name"]] * factor

    def tower_learning_rates(self) -> dict[str, float]:
        """The rate of each tower of the model; 0 where all of it is frozen."""
        rates = self.learning_rates()
        return {
            tower: max((rate for name, rate in rates.items() if name.startswith(f"{tower}_")), default=0.0)
            for tower in self.model.module.towers()
        }

    def learning_rates(self) -> dict[str, float]:
        """The rates that the innermost optimizer will use, by group name."""
        return {group["name"]: float(group["lr"]) for group in self._engine.basic_optimizer.param_groups}

    def save(self, path: Path) -> FileDigest:
        """Writes what this rank has to contribute to a checkpoint. Raises OSError."""
        return stored.write_pieces(path, self._topology.tp_rank, self._rank_state.pieces())

    def check_replicas(self) -> None:
        """Raises RuntimeError when ranks differ in what they hold alike (replicas.py). Collective."""
        if self._topology.dp > 1:
            replicated = self._rank_state.replicated_over_dp()
            check_alike(replicated, "the data-parallel ranks", DP, self.device)
        if self._topology.tp > 1:
            replicated = self._rank_state.replicated_over_tp()
            check_alike(replicated, "the ranks of a tensor-parallel group", TP, self.device)

    def state_index(self) -> stored.StateIndex:
        """What all ranks' files have in common."""
        materialised = self._materialised
        return stored.StateIndex(
            tp=self._topology.tp,
            adam_steps=self._rank_state.adam_steps,
            shapes=materialised.shapes,
            splits={name: materialised.splits.get(name) for name in materialised.shapes},
            aliases=materialised.aliases,
        )

    def load(self, state: stored.TrainingState) -> None:
        """Restores weights and optimizer state, whatever number of ranks and ZeRO stage wrote them; collective.

        Raises CheckpointError when the state is another model's.
        """
        check_names(state.folder, self._materialised.shapes, state.index.shapes)
        if state.has_average != (self.average is not None):
            log.warning("%s", NO_AVERAGE_HERE if state.has_average else NO_AVERAGE_THERE)
        topology, splits = self._topology, self._materialised.splits
        self._rank_state.restore(
            lambda piece, kind: state.read_piece(
                piece, kind, splits.get(piece.name), topology.tp, topology.tp_rank
            ),
            state.index.adam_steps,
            state.has_average,
        )


def _norm(tensors: list[Tensor], device: torch.device) -> Tensor:
    return nn.utils.get_total_norm(tensors) if tensors else torch.zeros((), device=device)


class InferenceEngine:
    """A model that only runs forward: whole on each rank, partitioned (ZeRO-3) or split (tensor-parallel)."""

    def __init__(
        self,
        materialised: MaterialisedModel,
        run: RunConfig,
        ds_config: dict[str, Any],
        topology: Topology,
        device: torch.device,
    ) -> None:
        self.device = device
        self.dtype = DTYPES[run.train.precision]
        stage = zero_stage(ds_config, run.train.precision)
        self.is_whole_on_each_rank = stage < 3 and topology.tp == 1
        self.model: Any = materialised.model
        if stage == 3:
            config = merge_ds_config(ds_config, run, topology.dp)
            self.model = ZeroEngine(materialised.model, config, mpu_of_run())
