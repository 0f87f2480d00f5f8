import os
import socket
from datetime import timedelta

import pytest
import torch

from distllm.dist import topology as topology_module
from distllm.dist.topology import Topology, destroy_process_group, init_process_group, set_extension_cache
from distllm.errors import LaunchError

RENDEZVOUS = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **RENDEZVOUS}
SRUN = {
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    **RENDEZVOUS,
}


def place(environment):
    topology = Topology.from_environment(environment)
    return topology.rank, topology.world_size, topology.local_rank, topology.local_world_size


def test_without_a_launcher_the_process_is_alone():
    topology = Topology.from_environment({"PATH": "/bin"})
    assert topology == Topology.single() == Topology(0, 1, 0, 1, torch.device("cpu"))
    assert topology.is_main


def test_torchrun():
    assert place(TORCHRUN) == (5, 8, 1, 4)
    assert not Topology.from_environment(TORCHRUN).is_main


def test_the_deepspeed_launcher_says_local_size():
    deepspeed = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"}
    assert place({**deepspeed, "LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"}) == (5, 8, 1, 4)


def test_bare_variables_mean_one_machine():
    assert place({"RANK": "1", "WORLD_SIZE": "2", **RENDEZVOUS}) == (1, 2, 1, 2)


@pytest.mark.parametrize(
    ("spread", "node", "local"), [("4,3", "1", 3), ("4(x2),3", "1", 4), ("2", "0", 2), ("1(x3),4", "3", 4)]
)
def test_srun(spread, node, local):
    environment = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": spread, "SLURM_NODEID": node, "SLURM_LOCALID": "0"}
    assert place(environment) == (6, 7, 0, local)


def test_srun_without_step_variables_needs_only_the_documented_ones():
    environment = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", **RENDEZVOUS}
    assert place(environment) == (1, 2, 1, 2)


def test_the_shell_of_a_batch_script_is_no_rank():
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    assert place(batch) == (0, 1, 0, 1)


def test_torchrun_under_srun_follows_torchrun():
    assert place({**SRUN, **TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}) == (5, 8, 1, 4)


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        (without(TORCHRUN, "WORLD_SIZE"), ["WORLD_SIZE is not set"]),
        (without(TORCHRUN, "RANK"), ["RANK is not set"]),
        ({**TORCHRUN, "RANK": "8"}, ["RANK=8", "WORLD_SIZE=8"]),
        ({**TORCHRUN, "RANK": "one"}, ["RANK", "'one'"]),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, ["LOCAL_RANK=4", "LOCAL_WORLD_SIZE=4"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE", "WORLD_SIZE=8"]),
        (without(TORCHRUN, "LOCAL_RANK"), ["LOCAL_RANK is not set"]),
        (without(TORCHRUN, "MASTER_ADDR"), ["MASTER_ADDR"]),
        (without(SRUN, "MASTER_PORT"), ["MASTER_PORT"]),
        ({**SRUN, "SLURM_PROCID": "7"}, ["RANK=7", "WORLD_SIZE=7"]),
        ({**SRUN, "SLURM_NODEID": "5"}, ["SLURM_NODEID=5", "4,3"]),
        (without(SRUN, "SLURM_LOCALID"), ["SLURM_LOCALID"]),
        ({"RANK": "0", "WORLD_SIZE": "1", **SRUN, "SLURM_STEP_NUM_TASKS": "7"}, ["WORLD_SIZE=1", "7 tasks"]),
    ],
)
def test_contradictions_are_named(environment, named):
    with pytest.raises(LaunchError) as caught:
        Topology.from_environment(environment)
    assert all(part in caught.value.cause for part in named)
    assert caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_named():
    with pytest.raises(LaunchError, match="no GPU"):
        Topology.single("cuda")


@pytest.mark.slow
def test_ranks_that_do_not_appear_are_named(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(LaunchError, match=r"rank 1 of 2 could not meet the others at 127.0.0.1:1"):
        init_process_group(Topology(1, 2, 1, 2, torch.device("cpu")), timeout_seconds=1)


def test_one_process_gets_a_group_and_leaves_it():
    init_process_group(Topology.single(), timeout_seconds=10)
    assert torch.distributed.get_world_size() == 1
    destroy_process_group()
    destroy_process_group()
    assert not torch.distributed.is_initialized()


def test_the_extension_cache_gives_way_to_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    set_extension_cache(tmp_path / "a")
    set_extension_cache(tmp_path / "b")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "a")


def test_a_store_listens_on_the_address_of_rank_0_and_on_no_other():
    listener = topology_module._listen("127.0.0.1", 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_an_address_of_another_machine_is_left_to_torch():
    assert topology_module._listen("192.0.2.1", 0) is None


def test_a_port_that_is_taken_is_told_with_its_address(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(LaunchError, match=f"could not meet the others at 127.0.0.1:{port}"):
            init_process_group(Topology(0, 2, 0, 2, torch.device("cpu")), 5)


def test_a_store_that_a_launcher_made_is_used(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    two = Topology(0, 2, 0, 2, torch.device("cpu"))
    assert topology_module._meeting_place(two, timedelta(seconds=1)) is None
