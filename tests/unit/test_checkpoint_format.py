import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transactions import transaction

from distllm.checkpoint.commit import recover
from distllm.checkpoint.format import (
    list_checkpoints,
    list_quarantined,
    newest_verified,
    read_state,
    step_path,
    verify,
)
from distllm.checkpoint.retention import Retention, prune
from distllm.errors import CheckpointError, StorageError
from distllm.fsio import digest_bytes


def save(directory, step, content=b"weights " * 1000):
    with transaction(directory, step) as files:
        files.write("model-00000.safetensors", content + bytes([step]))
        files.write("optim-00000.safetensors", b"moments")
        files.write("state.json", json.dumps({"format": 1, "step": step}).encode())


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


FILES = ["model-00000.safetensors", "optim-00000.safetensors", "state.json", "manifest.json", "COMMITTED"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, truncate, os.remove])
def test_any_damage_to_any_file_falls_back_to_the_checkpoint_before(tmp_path, name, damage, caplog):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(step_path(tmp_path, 2) / name)
    info, damaged = newest_verified(tmp_path)
    assert info.step == 1
    ((path, reason),) = damaged
    assert path == tmp_path / "step-000000002.quarantined"
    assert path.is_dir()
    assert name in reason or "manifest.json" in reason
    if damage is truncate and name in FILES[:3]:
        assert "bytes instead of" in reason
    if damage is os.remove:
        assert (
            "never committed" if name == "COMMITTED" else "missing" if name in FILES[:3] else "cannot be"
        ) in reason
    assert names(tmp_path) == ["step-000000001", "step-000000002.quarantined"]
    (line,) = caplog.messages
    assert "step-000000002 is damaged" in line
    assert "\n" not in line


def test_a_whole_checkpoint_tells_its_files(tmp_path):
    save(tmp_path, 100)
    info = verify(tmp_path / "step-000000100")
    assert info.step == 100
    assert set(info.files) == {"model-00000.safetensors", "optim-00000.safetensors", "state.json"}
    assert info.bytes == sum((info.path / name).stat().st_size for name in info.files)


def test_nothing_there_is_no_error(tmp_path):
    assert newest_verified(tmp_path / "absent") == (None, [])
    (tmp_path / "notes.txt").write_text("step-000000001")
    assert newest_verified(tmp_path) == (None, [])


