"""The process groups of comm.py, as DeepSpeed asks an external `mpu` for them."""

from __future__ import annotations

import torch.distributed as dist

from git_scale.parallel.comm import DP, TP


class Mpu:
    """The process groups, under the names by which DeepSpeed asks an external `mpu` for them.

    megatron.core.parallel_state itself will not do: it lacks get_model_parallel_rank and -world_size, and has
    initialize_sequence_parallel in some versions, at the sight of which DeepSpeed takes the tensor-parallel degree
    for 1 and reduces no gradient norm over the group (deepspeed/runtime/zero/stage3.py, utils/groups.py).
    """

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return TP.process_group

    def get_model_parallel_rank(self) -> int:
        return TP.rank

    def get_model_parallel_world_size(self) -> int:
        return TP.size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return DP.process_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(DP.process_group)

    def get_data_parallel_rank(self) -> int:
        return DP.rank

    def get_data_parallel_world_size(self) -> int:
        return DP.size


def mpu_of_run() -> Mpu | None:
    """None without tensor parallelism, where DeepSpeed makes its own groups."""
    return None if TP.is_alone else Mpu()
