"""A disk that fills up under the libraries themselves: no step waits, one warning names who is hurt, and
another says when there is room again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import disks
import full_disk
import pytest

LONGEST_SECONDS = 0.1


@pytest.fixture
def small_disk(tmp_path):
    with disks.small(tmp_path / "disk", mebibytes=3) as directory:
        yield directory


@pytest.mark.slow
@pytest.mark.parametrize("name", full_disk.KEYS)
def test_a_full_disk_is_told_once_delays_no_step_and_ends_nothing(small_disk, tmp_path, name):
    own = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    environment = {**os.environ, **dict.fromkeys(own, str(tmp_path / "home")), "WANDB_SILENT": "true"}
    environment.pop("TRACKIO_DIR", None)
    tests = Path(full_disk.__file__).parent
    done = subprocess.run(
        [sys.executable, str(tests / "full_disk.py"), name, str(small_disk)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["longest"] < LONGEST_SECONDS
    warning, again = found["told"]
    assert warning.startswith(f"{name} failed (OSError: [Errno 28] No space left on device")
    assert again.startswith(f"{name} has space again and continues; ")
    assert found["lines"] == 41  # the start and each step
    assert not found["left"]
