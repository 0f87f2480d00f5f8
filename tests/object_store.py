"""An S3 server on this machine, with one bucket, ``corpus``."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest


@contextmanager
def serve_s3():
    """Start the server, point the environment at it, and yield an s3fs file system."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(key, value)
        import s3fs

        system = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        for _ in range(200):
            try:
                system.mkdir("corpus")
                break
            except Exception:
                time.sleep(0.05)
        yield system
    process.terminate()
    process.wait()
