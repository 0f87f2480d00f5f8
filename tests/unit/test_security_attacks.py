"""Attacks with what is read from disk or from the network. Each would leave a mark if it succeeded."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from engine_jobs import make_model, make_optimizer
from prepared import read_index, write_dataset

from distllm.checkpoint.format import MANIFEST, MARKER, encode_manifest, list_quarantined, step_path, verify
from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.cli import main
from distllm.config.compose import compose
from distllm.config.engine import deepspeed_json
from distllm.data.manifest import MANIFEST_FILE, Manifest
from distllm.data.remote import file_system
from distllm.data.shards import map_shard, reindex
from distllm.data.shards import verify as verify_dataset
from distllm.data.stream import PackedSplit
from distllm.dist.build import build_engine
from distllm.dist.topology import Topology
from distllm.errors import CheckpointError, ConfigError, DataError
from distllm.fsio import digest_bytes

SINGLE = Topology.single()


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self._mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self._mark,))


@pytest.fixture
def mark(tmp_path):
    """Where an attack that succeeds leaves a directory; checked after every test."""
    path = tmp_path / "owned"
    assert pickle.loads(pickle.dumps(Evil(path))) is None
    assert path.is_dir(), "the attack itself works"
    path.rmdir()
    yield path
    assert not path.exists()


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "set"
    write_dataset(directory, train=[[1 + (i + j) % 250 for j in range(500)] for i in range(20)])
    return directory


def shard_of(directory):
    return directory / read_index(directory, "text", "train")[0].record.path


def append(tar, name, content=b"", **fields):
    with tarfile.open(tar, "a") as archive:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        for key, value in fields.items():
            setattr(header, key, value)
        archive.addfile(header, io.BytesIO(content))


def read_all(directory):
    split = PackedSplit(directory, "train", 16)
    split.batch(np.arange(8), np.arange(8))


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pth", "pt", "npy"])
def test_a_pickled_member_of_a_shard_is_never_opened(dataset, mark, suffix):
    shard = shard_of(dataset)
    append(shard, f"{shard.stem}.{suffix}", pickle.dumps(Evil(mark)))
    read_all(dataset)
    with pytest.raises(DataError):
        verify_dataset(dataset)
    reindex(dataset)
    read_all(dataset)
    assert f"{suffix}" not in read_index(dataset, "text", "train")[0].members


@pytest.mark.parametrize("name", ["../../owned/x", "/owned/x", "00000/../../owned.x"])
def test_a_member_that_points_out_of_the_dataset_is_not_written(dataset, tmp_path, name):
    append(shard_of(dataset), name, b"x")
    with pytest.raises(DataError):
        reindex(dataset)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "owned.x").exists()


def test_a_member_that_is_a_link_is_refused(dataset):
    shard = shard_of(dataset)
    append(shard, f"{shard.stem}.tokens.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(DataError):
        reindex(dataset)


def test_a_member_that_claims_to_be_huge_takes_no_memory(dataset):
    shard = shard_of(dataset)
    header = tarfile.TarInfo(f"{shard.stem}.extra.bin")
    header.size = 1 << 50
    with tarfile.open(shard, "a") as archive:
        block = header.tobuf(tarfile.GNU_FORMAT)
        archive.fileobj.write(block)
        archive.offset += len(block)
    with pytest.raises(DataError, match="claims 1125899906842624 bytes"):
        reindex(dataset)


def test_a_sparse_member_is_refused_before_it_is_blown_up(dataset):
    shard = shard_of(dataset)
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": f"{shard.stem}.extra.bin"}
    pax["GNU.sparse.realsize"] = str(1 << 45)
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x".ljust(512, b"\0")
    with tarfile.open(shard, "a", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo(f"{shard.stem}.extra.bin")
        header.size, header.pax_headers = len(content), pax
        archive.addfile(header, io.BytesIO(content))
    with pytest.raises(DataError, match="claims 35184372088832 bytes"):
        reindex(dataset)


def forge(directory, change):
    """Change a manifest and give it a right digest, as whoever owns the server of a dataset can."""
    path = directory / MANIFEST_FILE
    document = json.loads(path.read_text())
    digest = document.pop("digest")
    kind = document.pop("format")
    change(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert digest != digest_bytes(text)
    path.write_text(json.dumps({"format": kind, "digest": digest_bytes(text), **document}))


def elsewhere(document):
    document["files"]["../../../outside"] = "0" * 32


def shard_elsewhere(document):
    document["sources"]["text"]["train"]["shards"][0]["path"] = "/etc/passwd"


@pytest.mark.parametrize("change", [elsewhere, shard_elsewhere])
def test_a_manifest_that_names_files_outside_its_dataset_is_refused(dataset, change):
    forge(dataset, change)
    with pytest.raises(DataError, match="outside the dataset"):
        Manifest.read(dataset)


@pytest.mark.parametrize("protocol", ["pipe", "reference", "simplecache::s3", "zip", "shell", "S3"])
def test_only_protocols_of_plain_files_are_spoken(protocol):
    with pytest.raises(DataError, match="is no protocol of files"):
        file_system(f"{protocol}://bucket/x", 1.0)


@pytest.mark.parametrize("url", ["pipe:mkdir {mark}", "pipe://mkdir {mark}", "file:`mkdir {mark}`"])
def test_no_url_runs_a_shell(tmp_path, mark, monkeypatch, url):
    monkeypatch.setenv("GOPEN_REWRITE", f"s3:=pipe:mkdir {mark};")
    words = [f"data.out='{url.format(mark=mark)}'", f"runs_dir={tmp_path}/runs", "train.max_steps=1"]
    assert main(["train", *words]) in (64, 65)
    words = ["data=text", f"data.paths=['{url.format(mark=mark)}']", f"data.out={tmp_path}/out"]
    assert main(["prepare", *words]) in (64, 65)


def make_engine():
    settings = deepspeed_json(
        zero_stage=0, micro_batch_size=4, grad_accum_steps=2, world_size=1,
        grad_clip=0.5, compute="fp32", bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    return build_engine(
        "local", make_model(), make_optimizer, settings=settings, topology=SINGLE, timeout_seconds=10
    )


@pytest.fixture
def checkpoint(tmp_path):
    saver = Saver(tmp_path / "checkpoints", SINGLE, Retention(2))
    saver.save(3, make_engine(), {"step": 3}, {})
    assert saver.settle() == 3
    return step_path(tmp_path / "checkpoints", 3)


def evil_file(path, mark):
    content = io.BytesIO()
    torch.save({"weights": Evil(mark)}, content)
    path.write_bytes(content.getvalue())


def test_a_pickle_dropped_into_a_checkpoint_is_not_read(checkpoint, mark):
    for name in ("evil.pt", "mp_rank_00_model_states.pt", ".metadata", "model-00001.safetensors.pt"):
        evil_file(checkpoint / name, mark)
    found = find_checkpoint(checkpoint.parent)
    assert load_checkpoint(found, make_engine()) == {"step": 3}


def test_a_pickle_in_place_of_the_weights_is_refused_although_all_digests_are_right(checkpoint, mark):
    weights = next(checkpoint.glob("model-*.safetensors"))
    evil_file(weights, mark)
    files = dict(verify_listing(checkpoint))
    content = encode_manifest(files)
    (checkpoint / MANIFEST).write_bytes(content)
    (checkpoint / MARKER).write_text(digest_bytes(content))
    found = find_checkpoint(checkpoint.parent)
    with pytest.raises(CheckpointError):
        load_checkpoint(found, make_engine())


def verify_listing(checkpoint):
    from distllm.checkpoint.format import FileRecord
    from distllm.fsio import digest_file

    for name in json.loads((checkpoint / MANIFEST).read_text())["files"]:
        path = checkpoint / name
        yield name, FileRecord(path.stat().st_size, digest_file(path))


def test_a_checkpoint_that_names_files_outside_of_it_is_set_aside(checkpoint, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    document = json.loads((checkpoint / MANIFEST).read_text())
    document["files"]["../../outside"] = {"bytes": 1, "xxh3_128": digest_bytes(b"x")}
    content = json.dumps(document).encode()
    (checkpoint / MANIFEST).write_bytes(content)
    (checkpoint / MARKER).write_text(digest_bytes(content))
    with pytest.raises(CheckpointError, match="names files outside"):
        verify(checkpoint)
    with pytest.raises(CheckpointError):
        find_checkpoint(checkpoint.parent)
    assert len(list_quarantined(checkpoint.parent)) == 1


TARGETS = ["os.system", "shutil.copy", "pathlib.Path.write_text", "subprocess.run", "builtins.eval"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_configuration_cannot_name_code(tmp_path, target):
    group = tmp_path / "conf" / "model"
    group.mkdir(parents=True)
    (group / "evil.yaml").write_text(f"_target_: {target}\nhidden_size: 32\n")
    with pytest.raises(ConfigError, match="_target_"):
        compose(["model=evil"], config_dir=tmp_path / "conf")
    with pytest.raises(ConfigError, match="_target_"):
        compose([f"+model._target_={target}"])


def test_a_mapped_shard_cannot_be_written_through(dataset):
    shard = read_index(dataset, "text", "train")[0]
    ids_M, _ = map_shard(dataset, shard, np.dtype("<u2"))
    with pytest.raises(ValueError, match="read-only"):
        ids_M[0] = 1
