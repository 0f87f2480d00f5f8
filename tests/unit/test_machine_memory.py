"""What memory is left: of the machine, and of every control group around the process."""

import pytest

from distllm import machine


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups a and a/b around this process, on a machine with 8000 KiB left."""
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_CGROUPS", root)
    return root


def limit(group, most, current, cached=0):
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_without_limits_it_is_what_the_machine_has(groups):
    assert machine.available_memory() == 8000 * 1024
    limit(groups / "a" / "b", "max", 77)
    assert machine.available_memory() == 8000 * 1024


def test_the_tightest_group_counts_and_caches_are_free(groups):
    limit(groups / "a" / "b", 5000, 1000)
    assert machine.available_memory() == 4000
    limit(groups / "a", 3000, 2000, cached=500)
    assert machine.available_memory() == 1500


def test_where_linux_says_nothing_nothing_is_known(groups, tmp_path):
    (tmp_path / "meminfo").unlink()
    (tmp_path / "own").write_text("1:memory:/old\n")
    assert machine.available_memory() is None
    (tmp_path / "own").unlink()
    assert machine.available_memory() is None


def test_this_machine_has_some():
    assert machine.available_memory() > 0
