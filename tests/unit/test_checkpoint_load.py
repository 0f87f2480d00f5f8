import dataclasses
import json
import resource
import signal

import pytest
import torch
from engine_jobs import make_model, make_optimizer, train_step
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from distllm.checkpoint import save as save_module
from distllm.checkpoint.format import step_path
from distllm.checkpoint.load import find_checkpoint, load_checkpoint, read_weights
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.config.engine import deepspeed_json
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology
from distllm.errors import CheckpointError, StorageError

SINGLE = Topology.single()


def make_engine(model=None, name="local"):
    settings = deepspeed_json(
        zero_stage=0,
        micro_batch_size=4,
        grad_accum_steps=2,
        world_size=1,
        grad_clip=0.5,
        compute="fp32",
        bucket_bytes=4096,
        device="cpu",
    )
    return build_engine(
        name, model or make_model(), make_optimizer, settings=settings, topology=SINGLE, timeout_seconds=10
    )


def save(directory, engine, step=1, **settings):
    saver = Saver(directory, SINGLE, Retention(2), **settings)
    saver.save(step, engine, {"step": step}, {"dataset": "abc"})
    assert saver.settle() == step
    return step_path(directory, step)


def equal(left, right):
    pairs = zip(left.state(), right.state(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_what_was_saved_is_found_and_loaded(tmp_path):
    engine = make_engine()
    for step in range(2):
        train_step(engine, SINGLE, step)
    path = save(tmp_path, engine, step=7)
    found = find_checkpoint(tmp_path)
    assert (found.step, found.path, found.optimizer_steps) == (7, path, 2)
    assert found.facts == {"dataset": "abc"}
    assert found.set_aside == ()
    fresh = make_engine()
    assert not equal(engine, fresh)
    assert load_checkpoint(found, fresh) == {"step": 7}
    assert equal(engine, fresh)
    assert fresh.optimizer_steps == 2


def test_a_checkpoint_before_the_first_step_holds_zero_moments(tmp_path):
    engine = make_engine()
    save(tmp_path, engine, step=0)
    found = find_checkpoint(tmp_path)
    fresh = make_engine(make_model())
    load_checkpoint(found, fresh)
    assert equal(engine, fresh)
    assert train_step(engine, SINGLE, 0) == train_step(fresh, SINGLE, 0)


def test_the_state_says_who_wrote_it(tmp_path):
    path = save(tmp_path, make_engine())
    state = json.loads((path / "state.json").read_text())
    assert state["written_by"] == {"world_size": 1, "device": "cpu"}
    assert state["versions"]["torch"] == torch.__version__
    assert {"python", "distllm", "deepspeed"} <= state["versions"].keys()


def test_large_state_is_cut_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "FILE_BYTES", 10_000)
    engine = make_engine()
    train_step(engine, SINGLE, 0)
    path = save(tmp_path, engine)
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files[:2] == ["model-00000.safetensors", "model-00001.safetensors"]
    assert "optim-00002.safetensors" in files
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            tensors = [content.get_tensor(name) for name in content.keys()]  # noqa: SIM118  # no mapping
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors) <= 10_000
    fresh = make_engine()
    load_checkpoint(find_checkpoint(tmp_path), fresh)
    assert equal(engine, fresh)


def test_a_tied_parameter_is_stored_once(tmp_path):
    path = save(tmp_path, make_engine())
    with safe_open(path / "model-00000.safetensors", framework="pt") as content:
        stored = set(content.keys())
    assert stored == {f"model/{name}" for name, _ in make_model().named_parameters()}


class Deeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make_model()
        self.embed, self.body = self.inner.embed, self.inner.body
        del self.inner
        self.extra = nn.Linear(2, 2)


class Shallower(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = make_model().embed


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        (lambda: make_model(width=34), r"model/embed.weight has shape \(65, 33\) .* \(65, 34\)"),
        (Deeper, "no tensor model/extra.weight"),
        (Shallower, "tensors that this model lacks, such as model/body.0.bias"),
    ],
)
def test_another_model_is_refused(tmp_path, other, cause):
    save(tmp_path, make_engine())
    with pytest.raises(CheckpointError, match=cause):
        load_checkpoint(find_checkpoint(tmp_path), make_engine(other()))


def test_a_checkpoint_that_vanished_after_it_was_found_is_named(tmp_path):
    save(tmp_path, make_engine())
    found = find_checkpoint(tmp_path)
    gone = dataclasses.replace(found, path=tmp_path / "step-000000009")
    with pytest.raises(CheckpointError, match="COMMITTED is missing"):
        load_checkpoint(gone, make_engine())


def test_a_file_that_the_manifest_does_not_list_is_never_read(tmp_path):
    engine = make_engine()
    path = save(tmp_path, engine)
    save_file({"model/planted": torch.zeros(1)}, path / "model-00009.safetensors")
    (path / "evil.pt").write_bytes(b"\x80\x04evil")
    load_checkpoint(find_checkpoint(tmp_path), engine)


def test_damage_is_reported_with_the_checkpoint_that_is_used_instead(tmp_path):
    engine = make_engine()
    save(tmp_path, engine, step=1)
    path = save(tmp_path, engine, step=2)
    (path / "state.json").write_text("{}")
    found = find_checkpoint(tmp_path)
    assert found.step == 1
    ((where, reason),) = found.set_aside
    assert where.name == "step-000000002.quarantined"
    assert "state.json" in reason


def test_one_step_can_be_asked_for(tmp_path):
    engine = make_engine()
    for step in (1, 2):
        save(tmp_path, engine, step=step)
    assert find_checkpoint(tmp_path, step=1).step == 1
    assert find_checkpoint(tmp_path, step=3) is None
    (tmp_path / "step-000000001" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        find_checkpoint(tmp_path, step=1, quarantine=False)
    assert find_checkpoint(tmp_path).step == 2


def test_weights_alone_can_be_read_into_a_model(tmp_path):
    engine = make_engine()
    train_step(engine, SINGLE, 0)
    save(tmp_path, engine)
    found, model = find_checkpoint(tmp_path, quarantine=False), make_model()
    read_weights(found, model)
    for trained, loaded in zip(engine.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(trained, loaded)
    with pytest.raises(CheckpointError, match=r"lacks, such as model/body\.0\.bias"):
        read_weights(found, Shallower())


def test_no_checkpoint_and_no_usable_checkpoint_differ(tmp_path):
    assert find_checkpoint(tmp_path) is None
    path = save(tmp_path, make_engine())
    (path / "COMMITTED").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
            find_checkpoint(tmp_path)


def test_old_checkpoints_go(tmp_path):
    engine = make_engine()
    for step in (1, 2, 3):
        save(tmp_path, engine, step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_a_full_disk_is_a_storage_error_and_training_could_go_on(tmp_path):
    engine = make_engine()
    save(tmp_path, engine, step=1)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="no space left"):
            save(tmp_path, engine, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert find_checkpoint(tmp_path).step == 1
    save(tmp_path, engine, step=2)
    assert find_checkpoint(tmp_path).step == 2


def test_what_no_engine_would_save_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        make_engine(make_model().requires_grad_(False))
    with pytest.raises(ValueError, match="running_mean"):
        make_engine(nn.BatchNorm1d(3))
