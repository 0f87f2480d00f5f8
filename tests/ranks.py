"""Run a function on several gloo ranks, each in a fresh process, and collect what they return."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

JOIN_SECONDS = 60


def run_ranks(function, world_size, *args, timeout=120):
    """Call ``function(topology, *args)`` on ``world_size`` ranks; return the results in rank order.

    ``function`` is at the top level of its file. Arguments and results are JSON (paths arrive as
    strings). A rank is a fresh interpreter with one thread, the variables a launcher would set and
    a process group. Any failure fails the caller with every rank's traceback and output; when the
    time is up all ranks are killed.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as directory:
        job = Path(directory)
        call = {"file": function.__code__.co_filename, "name": function.__name__, "args": args}
        (job / "call.json").write_text(json.dumps(call, default=str))
        port = _free_port()
        ranks = [_start(job, rank, world_size, port) for rank in range(world_size)]
        try:
            finished = _wait(ranks, timeout)
        finally:
            _kill(ranks)
        outcomes = [_outcome(job, rank) for rank in range(world_size)]
        if not finished:
            raise AssertionError(f"ranks did not finish within {timeout} s\n{_report(job, outcomes)}")
        if any("error" in outcome for outcome in outcomes):
            raise AssertionError(f"ranks failed\n{_report(job, outcomes)}")
        return [outcome["result"] for outcome in outcomes]


def _start(job, rank, world_size, port):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    with (job / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, str(job)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(ranks, timeout):
    """Wait until all ranks have ended; a rank that failed gives the others a little longer."""
    deadline = time.monotonic() + timeout
    shortened = False
    while any(rank.poll() is None for rank in ranks):
        if not shortened and any(rank.poll() for rank in ranks):
            deadline, shortened = min(deadline, time.monotonic() + 5), True
        if time.monotonic() > deadline:
            return shortened
        time.sleep(0.02)
    return True


def _kill(ranks):
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()


def _outcome(job, rank):
    path = job / f"{rank}.json"
    if not path.exists():
        return {"error": "the process ended without a result"}
    return json.loads(path.read_text())


def _report(job, outcomes):
    parts = []
    for rank, outcome in enumerate(outcomes):
        log = (job / f"{rank}.log").read_text(errors="replace")
        parts.append(f"--- rank {rank}\n{outcome.get('error', 'finished')}\n{log}")
    return "\n".join(parts)


def _load(file, name):
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _run_rank(job):
    import torch

    from distllm.dist.topology import Topology, destroy_process_group, init_process_group

    torch.set_num_threads(1)
    call = json.loads((job / "call.json").read_text())
    topology = Topology.from_environment()
    try:
        init_process_group(topology, JOIN_SECONDS)
        result = _load(call["file"], call["name"])(topology, *call["args"])
        outcome = {"result": result}
        text = json.dumps(outcome)
    except BaseException:
        outcome = {"error": traceback.format_exc()}
        text = json.dumps(outcome)
    partial = job / f"{topology.rank}.partial"
    partial.write_text(text)
    partial.rename(job / f"{topology.rank}.json")
    if "error" not in outcome:
        destroy_process_group()
    sys.exit("error" in outcome)


if __name__ == "__main__":
    _run_rank(Path(sys.argv[1]))
