import os
import subprocess
import sys
import threading
import time

import pytest

from distllm.observe import sync


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(sync, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sync, "_POLL_SECONDS", 0.02)


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


def test_follows_while_the_run_lives_and_uploads_the_rest_after(tmp_path, run):
    follower = uploader(tmp_path, "time.sleep(0.1); sys.exit(0 if '--live' not in sys.argv else 1)")

    def end_after_two_calls():
        for _ in range(3000):
            if (tmp_path / "calls").exists() and len(calls(tmp_path)) >= 2:
                break
            time.sleep(0.02)
        run.kill()
        run.wait()

    reaper = threading.Thread(target=end_after_two_calls)
    reaper.start()
    assert sync.follow(tmp_path / "run", "id1", run.pid, follower) == 0
    reaper.join()
    *live, last = calls(tmp_path)
    assert len(live) >= 2  # the server did not answer: it tries again
    assert all(line == f"--live {tmp_path / 'run'}" for line in live)
    assert last == str(tmp_path / "run")


def test_a_server_that_stays_down_is_given_up_after_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "LAST_SECONDS", 2.0)
    began = time.monotonic()
    assert sync.follow(tmp_path, "id1", ended(), uploader(tmp_path, "sys.exit(1)")) != 0
    assert 2.0 < time.monotonic() - began < 60
    assert len(calls(tmp_path)) >= 1


def test_an_upload_that_hangs_is_stopped_after_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "LAST_SECONDS", 0.3)
    assert sync.follow(tmp_path, "id1", ended(), uploader(tmp_path, "time.sleep(600)")) != 0


def test_the_process_gets_the_directory_and_its_parent(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        sync.subprocess, "Popen", lambda command, **options: started.append((command, options))
    )
    (tmp_path / "files").mkdir()
    sync.start_sync(str(tmp_path / "files"), "id1")
    ((command, options),) = started
    assert command[1:] == ["-m", "distllm.observe.sync", str(tmp_path), "id1", str(os.getpid())]
    assert options["start_new_session"]
    assert (tmp_path / "sync.log").exists()
