"""Tensors in files: what they hold, that nothing is left on the disk, and what a full disk says."""

import errno
import os
from pathlib import Path

import pytest
import torch

from distllm.dist.mapped import MappedFiles
from distllm.errors import StorageError
from distllm.machine import filesystem_of


def test_a_tensor_in_a_file_is_written_and_read_and_leaves_no_name(tmp_path):
    ours = torch.randn(3, 5)
    mapped = MappedFiles(tmp_path / "new").moved(ours)
    assert torch.equal(mapped, ours)
    mapped.mul_(2)
    assert torch.equal(mapped, ours * 2)
    assert list((tmp_path / "new").iterdir()) == []
    assert str(tmp_path) in Path("/proc/self/maps").read_text(), "it lives in a file, not in anonymous memory"
    empty = torch.zeros(0)
    assert MappedFiles(tmp_path).moved(empty) is empty


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        MappedFiles(tmp_path).moved(torch.zeros(4))
    assert "engine.offload_dir" in str(caught.value.where)
    assert "more ranks" in str(caught.value.remedy)


def test_memory_that_looks_like_a_disk_is_known():
    assert filesystem_of(Path("/dev/shm/not/there")) == "tmpfs"
    assert filesystem_of(Path("/proc/self/x")) == "proc"
