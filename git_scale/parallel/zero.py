"""What a rank holds of weights and optimizer state under each ZeRO stage: DeepSpeed's inner layout, in one place.

    stage 0      the whole share of a parameter: fp32 weights
    stage 1, 2   a flat fp32 vector per parameter group, cut over the data-parallel ranks anywhere
    stage 3      1/dp of each parameter, padded

Every rank's pieces go into the checkpoint as they are, and come out of whatever pieces lie there
(git_scale/checkpoint/state.py). DeepSpeed's own files serve the same number of ranks of the same stage alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from torch import Tensor, nn

from git_scale.checkpoint.state import EMA, MOMENT_NAMES, WEIGHT, HeldPieces, ParameterPiece
from git_scale.config import OptimizerConfig
from git_scale.parallel.average import WeightAverage
from git_scale.parallel.buffers import persistent_buffers
from git_scale.parallel.topology import Topology

try:
    from apex.optimizers import FusedAdam as ApexAdam  # NVIDIA's, not the package of that name on PyPI
except ImportError:
    ApexAdam = None

Read = Callable[[ParameterPiece, str], Tensor]
ParameterGroup = dict[str, Any]  # name, params, lr, weight_decay


@dataclass(frozen=True)
class _Master:
    """Where a piece's fp32 numbers are: a part of the vector that the inner optimizer updates."""

    piece: ParameterPiece
    vector: Tensor
    offset: int

    def view(self, whole: Tensor) -> Tensor:
        """The piece's part of the vector, or of a moment of its shape."""
        return whole.detach().view(-1).narrow(0, self.offset, self.piece.length)


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


class ZeroEngine(deepspeed.DeepSpeedEngine):
    """DeepSpeed's engine with one class of optimizer, and so one layout, for stages 1 and 2 in any precision.

    Left alone, it takes BF16_Optimizer for stage 1 where gradients of bf16 weights are summed in fp32. That one has
    other inner names, keeps an fp32 gradient of every parameter between the steps and adds the bf16 ones of a whole
    backward pass at its end.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], mpu: Any, optimizer: Any = None) -> None:
        """`config` is DeepSpeed's, whole."""
        parsed = deepspeed.DeepSpeedConfig(config, mpu)
        super().__init__(None, model, optimizer, mpu=mpu, config=config, config_class=parsed)

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> Any:
        wrapper = super()._do_optimizer_sanity_check(basic_optimizer)
        return ZERO_OPTIMIZATION if self.zero_optimization() else wrapper


class Partitioner:
    """ZeRO-3's partitioning of parameters as they come into being (materialise.py)."""

    def __init__(self, config: dict[str, Any], mpu: Any) -> None:
        """`config` is DeepSpeed's, whole."""
        self._config = config
        self._mpu = mpu
        self._init: Any = None

    def __call__(self, parameters: list[nn.Parameter]) -> None:
        if not parameters:
            return
        if self._init is None:
            group = self._mpu.get_data_parallel_group() if self._mpu else None
            first = nn.ParameterList(parameters)
            self._init = deepspeed.zero.Init(
                first, group, config_dict_or_path=self._config, mpu=self._mpu, dtype=parameters[0].dtype
            )
        else:
            self._init._convert_to_zero_parameters(parameters)


