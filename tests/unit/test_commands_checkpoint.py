"""`distllm checkpoint`: what it lists, refuses, writes and removes."""

import os
import pickle
from dataclasses import asdict

import pytest
import torch
from engine_jobs import make_model, make_optimizer
from safetensors import safe_open

from distllm.checkpoint.format import list_checkpoints, step_path
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.cli import main
from distllm.config.engine import deepspeed_json
from distllm.config.schema import Config
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.config.yaml import to_yaml
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology
from distllm.train.run_directory import RunDirectory

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0}


@pytest.fixture
def run(tmp_path):
    """A run directory with checkpoints of steps 10, 20 and 30, and of 35, an ephemeral one."""
    directory = tmp_path / "runs" / "one"
    directory.mkdir(parents=True)
    config = Config(checkpoint=CheckpointConfig(keep_last=2))
    (directory / "config.yaml").write_text(to_yaml(asdict(config)))
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=4, grad_accum_steps=2, world_size=1, grad_clip=0.5,
        compute="fp32", bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    engine = build_engine(
        "local",
        make_model(),
        make_optimizer,
        settings=settings,
        topology=Topology.single(),
        timeout_seconds=9,
    )
    saver = Saver(directory / "checkpoints", Topology.single(), Retention(9))
    for step in (10, 20, 30, 35):
        facts = {"tokenizer": "abc", "valid_loss": LOSSES.get(step, 1.0), "valid_step": step // 10 * 10}
        saver.save(step, engine, {"step": step}, facts, ephemeral=step == 35)
        saver.settle()
    return directory


def steps(run):
    return [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")]


def call(run, action, *words):
    return main(["checkpoint", action, f"run={run}", *words])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_ls_tells_size_age_loss_state_and_why(run, capsys):
    flip(step_path(run / "checkpoints", 20) / "model-00000.safetensors")
    assert call(run, "ls") == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["step", "bytes", "age", "valid", "loss", "verified", "kept"]
    words = [line.split() for line in lines]
    assert [line[0] for line in words] == ["35", "30", "20", "10"]
    assert [line[-1] for line in words] == ["newest", "last", "last", "save"]
    assert ["DAMAGED" in line for line in words] == [False, False, True, False]
    assert ["2.0000" in line for line in words] == [False, True, False, False]
    size = sum(file.stat().st_size for file in step_path(run / "checkpoints", 30).iterdir())
    assert f"{size / 1024:.1f} KiB" in lines[1]
    assert call(run, "ls", "verify=false") == 0
    assert "DAMAGED" not in capsys.readouterr().out


def test_verify_reads_every_byte(run, capsys):
    assert call(run, "verify") == 0
    assert capsys.readouterr().out.count("all digests are correct") == 4
    flip(step_path(run / "checkpoints", 20) / "optim-00000.safetensors")
    assert call(run, "verify", "step=30") == 0
    assert call(run, "verify") == 65
    told = capsys.readouterr()
    assert "step-000000020: optim-00000.safetensors has different content" in told.out
    assert "1 of 4 checkpoints cannot be trusted" in told.err
    assert steps(run) == [35, 30, 20, 10], "nothing is moved"
    assert call(run, "verify", "step=7") == 65


def plant(path, kind):
    if kind == "pickle":
        (path / "optim-00000.bin").write_bytes(pickle.dumps({"a": 1}))
    elif kind == "torch":
        torch.save({"a": torch.zeros(1)}, path / "mp_rank_00_model_states.pt")
    elif kind == "link":
        (path / "extra").symlink_to("/etc/passwd")
    else:
        (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("pickle", "a pickle, which"),
        ("torch", "a pickle, which"),
        ("link", "a link to"),
        ("text", "not in the"),
    ],
)
def test_verify_refuses_what_does_not_belong_there(run, kind, what, capsys):
    plant(step_path(run / "checkpoints", 30), kind)
    assert call(run, "verify") == 65
    told = capsys.readouterr()
    assert f"is foreign: {what}" in told.out
    assert "remove files that do not belong there" in told.err


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_convert_writes_the_weights_alone(run, dtype, capsys):
    assert call(run, "convert", f"dtype={dtype}", "step=30") == 0
    out = run / "weights-30.safetensors"
    assert str(out) in capsys.readouterr().out
    model = make_model()
    with safe_open(out, framework="pt") as content:
        assert set(content.keys()) == {name for name, _ in model.named_parameters()}
        assert content.metadata() == {"format": "pt", "run": "one", "step": "30", "tokenizer": "abc"}
        for name, weight in model.named_parameters():
            stored = content.get_tensor(name)
            assert stored.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
            assert torch.equal(stored, weight.to(stored.dtype))
    assert call(run, "convert", "step=7") == 65
    assert call(run, "convert", f"out={run}/elsewhere.safetensors") == 0
    assert (run / "elsewhere.safetensors").stat().st_size > 0


def test_prune_applies_the_rules_of_the_run_or_those_given(run, capsys):
    assert call(run, "prune", "dry_run=true") == 0
    assert "would remove" in capsys.readouterr().out
    assert steps(run) == [35, 30, 20, 10]
    assert call(run, "prune", "keep_best=1", "keep_last=1") == 0
    assert steps(run) == [35, 30, 20]
    assert call(run, "prune") == 0
    assert steps(run) == [35, 30, 20]
    assert call(run, "prune", "keep_last=1") == 0
    assert steps(run) == [35, 30]


def test_a_live_run_prunes_for_itself(run, capsys):
    owner = RunDirectory(run)
    owner.claim()
    assert call(run, "prune", "keep_last=1") == 64
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    assert steps(run) == [35, 30, 20, 10]


def test_an_unknown_action_is_corrected(capsys):
    assert main(["checkpoint", "verfy"]) == 64
    assert "verify" in capsys.readouterr().err
    assert main(["checkpoint", "--help"]) == 0
    assert "prune" in capsys.readouterr().out
