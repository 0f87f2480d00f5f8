"""File systems of a few megabytes, which a test can fill."""

import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small(directory, mebibytes):
    """Mount an empty file system at ``directory`` for a while.

    Only root may mount, and not in every container: elsewhere the test is skipped, because nothing else
    makes a disk really full without filling the machine's own.
    """
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m", "distllm-test", str(directory)]
    mount = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)  # a library may still have its logs open
