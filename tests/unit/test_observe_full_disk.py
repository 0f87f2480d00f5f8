"""A disk that fills up under the libraries themselves: no step waits, and one warning names who is hurt."""

import contextlib
import logging
import os
import subprocess
import time
from dataclasses import replace

import pytest
from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.observe import background
from distllm.observe.open import build_sinks
from distllm.observe.tracked import TrackedRun

LONGEST_SECONDS = 0.1
KEYS = {
    "Weights & Biases": {"wandb": "offline"},
    "TensorBoard": {"tensorboard": True},
    "MLflow": {"mlflow": "file:{disk}/store"},
    "trackio": {"trackio": True},
}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "distllm-test", str(directory)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mount.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)  # wandb still has its logs open


def fill(directory):
    """Write until nothing fits."""
    ballast = os.open(directory / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(ballast, bytes(4096)):
            pass
    os.close(ballast)
    assert os.statvfs(directory).f_bavail == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the libraries say of it themselves
@pytest.mark.parametrize("name", KEYS)
def test_a_full_disk_is_told_once_and_delays_no_step(small_disk, tmp_path, monkeypatch, caplog, name):
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setattr(background, "_PROBE_SECONDS", 0.0)
    keys = {key: value.format(disk=small_disk) if isinstance(value, str) else value
            for key, value in KEYS[name].items()}  # fmt: skip
    settings = LoggerConfig(**{"wandb": "disabled", "console": False, **keys})
    file, dashboard = build_sinks(TrackedRun(Config(name="tiny", logger=settings), small_disk, 1, "a1"), 40)
    longest = 0.0
    with caplog.at_level(logging.WARNING):
        for step in range(1, 41):
            if step == 20:
                wait_until(lambda: dashboard._waiting.empty())
                fill(small_disk)
            file.log_step(replace(STEP, step=step))
            began = time.thread_time()
            dashboard.log_step(replace(STEP, step=step))
            longest = max(longest, time.thread_time() - began)
        dashboard.log_eval(EVAL)
        dashboard.close()
        told = [one.getMessage() for one in caplog.records if one.name == background.__name__]
        (small_disk / "ballast").unlink()
        file.close()
    assert longest < LONGEST_SECONDS
    (warning,) = told
    assert warning.startswith(f"{name} failed (OSError: [Errno 28] No space left on device")
    lines = (small_disk / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 41  # the start and each step
    assert not list(small_disk.glob(".room-*"))


def wait_until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
