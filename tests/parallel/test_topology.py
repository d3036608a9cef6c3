"""The launchers' variables, as torchrun, deepspeed and srun really set them."""

from __future__ import annotations

import socket

import pytest

from git_scale.errors import UserError
from git_scale.parallel.topology import Topology, free_port, topology_from

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node17",
    "MASTER_PORT": "29400",
}
DEEPSPEED = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.4",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_NNODES": "2",
}


def test_a_process_alone_is_a_world_of_one() -> None:
    topology = topology_from({})
    assert (topology.world_size, topology.dp, topology.global_rank, topology.dp_rank) == (1, 1, 0, 0)
    assert topology.is_writer
    assert topology.master_addr == "127.0.0.1"
    assert topology.master_port > 0


def test_torchruns_variables() -> None:
    assert topology_from(TORCHRUN) == Topology(8, 5, 1, "node17", 29400)


def test_deepspeeds_variables() -> None:
    assert topology_from(DEEPSPEED) == Topology(4, 3, 3, "127.0.0.1", 29500)


def test_sruns_variables() -> None:
    assert topology_from(SRUN) == Topology(16, 9, 1, "10.0.0.4", 20000 + 1234567 % 20000)
    chosen = topology_from({**SRUN, "MASTER_ADDR": "node3", "MASTER_PORT": "1234"})
    assert (chosen.master_addr, chosen.master_port) == ("node3", 1234)


def test_torchrun_inside_an_srun_step_counts_before_it() -> None:
    """One srun task per node, which starts torchrun: SLURM's ranks are then those of the nodes."""
    assert topology_from({**SRUN, **TORCHRUN}) == topology_from(TORCHRUN)


def test_a_batch_script_outside_a_step_is_alone() -> None:
    """SLURM shows SLURM_PROCID and SLURM_NTASKS to it too; waiting for 15 others would never end."""
    topology = topology_from(BATCH_SCRIPT)
    assert (topology.world_size, topology.global_rank) == (1, 0)
    assert topology_from({**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "16", "MASTER_ADDR": "a"}).world_size == 16


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_one_process_writes(rank: int) -> None:
    assert topology_from({**TORCHRUN, "RANK": str(rank)}).is_writer == (rank == 0)


def test_several_nodes_need_an_address() -> None:
    nowhere = {key: value for key, value in SRUN.items() if key != "SLURM_LAUNCH_NODE_IPADDR"}
    with pytest.raises(UserError, match="MASTER_ADDR is not set for 16 processes: export the address"):
        topology_from(nowhere)
    with pytest.raises(UserError, match="MASTER_ADDR"):
        topology_from({**nowhere, "MASTER_ADDR": ""})
    assert topology_from({**nowhere, "SLURM_STEP_NUM_NODES": "1"}).master_addr == "127.0.0.1"
    assert topology_from({**nowhere, "SLURM_STEP_NUM_TASKS": "1"}).master_addr == "127.0.0.1"


def test_all_tasks_of_a_job_agree_on_a_port_and_jobs_differ() -> None:
    ports = {topology_from({**SRUN, "SLURM_PROCID": str(rank)}).master_port for rank in range(16)}
    assert len(ports) == 1
    other = topology_from({**SRUN, "SLURM_JOB_ID": "1234568"}).master_port
    assert other not in ports
    assert all(1024 < port < 65536 for port in {other, *ports})


def test_a_free_port_is_none_that_outgoing_connections_take() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert min(ports) >= 20000 and max(ports) < 32768
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", min(ports)))
