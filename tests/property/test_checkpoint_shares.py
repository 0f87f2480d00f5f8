"""The shares of ranks: every tensor written once, none too large, and no checkpoint out of a part of them."""

from pathlib import Path

import pytest
import torch
from engine_jobs import make_model, make_optimizer
from hypothesis import given
from hypothesis import strategies as st
from transactions import transaction

from distllm.checkpoint import save as save_module
from distllm.checkpoint import space
from distllm.checkpoint.commit import Files, abandon, begin, commit
from distllm.checkpoint.format import FileRecord, list_checkpoints, newest_verified
from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver, Shares
from distllm.config.engine import deepspeed_json
from distllm.dist.build import build_engine
from distllm.dist.collectives import gather_json
from distllm.dist.topology import Topology
from distllm.errors import StorageError

SINGLE = Topology.single()
SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3).map(torch.Size), max_size=30)


def rank_of(rank, world_size):
    return Topology(rank, world_size, rank, world_size, torch.device("cpu"))


@given(SHAPES, st.integers(1, 9))
def test_every_tensor_is_of_one_rank_and_no_share_exceeds_another_by_more_than_a_tensor(shapes, world_size):
    shares, held = Shares(world_size), [0] * world_size
    for shape in shapes:
        held[shares(shape)] += shape.numel()
    assert max(held) - min(held) <= max((shape.numel() for shape in shapes), default=0)


@given(SHAPES, st.integers(1, 5), st.integers(1, 4000))
def test_no_two_ranks_write_a_file_of_the_same_name(shapes, world_size, file_bytes):
    tensors = [
        (f"{kind}/{n}", torch.zeros(shape)) for kind in ("model", "optim") for n, shape in enumerate(shapes)
    ]
    written, names = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save_module, "FILE_BYTES", file_bytes)
        for rank in range(world_size):
            shares = Shares(world_size)
            own = [(name, tensor) for name, tensor in tensors if shares(tensor.shape) == rank]
            for file, content in save_module._files(iter(own), rank_of(rank, world_size)):
                names.append(file)
                written += content
                assert {name.partition("/")[0] for name in content} == {file.partition("-")[0]}
    assert len(set(names)) == len(names)
    assert sorted(written) == sorted(name for name, _ in tensors)


def test_alone_there_is_nobody_to_ask():
    assert gather_json({"a": [1, None]}, SINGLE) == [{"a": [1, None]}]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_did_not_arrive_makes_no_checkpoint(tmp_path, damage):
    with transaction(tmp_path, 1) as files:
        files.write("model-00000.safetensors", b"whole")
    partial = begin(tmp_path, 2)
    own, others = Files(partial), Files(partial)
    own.write("model-00000.safetensors", b"one")
    others.write("model-00001.safetensors", b"two")
    damage(partial / "model-00001.safetensors")
    with pytest.raises(StorageError, match=r"model-00001\.safetensors is not as its rank") as caught:
        commit(partial, tmp_path, 2, {**own.records, **others.records})
    assert "all machines share" in caught.value.remedy
    abandon(partial)
    assert newest_verified(tmp_path)[0].step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_files_of_two_ranks_make_one_checkpoint(tmp_path):
    partial = begin(tmp_path, 2)
    records: dict[str, FileRecord] = {}
    for rank in range(2):
        files = Files(partial)
        files.write(f"model-{rank:05d}.safetensors", bytes([rank]) * 9)
        records |= files.records
    assert list_checkpoints(tmp_path) == []
    commit(partial, tmp_path, 2, records)
    info, _ = newest_verified(tmp_path)
    assert (info.step, info.bytes) == (2, 18)


def saved(directory, **settings):
    """A saver that has just begun to save, and its engine."""
    document = deepspeed_json(
        zero_stage=0, micro_batch_size=4, grad_accum_steps=2, world_size=1, grad_clip=0.5,
        compute="fp32", bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    engine = build_engine(
        "local", make_model(), make_optimizer, settings=document, topology=SINGLE, timeout_seconds=10
    )
    saver = Saver(directory, SINGLE, Retention(2), background=True, **settings)
    saver.save(3, engine, {"step": 3}, {})
    return saver, engine


def test_one_rank_alone_ends_its_save_when_the_attempt_ends(tmp_path):
    saver, engine = saved(tmp_path)
    assert saver.close() is True
    assert load_checkpoint(find_checkpoint(tmp_path), engine) == {"step": 3}
    assert saver.close() is False


def test_one_rank_of_several_commits_nothing_that_the_others_may_not_have_written(tmp_path):
    saver, _ = saved(tmp_path)
    saver._topology = rank_of(0, 2)
    assert saver.close() is False
    assert list(tmp_path.iterdir()) == []


def test_a_commit_that_has_begun_comes_to_its_end(tmp_path):
    saver, _ = saved(tmp_path)
    assert saver.proceed() is False
    saver._topology = rank_of(0, 2)
    assert saver.close() is True
    assert newest_verified(tmp_path)[0].step == 3


def test_a_save_for_which_there_is_no_room_is_done_at_once_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda _: 10)
    saver, _ = saved(tmp_path, expected_bytes=11)
    assert (saver.pending, saver.done) == (3, True)
    with pytest.raises(StorageError, match="no space left for the checkpoint of step 3"):
        saver.proceed()
    assert (saver.pending, saver.done) == (None, False)
    assert saver.proceed() is False
