import subprocess
import sys
from pathlib import Path

import pytest

from distllm.data.staging import Staging
from distllm.errors import RunDirectoryBusy, StorageError

HOLD = """
import sys
from pathlib import Path
from distllm.data.staging import Staging
with Staging(Path(sys.argv[1])) as staging:
    (staging.directory / "half").mkdir()
    (staging.directory / "half" / "written").write_text("x")
    print("held", flush=True)
    sys.stdin.read()
"""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_commit_shows_the_whole_directory_at_once(tmp_path):
    out = tmp_path / "deep" / "out"
    with Staging(out) as staging:
        (staging.directory / "a").write_text("a")
        assert not out.exists()
        staging.commit()
        assert names(out) == ["a"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_without_a_commit_removes_everything(tmp_path, error):
    def build():
        with Staging(tmp_path / "out") as staging:
            (staging.directory / "a").write_text("a")
            raise error

    with pytest.raises(error):
        build()
    assert names(tmp_path) == []


def test_a_second_process_is_refused_while_the_first_lives(tmp_path, holder):
    with (
        pytest.raises(RunDirectoryBusy, match="another process is preparing") as error,
        Staging(tmp_path / "out"),
    ):
        pass
    assert error.value.remedy
    assert (tmp_path / "out.partial" / "half" / "written").exists()
    holder.communicate()
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "out.partial" / "half" / "written").exists()
    with Staging(tmp_path / "out") as staging:
        assert names(staging.directory) == [".lock"]
        staging.commit()
    assert names(tmp_path / "out") == []


def test_after_a_commit_the_partial_name_belongs_to_others(tmp_path):
    with Staging(tmp_path / "out") as staging:
        staging.commit()
        (tmp_path / "out.partial").mkdir()
    assert (tmp_path / "out.partial").exists()


def test_a_link_to_an_empty_directory_is_filled_where_it_points(tmp_path):
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "data")
    with Staging(tmp_path / "out") as staging:
        (staging.directory / "a").write_text("a")
        staging.commit()
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk" / "data") == ["a"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for out, cause in (
        (tmp_path / "file" / "out", "cannot make the directory"),
        (tmp_path / "file" / "deep" / "out", "cannot make the directory"),
        (Path("/proc/none/out"), "cannot hold files"),
    ):
        with pytest.raises(StorageError, match=cause), Staging(out):
            pass
