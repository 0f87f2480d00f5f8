import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from distllm.observe import sync

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(sync, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sync, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(sync, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sync, "_end_file", lambda file: file.with_suffix(".ended").touch())


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
    assert sync.follow(tmp_path, "id1", run.pid, NOWHERE, follower)
    reaper.join()
    told = calls(tmp_path)
    assert told[0] == str(first)
    assert first.with_suffix(".ended").exists()
    assert told[1] == told[2] == f"--live {second}"  # the server did not answer: it tries again
    assert told[-1] == str(second)
    assert second.with_suffix(".ended").exists()


def test_a_server_that_stays_down_is_given_up_after_the_run(tmp_path, monkeypatch):
    written(tmp_path, 1)
    monkeypatch.setattr(sync, "LAST_SECONDS", 2.0)
    began = time.monotonic()
    assert not sync.follow(tmp_path, "id1", ended(), NOWHERE, uploader(tmp_path, "sys.exit(1)"))
    assert 2.0 < time.monotonic() - began < 60
    assert len(calls(tmp_path)) >= 1


def test_an_upload_that_hangs_is_stopped_after_the_run_and_its_server_asked(tmp_path, monkeypatch):
    written(tmp_path, 1)
    monkeypatch.setattr(sync, "LAST_SECONDS", 1.0)
    assert not sync.follow(tmp_path, "id1", ended(), NOWHERE, uploader(tmp_path, "time.sleep(600)"))
    assert sync.read_upload(tmp_path) == sync.Upload(problem="[Errno 111] Connection refused")


def test_a_file_whose_writer_was_killed_is_ended_while_it_is_followed(tmp_path, monkeypatch, run):
    (file,) = written(tmp_path, 1)
    monkeypatch.setattr(sync, "QUIET_SECONDS", 0.1)
    waits = f"while not pathlib.Path({str(file.with_suffix('.ended'))!r}).exists(): time.sleep(0.02)\n"
    killer = threading.Timer(0.3, lambda: (run.kill(), run.wait()))
    killer.start()
    assert sync.follow(tmp_path, "id1", run.pid, NOWHERE, uploader(tmp_path, waits + DONE))
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
    written(tmp_path, 1)
    sync.follow(tmp_path, "id1", ended(), NOWHERE, uploader(tmp_path, f"print({line!r})\n{DONE}"))
    assert sync.read_upload(tmp_path) == upload


def test_the_process_gets_the_directory_and_its_parent_and_not_the_parents_service(tmp_path, monkeypatch):
    started = []
    monkeypatch.setenv("WANDB_SERVICE", "of the run")
    monkeypatch.setattr(
        sync.subprocess, "Popen", lambda command, **options: started.append((command, options))
    )
    sync.start_sync(tmp_path, "id1", NOWHERE)
    ((command, options),) = started
    assert command[1:] == ["-m", "distllm.observe.sync", str(tmp_path), "id1", str(os.getpid()), NOWHERE]
    assert options["start_new_session"]
    assert "WANDB_SERVICE" not in options["env"]
    assert (tmp_path / "sync.log").exists()


def test_a_file_system_without_locks_is_no_reason_not_to_upload(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    written(tmp_path, 1)
    monkeypatch.setattr(sync.fcntl, "flock", no_locks)
    assert sync.follow(tmp_path, "id1", ended(), NOWHERE, uploader(tmp_path, DONE))
