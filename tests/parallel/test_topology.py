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
# as mpirun of Open MPI 4.1 sets them
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "PMIX_RANK": "5",
    "PMIX_NAMESPACE": "1764360193",
}
HYDRA = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


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


def test_mpiruns_variables() -> None:
    topology = topology_from(OPEN_MPI)
    assert (topology.world_size, topology.global_rank, topology.local_rank) == (8, 5, 1)
    assert topology.master_addr == "127.0.0.1" and topology.is_launched
    ports = {topology_from({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": str(rank)}).master_port for rank in range(8)}
    assert len(ports) == 1
    assert topology_from({**OPEN_MPI, "PMIX_NAMESPACE": "1764360194"}).master_port not in ports
    assert topology_from({**HYDRA, "MASTER_ADDR": "n1"}).global_rank == 5
    mvapich = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items() if "PMIX" not in name}
    assert topology_from(mvapich).world_size == 8


def test_mpirun_over_several_nodes_needs_an_address() -> None:
    with pytest.raises(UserError, match="MASTER_ADDR is not set for 8 processes"):
        topology_from({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    with pytest.raises(UserError, match="MASTER_ADDR"):
        topology_from(HYDRA)


def test_an_mpi_inside_a_slurm_job_counts_not_the_srun_that_started_its_helpers() -> None:
    helper = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "MASTER_ADDR": "n1"}
    assert topology_from({**helper, **OPEN_MPI}).world_size == 8
    assert topology_from({**helper, **HYDRA}).world_size == 8
    # srun itself sets PMI's variables, too
    assert topology_from({**SRUN, "PMI_RANK": "9", "PMI_SIZE": "16", "PMIX_RANK": "9"}).world_size == 16


@pytest.mark.parametrize(
    "partial",
    [
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_RANK": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "4"},
        {"PMIX_RANK": "1"},
        {"MV2_COMM_WORLD_RANK": "0"},
        {"RANK": "0"},
        {"WORLD_SIZE": "4"},
    ],
)
def test_what_only_a_part_of_is_there_is_refused_by_name(partial: dict[str, str]) -> None:
    for name, value in partial.items():
        with pytest.raises(UserError, match=f"{name}={value}.*Start by torchrun.*set RANK, WORLD_SIZE"):
            topology_from(partial)


def test_who_was_launched_is_known() -> None:
    assert topology_from(TORCHRUN).is_launched and topology_from(SRUN).with_tp(2).is_launched
    assert not topology_from({}).is_launched and not topology_from(BATCH_SCRIPT).is_launched
