"""A run on two ranks: no secret in any file it writes, no port that other machines can reach."""

import subprocess
import time

import psutil
import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]

CANARIES = {
    "WANDB_API_KEY": "c4n4ry00000000000000000000000000000wandb",
    "AWS_SECRET_ACCESS_KEY": "c4n4ry-aws-9f8e7d6c5b4a",
    "SERVICE_PASSWORD": "c4n4ry-service-1a2b3c4d",
}
IN_URL = "c4n4ry-url-77aa88bb"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def busy(root):
    """A run with secrets in its environment, its URLs, its prompt and its keys, and its ranks' ports."""
    words = tiny.overrides(
        root, "name=canary", "engine=local", "logger=wandb", "logger.wandb=offline", "train.max_steps=100000",
        f"data.cache_dir='https://user:{IN_URL}@127.0.0.1/x?X-Amz-Signature={IN_URL}'",
        f"eval.prompt='the model {CANARIES['SERVICE_PASSWORD']}'",
        f"cluster.env.MY_API_KEY={CANARIES['SERVICE_PASSWORD']}",
    )  # fmt: skip
    with subprocess.Popen(
        tiny.command("train", *words),
        env=tiny.environment(**CANARIES),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        path = root / "runs" / "canary" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (path.exists() and max(tiny.steps(root, "canary"), default=0) >= 4):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        ports = [(one.pid, item) for one in family for item in one.net_connections(kind="inet")]
        process.terminate()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    return root / "runs" / "canary", output, ports


def test_no_canary_is_in_any_file_of_the_run_directory(busy):
    directory, output, _ = busy
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert {"config.yaml", "explain.json", "ledger.jsonl", "metrics.jsonl"} <= {path.name for path in files}
    found = [path.name for path in files if b"c4n4ry" in path.read_bytes()]
    assert found == []
    assert "[redacted]" in (directory / "config.yaml").read_text()
    assert "c4n4ry" not in output


def test_a_run_whose_configuration_was_redacted_goes_on(root, busy):
    directory, _, _ = busy
    step = max(tiny.steps(root, "canary"))
    words = tiny.overrides(root, "name=canary", "engine=local", "train.max_steps=100000")
    done = tiny.distllm("train", *words, f"train.stop_at_step={step + 1}")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step}" in done.stdout
    assert (directory / "checkpoints" / f"step-{step + 1:09d}").is_dir()


def test_ranks_listen_on_the_loopback_interface_only(busy):
    *_, ports = busy
    listening = {item.laddr.ip for _, item in ports if item.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::1"}
