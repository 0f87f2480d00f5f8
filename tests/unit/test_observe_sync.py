import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distllm.observe import sync

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(sync, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sync, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(sync, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sync, "_end_file", lambda file: file.with_suffix(".ended").touch())


_end_file = sync._end_file


def written(tmp_path, *starts):
    """The files of a run's attempts."""
    files = [tmp_path / f"offline-run-{start}-id1" / "run-id1.wandb" for start in starts]
    for file in files:
        file.parent.mkdir()
        file.touch()
    return files


def uploader(tmp_path, body):
    """A command in place of wandb: notes each call's arguments, then runs ``body``."""
    script = tmp_path / "upload.py"
    script.write_text(
        f"import sys, time, pathlib\nlog = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "log.open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "calls = len(log.read_text().splitlines())\n" + body
    )
    return [sys.executable, str(script)]


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


@pytest.fixture
def run():
    """A process that stands for the run."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def ended():
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def is_running(pid):
    """Whether a process has not ended, be it reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


DONE = "pathlib.Path(sys.argv[-1] + '.synced').touch()\n"


def test_uploads_what_earlier_attempts_left_and_then_follows_the_newest(tmp_path, run):
    first, second = written(tmp_path, 1, 2)
    body = f"if sys.argv[-1] != {str(second)!r} or calls > 3: {DONE}"
    follower = uploader(tmp_path, body)

    def end_after_three_calls():
        for _ in range(3000):
            if (tmp_path / "calls").exists() and len(calls(tmp_path)) >= 3:
                break
            time.sleep(0.02)
        run.kill()
        run.wait()

    reaper = threading.Thread(target=end_after_three_calls)
    reaper.start()
    assert sync.follow(second, "id1", run.pid, NOWHERE, follower)
    reaper.join()
    told = calls(tmp_path)
    assert told[0] == str(first)
    assert first.with_suffix(".ended").exists()
    assert told[1] == told[2] == f"--live {second}"  # the server did not answer: it tries again
    assert told[-1] == str(second)
    assert second.with_suffix(".ended").exists()


@pytest.mark.slow
def test_a_server_that_stays_down_is_given_up_after_the_run(tmp_path, monkeypatch):
    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync, "LAST_SECONDS", 2.0)
    began = time.monotonic()
    assert not sync.follow(file, "id1", ended(), NOWHERE, uploader(tmp_path, "sys.exit(1)"))
    assert 2.0 < time.monotonic() - began < 60
    assert len(calls(tmp_path)) >= 1


@pytest.mark.slow
def test_an_upload_that_hangs_is_stopped_after_the_run_and_its_server_asked(tmp_path, monkeypatch):
    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync, "LAST_SECONDS", 1.0)
    assert not sync.follow(file, "id1", ended(), NOWHERE, uploader(tmp_path, "time.sleep(600)"))
    assert sync.read_upload(tmp_path) == sync.Upload(problem="[Errno 111] Connection refused")


def test_what_a_later_attempt_writes_is_neither_ended_nor_uploaded(tmp_path):
    first, second = written(tmp_path, 1, 2)
    begins = f"import os; os.replace({str(tmp_path / 'later')!r}, {str(second.parent)!r})\n"
    second.parent.rename(tmp_path / "later")
    assert sync.follow(first, "id1", ended(), NOWHERE, uploader(tmp_path, begins + DONE))
    assert calls(tmp_path) == [str(first)]
    assert sync.not_uploaded(tmp_path, "id1") == [second]
    assert not second.with_suffix(".ended").exists()


def test_a_client_does_not_outlive_the_process_that_uploads(tmp_path):
    (file,) = written(tmp_path, 1)
    command = uploader(tmp_path, "import os; print(os.getpid(), flush=True); time.sleep(600)")
    code = (
        "import sys; from pathlib import Path; from distllm.observe import sync\n"
        "sync._end_file = lambda file: None\n"
        f"sync.follow(Path({str(file)!r}), 'id1', {ended()}, {NOWHERE!r}, {command!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        client = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 20
    while is_running(client):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_disk_that_is_full_is_said_and_waited_for(tmp_path, monkeypatch):
    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync, "SILENT_SECONDS", 60.0)
    full = [OSError(errno.ENOSPC, "No space left on device")]

    def end(file):
        if full:
            raise full.pop()

    monkeypatch.setattr(sync, "_end_file", end)
    assert sync.follow(file, "id1", ended(), NOWHERE, uploader(tmp_path, DONE))
    assert "No space left" in sync.read_upload(tmp_path).problem


def test_an_attempt_that_was_killed_before_it_wrote_keeps_no_other_from_being_uploaded(tmp_path, monkeypatch):
    """The client refuses a file without a run for ever."""
    monkeypatch.setattr(sync, "_end_file", _end_file)
    first, second = written(tmp_path, 1, 2)
    second.with_suffix(".wandb.synced").touch()
    assert sync.follow(first, "id1", ended(), NOWHERE, uploader(tmp_path, "sys.exit(0)"))
    assert not (tmp_path / "calls").exists()
    assert first.read_bytes() == b""


def test_a_file_whose_writer_was_killed_is_ended_while_it_is_followed(tmp_path, monkeypatch, run):
    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync, "QUIET_SECONDS", 0.1)
    waits = f"while not pathlib.Path({str(file.with_suffix('.ended'))!r}).exists(): time.sleep(0.02)\n"
    killer = threading.Timer(0.3, lambda: (run.kill(), run.wait()))
    killer.start()
    assert sync.follow(file, "id1", run.pid, NOWHERE, uploader(tmp_path, waits + DONE))
    assert calls(tmp_path) == [f"--live {file}"]


@pytest.mark.parametrize(
    ("line", "upload"),
    [
        ("wandb: [a/b] View run tiny at https://wandb.ai/a/b", sync.Upload(url="https://wandb.ai/a/b")),
        ("wandb: ERROR user is not logged in", sync.Upload(problem="user is not logged in")),
        ("wandb.errors.errors.UsageError: No API key", sync.Upload(problem="No API key")),
    ],
)
def test_what_the_client_says_is_kept_for_the_user(tmp_path, line, upload):
    (file,) = written(tmp_path, 1)
    sync.follow(file, "id1", ended(), NOWHERE, uploader(tmp_path, f"print({line!r})\n{DONE}"))
    assert sync.read_upload(tmp_path) == upload


def test_the_process_gets_the_file_and_its_writer_and_not_the_writers_service(tmp_path, monkeypatch):
    started = []
    monkeypatch.setenv("WANDB_SERVICE", "of the run")
    monkeypatch.setenv("WANDB_SILENT", "true")  # the url would not be said
    monkeypatch.setattr(
        sync.subprocess, "Popen", lambda command, **options: started.append((command, options))
    )
    (file,) = written(tmp_path, 1)
    sync.start_sync(file, "id1", NOWHERE)
    ((command, options),) = started
    assert command[1:] == ["-m", "distllm.observe.sync", str(file), "id1", str(os.getpid()), NOWHERE]
    assert options["start_new_session"]
    assert not {"WANDB_SERVICE", "WANDB_SILENT"} & options["env"].keys()
    assert (tmp_path / "sync.log").exists()


def test_a_file_system_without_locks_is_no_reason_not_to_upload(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync.fcntl, "flock", no_locks)
    assert sync.follow(file, "id1", ended(), NOWHERE, uploader(tmp_path, DONE))