def test_checkpoints_of_which_none_is_whole_are_an_error_every_time(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    truncate(step_path(tmp_path, 1) / "state.json")
    flip(step_path(tmp_path, 2) / "model-00000.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of the 2 checkpoints") as caught:
            newest_verified(tmp_path)
        assert "step-000000001" in caught.value.cause
        assert caught.value.remedy
    assert names(tmp_path) == ["step-000000001.quarantined", "step-000000002.quarantined"]


def test_a_reader_that_does_not_own_the_directory_moves_nothing(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip(step_path(tmp_path, 2) / "state.json")
    info, damaged = newest_verified(tmp_path, quarantine=False)
    assert info.step == 1
    assert damaged[0][0] == step_path(tmp_path, 2)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]


def test_the_same_step_may_be_set_aside_twice(tmp_path):
    save(tmp_path, 1)
    for expected in ("step-000000002.quarantined", "step-000000002.quarantined-2"):
        save(tmp_path, 2)
        flip(step_path(tmp_path, 2) / "state.json")
        _, damaged = newest_verified(tmp_path)
        assert damaged[0][0].name == expected
    assert len(list_quarantined(tmp_path)) == 2


@pytest.mark.parametrize("manifest", [b"[]", b'{"files": {"a": 1}}', b"nonsense", b'{"files": {"../x": {}}}'])
def test_a_forged_manifest_is_damage(tmp_path, manifest):
    save(tmp_path, 1)
    path = step_path(tmp_path, 1)
    (path / "manifest.json").write_bytes(manifest)
    (path / "COMMITTED").write_text(digest_bytes(manifest))
    with pytest.raises(CheckpointError, match="manifest"):
        verify(path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    save(tmp_path, 1)
    path = step_path(tmp_path, 1)
    (tmp_path / "other").write_bytes(b"")
    manifest = json.dumps({"files": {"../other": {"bytes": 0, "xxh3_128": digest_bytes(b"")}}}).encode()
    (path / "manifest.json").write_bytes(manifest)
    (path / "COMMITTED").write_text(digest_bytes(manifest))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        verify(path)


def test_another_format_is_refused_and_not_called_damage(tmp_path):
    with transaction(tmp_path, 1) as files:
        files.write("state.json", b'{"format": 99, "versions": {"distllm": "9"}}')
    info, _ = newest_verified(tmp_path)
    with pytest.raises(CheckpointError, match="format 99"):
        read_state(info.path)
    assert names(tmp_path) == ["step-000000001"]


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
        prune(tmp_path, Retention(2))
    assert names(tmp_path) == ["step-000000003", "step-000000004"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000004", "step-000000003"]


def test_the_last_whole_one_stays_whatever_its_age(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    for step in (4, 5):
        flip(step_path(tmp_path, step) / "state.json")
    removed = prune(tmp_path, Retention(2))
    assert [path.name for path in removed] == ["step-000000002", "step-000000001"]
    assert newest_verified(tmp_path)[0].step == 3


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, b"old")
    save(tmp_path, 1, b"new")
    assert (step_path(tmp_path, 1) / "model-00000.safetensors").read_bytes() == b"new\x01"
    assert names(tmp_path) == ["step-000000001"]


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_behind(directory, original, kind, pid, host=None):
    host = host or os.uname().nodename
    shutil.copytree(directory / original, directory / f"{original}.{kind}.{host}-{pid}-00c0ffee")


def test_the_next_save_clears_up_after_dead_writers_only(tmp_path):
    save(tmp_path, 1)
    for kind in ("partial", "removed", "replaced"):
        leave_behind(tmp_path, "step-000000001", kind, dead_pid())
    leave_behind(tmp_path, "step-000000001", "partial", 1, host="another-machine.org")
    leave_behind(tmp_path, "step-000000001", "partial", os.getppid())
    (tmp_path / "step-000000009.partial.mine").mkdir()
    save(tmp_path, 2)
    left = names(tmp_path)
    assert left[0] == "step-000000001"
    assert left[1].startswith("step-000000001.partial.")
    assert f"-{os.getppid()}-" in left[1]
    assert left[2:] == ["step-000000002", "step-000000009.partial.mine"]


def test_a_replaced_checkpoint_comes_back_when_its_successor_never_came(tmp_path):
    save(tmp_path, 1)
    leave_behind(tmp_path, "step-000000001", "replaced", dead_pid())
    shutil.rmtree(step_path(tmp_path, 1))
    recover(tmp_path)
    assert newest_verified(tmp_path)[0].step == 1


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(TypeError):
        save(tmp_path, 2, content=None)
    assert names(tmp_path) == ["step-000000001"]


WRITE_LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from transactions import transaction
from distllm.errors import StorageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with transaction(Path(sys.argv[1]), 2) as files:
        files.write("model-00000.safetensors", bytes(50_000))
        files.write("optim-00000.safetensors", bytes(200_000))
except StorageError as error:
    print(error.exit_code, error)
"""


def test_a_full_disk_costs_only_the_new_checkpoint(tmp_path):
    save(tmp_path, 1)
    result = subprocess.run(
        [sys.executable, "-c", WRITE_LIMITED, str(tmp_path), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("74 no space left while writing")
    assert "free disk space" in result.stdout
    assert names(tmp_path) == ["step-000000001"]
    assert newest_verified(tmp_path)[0].step == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not permitted"):
        save(tmp_path, 1)


def test_the_format_and_the_commit_import_no_torch():
    code = "import sys, distllm.checkpoint.commit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