class RankState:
    """The weights and optimizer state that one rank holds, for reading and writing."""

    def __init__(self, engine: Any, stage: int, topology: Topology, ema: float | None = None) -> None:
        """`engine` is DeepSpeed's. `ema`: the decay of an average of the weights; None: there is none."""
        self._engine = engine
        self._stage = stage
        self._topology = topology
        self._inner: Any = engine.basic_optimizer
        self._zero: Any = engine.optimizer
        named = list(engine.module.named_parameters())
        self._numbers = {name: number for number, (name, _) in enumerate(named)}
        self._learning = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._frozen = [(name, parameter) for name, parameter in named if not parameter.requires_grad]
        self.average: WeightAverage | None = None
        if ema is not None:
            vectors = dict.fromkeys(master.vector for master in self._masters())
            self.average = WeightAverage(ema, vectors)

    @property
    def adam_steps(self) -> int:
        """Updates that the moments have seen."""
        for state in self._inner.state.values():
            if "step" in state:
                return int(state["step"])
        return int(self._inner.param_groups[0].get("step", 0))  # apex counts per group

    def pieces(self) -> HeldPieces:
        """What this rank has to write, so that all ranks together write everything once."""
        for master in self._masters():
            if self._is_mine(master.piece.name):
                yield master.piece, WEIGHT, torch.float32, partial(master.view, master.vector)
                for kind in MOMENT_NAMES:
                    yield master.piece, kind, torch.float32, partial(self._moment, master, kind)
                if self.average is not None:
                    average = self.average.of(master.vector)
                    yield master.piece, EMA, torch.float32, partial(master.view, average)
        for piece, numbers in self._frozen_pieces():
            if self._is_mine(piece.name):
                yield piece, WEIGHT, torch.float32, numbers.detach
        if self._topology.is_writer:
            for name, buffer in persistent_buffers(self._engine.module):
                dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
                yield ParameterPiece(name, 0, buffer.numel()), WEIGHT, dtype, buffer.flatten

    def replicated_over_dp(self) -> Iterator[tuple[str, Tensor]]:
        """What every data-parallel rank holds whole, by name."""
        yield from persistent_buffers(self._engine.module)
        if self._stage == 3:
            named = {id(parameter): name for name, parameter in (*self._learning, *self._frozen)}
            for parameter in self._zero.persistent_parameters:
                yield named[id(parameter)], parameter.data
            return
        for name, parameter in (*self._learning, *self._frozen):
            yield name, parameter
        if self._stage == 0:
            yield from self._moments(self._masters())

    def replicated_over_tp(self) -> Iterator[tuple[str, Tensor]]:
        """Of what this rank holds, what is not split over its tensor-parallel group, by name."""
        module = self._engine.module
        yield from persistent_buffers(module)
        masters = [m for m in self._masters() if not module.get_parameter(m.piece.name).tensor_model_parallel]
        yield from ((master.piece.name, master.view(master.vector)) for master in masters)
        yield from self._moments(masters)
        for piece, numbers in self._frozen_pieces():
            if not module.get_parameter(piece.name).tensor_model_parallel:
                yield piece.name, numbers

    def _moments(self, masters: Iterable[_Master]) -> Iterator[tuple[str, Tensor]]:
        for master in masters:
            for kind in MOMENT_NAMES:
                yield f"{kind} of {master.piece.name}", self._moment(master, kind)
            if self.average is not None:
                yield f"{EMA} of {master.piece.name}", master.view(self.average.of(master.vector))

    @torch.no_grad()
    def restore(self, read: Read, adam_steps: int, has_average: bool = False) -> None:
        """Overwrites weights, moments and buffers with what `read(piece, kind)` gives. Collective.

        has_average: an average is read, too; without, it begins with the weights.
        """
        for master in self._masters():
            master.view(master.vector).copy_(read(master.piece, WEIGHT))
            if adam_steps:
                state = self._state_of(master.vector, adam_steps)
                for kind in MOMENT_NAMES:
                    master.view(state[kind]).copy_(read(master.piece, kind))
        if self.average is not None:
            self.average.begin(adam_steps)
            for master in self._masters() if has_average else ():
                master.view(self.average.of(master.vector)).copy_(read(master.piece, EMA))
        for piece, numbers in self._frozen_pieces():
            numbers.copy_(read(piece, WEIGHT))
        for name, buffer in persistent_buffers(self._engine.module):
            buffer.copy_(read(ParameterPiece(name, 0, buffer.numel()), WEIGHT).view(buffer.shape))
        self._refresh_weights()

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the average stands in the place of the weights. Collective."""
        assert self.average is not None, "contradictions.py asks for optimizer.ema"
        return self.average.in_place(self._refresh_weights)

    def _is_mine(self, name: str) -> bool:
        """Of what several ranks hold alike, one writes: a tensor-parallel group's first; under stage 0 they share."""
        topology = self._topology
        parameter = self._engine.module.get_parameter(name)
        first_of_group = topology.tp_rank == 0 or parameter.tensor_model_parallel
        if self._stage == 0 or (self._stage < 3 and not parameter.requires_grad):
            return bool(first_of_group and self._numbers[name] % topology.dp == topology.dp_rank)
        return bool(first_of_group)

    def _masters(self) -> Iterator[_Master]:
        locate = {0: self._whole, 1: self._fragment, 2: self._fragment, 3: self._partition}[self._stage]
        for name, parameter in self._learning:
            master = locate(name, parameter)
            if master is not None and master.piece.length > 0:
                yield master

    def _whole(self, name: str, parameter: Any) -> _Master:
        return _Master(ParameterPiece(name, 0, parameter.numel()), parameter, 0)

    def _fragment(self, name: str, parameter: Any) -> _Master | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None  # all of it is on other ranks
        vector = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        there = mapping.lp_fragment_address
        return _Master(
            ParameterPiece(name, there.start, there.numel), vector, mapping.hp_fragment_address.start
        )

    def _partition(self, name: str, parameter: Any) -> _Master:
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        vector = self._zero.fp32_partitioned_groups_flat[group]
        return _Master(self._own_part(name, parameter, size), vector, offset)

    def _own_part(self, name: str, parameter: Any, size: int) -> ParameterPiece:
        """Stage 3: `size` numbers of each rank, the last of which may be padding."""
        start = self._topology.dp_rank * size
        return ParameterPiece(name, start, max(0, min(size, parameter.ds_numel - start)))

    def _moment(self, master: _Master, kind: str) -> Tensor:
        state = self._inner.state.get(master.vector, {})
        if kind not in state:  # no step was done yet
            return torch.zeros(master.piece.length, device=master.vector.device)
        return master.view(state[kind])

    def _state_of(self, vector: Tensor, adam_steps: int) -> dict[str, Tensor]:
        """AdamW's state of a vector, made if there is none, at the given step."""
        state: dict[str, Any] = self._inner.state[vector]
        for kind in MOMENT_NAMES:
            if kind not in state:
                state[kind] = torch.zeros_like(vector, requires_grad=False)
        if isinstance(self._inner, torch.optim.AdamW):
            state["step"] = torch.tensor(float(adam_steps), device=vector.device)
        elif type(self._inner).__name__ == "DeepSpeedCPUAdam":
            state["step"] = adam_steps
        else:
            for group in self._inner.param_groups:
                group["step"] = adam_steps
        return state

    def _frozen_pieces(self) -> Iterator[tuple[ParameterPiece, Tensor]]:
        for name, parameter in self._frozen:
            if self._stage < 3:
                yield ParameterPiece(name, 0, parameter.numel()), parameter.detach().view(-1)
                continue
            part = parameter.ds_tensor.detach()
            piece = self._own_part(name, parameter, part.numel())
            if piece.length:
                yield piece, part.narrow(0, 0, piece.length)

    def _refresh_weights(self) -> None:
        """The weights of the forward pass from the fp32 ones, where these are others."""
        if self._stage in (1, 2):
            self._zero.update_lp_params()
        elif self._stage == 3:
            # What an evaluation has gathered and kept for a backward pass is of other weights.
            self._engine.empty_partition_cache()
            self._zero.invalidate_secondary_tensor()
            for group in range(len(self._zero.fp32_partitioned_groups_flat)):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
            if persistent := self._zero.persistent_parameters:  # small ones are kept whole between the steps
                persistent[0].all_gather(persistent)
