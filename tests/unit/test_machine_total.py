"""The memory a process may use."""

import os

import pytest

from distllm import machine

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("limit", "wanted"), [("max\n", MACHINE), ("1048576\n", 1048576), (f"{MACHINE * 2}\n", MACHINE)]
)
def test_a_cgroup_cuts_the_machines_memory(tmp_path, monkeypatch, limit, wanted):
    path = tmp_path / "memory.max"
    path.write_text(limit)
    monkeypatch.setattr(machine, "_CGROUP_MEMORY", path)
    assert machine.total_memory() == wanted


def test_without_a_cgroup_it_is_the_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP_MEMORY", tmp_path / "none")
    assert machine.total_memory() == MACHINE
