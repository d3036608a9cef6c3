"""What a rank holds of weights and optimizer state under each ZeRO stage: DeepSpeed's inner layout, in one place.

    stage 0      the whole share of a parameter: fp32 weights
    stage 1, 2   a flat fp32 vector per parameter group, cut over the data-parallel ranks anywhere
    stage 3      1/dp of each parameter, padded

Every rank's pieces go into the checkpoint as they are, and come out of whatever pieces lie there
(git_scale/checkpoint/state.py). DeepSpeed's own files serve the same number of ranks of the same stage alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from git_scale.checkpoint.state import MOMENTS, WEIGHT, Held, Piece
from git_scale.parallel.topology import Topology

Read = Callable[[Piece, str], Tensor]


@dataclass(frozen=True)
class _Master:
    """Where a piece's fp32 numbers are: a part of the vector that the inner optimizer updates."""

    piece: Piece
    vector: Tensor
    offset: int

    def view(self, whole: Tensor) -> Tensor:
        """The piece's part of the vector, or of a moment of its shape."""
        return whole.detach().view(-1).narrow(0, self.offset, self.piece.length)


class Partitioner:
    """ZeRO-3's partitioning of parameters as they come into being: `settle` of materialise."""

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


class Holdings:
    """The numbers of one rank, for reading and writing."""

    def __init__(self, engine: Any, stage: int, topology: Topology) -> None:
        """`engine` is DeepSpeed's."""
        self._engine = engine
        self._stage = stage
        self._topology = topology
        self._inner: Any = engine.basic_optimizer
        self._zero: Any = engine.optimizer
        named = list(engine.module.named_parameters())
        self._numbers = {name: number for number, (name, _) in enumerate(named)}
        self._learning = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._frozen = [(name, parameter) for name, parameter in named if not parameter.requires_grad]

    @property
    def adam_steps(self) -> int:
        """Updates that the moments have seen."""
        for state in self._inner.state.values():
            if "step" in state:
                return int(state["step"])
        return int(self._inner.param_groups[0].get("step", 0))  # apex counts per group

    def held(self) -> Held:
        """What this rank has to write, so that all ranks together write everything once."""
        for master in self._masters():
            if self._is_mine(master.piece.name):
                yield master.piece, WEIGHT, torch.float32, partial(master.view, master.vector)
                for kind in MOMENTS:
                    yield master.piece, kind, torch.float32, partial(self._moment, master, kind)
        for piece, numbers in self._frozen_pieces():
            if self._is_mine(piece.name):
                yield piece, WEIGHT, torch.float32, numbers.detach
        if self._topology.is_writer:
            for name, buffer in persistent_buffers(self._engine.module):
                dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
                yield Piece(name, 0, buffer.numel()), WEIGHT, dtype, buffer.flatten

    def checksums_of_replicas(self) -> tuple[list[str], Tensor]:
        """Names of what all ranks of a tensor-parallel group hold alike, and int64 [n] sums of its bits here."""
        sums = {
            master.piece.name: master.view(master.vector).view(torch.int32).sum(dtype=torch.int64)
            for master in self._masters()
            if not self._engine.module.get_parameter(master.piece.name).tensor_model_parallel
        }
        device = next(iter(sums.values())).device if sums else torch.device("cpu")
        return list(sums), torch.stack(list(sums.values())) if sums else torch.zeros(0, device=device)

    @torch.no_grad()
    def restore(self, read: Read, adam_steps: int) -> None:
        """Overwrites weights, moments and buffers with what `read(piece, kind)` gives. Collective."""
        for master in self._masters():
            master.view(master.vector).copy_(read(master.piece, WEIGHT))
            if adam_steps:
                state = self._state_of(master.vector, adam_steps)
                for kind in MOMENTS:
                    master.view(state[kind]).copy_(read(master.piece, kind))
        for piece, numbers in self._frozen_pieces():
            numbers.copy_(read(piece, WEIGHT))
        for name, buffer in persistent_buffers(self._engine.module):
            buffer.copy_(read(Piece(name, 0, buffer.numel()), WEIGHT).view(buffer.shape))
        self._refresh_weights()

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
        return _Master(Piece(name, 0, parameter.numel()), parameter, 0)

    def _fragment(self, name: str, parameter: Any) -> _Master | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None  # all of it is on other ranks
        vector = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        there = mapping.lp_fragment_address
        return _Master(Piece(name, there.start, there.numel), vector, mapping.hp_fragment_address.start)

    def _partition(self, name: str, parameter: Any) -> _Master:
        group, offset, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
        vector = self._zero.fp32_partitioned_groups_flat[group]
        return _Master(self._own_part(name, parameter, size), vector, offset)

    def _own_part(self, name: str, parameter: Any, size: int) -> Piece:
        """Stage 3: `size` numbers of each rank, the last of which may be padding."""
        start = self._topology.dp_rank * size
        return Piece(name, start, max(0, min(size, parameter.ds_numel - start)))

    def _moment(self, master: _Master, kind: str) -> Tensor:
        state = self._inner.state.get(master.vector, {})
        if kind not in state:  # no step was done yet
            return torch.zeros(master.piece.length)
        return master.view(state[kind])

    def _state_of(self, vector: Tensor, adam_steps: int) -> dict[str, Tensor]:
        """AdamW's state of a vector, made if there is none, at the given step."""
        state: dict[str, Any] = self._inner.state[vector]
        for kind in MOMENTS:
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

    def _frozen_pieces(self) -> Iterator[tuple[Piece, Tensor]]:
        for name, parameter in self._frozen:
            if self._stage < 3:
                yield Piece(name, 0, parameter.numel()), parameter.detach().view(-1)
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
            for group in range(len(self._zero.fp32_partitioned_groups_flat)):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
            if persistent := self._zero.persistent_parameters:  # small ones are kept whole between the steps
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a state dict holds beside the parameters."""
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer
