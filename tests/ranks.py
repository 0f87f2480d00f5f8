"""Run a function on several gloo ranks, each in a process of its own, and collect what they return.

The ranks of a test session are forked from one process that has imported torch and DeepSpeed and done
nothing else: to import them takes a rank longer than most tests.
"""

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

JOIN_SECONDS = 60
IMPORTED = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def run_ranks(function, world_size, *args, timeout=120, fresh=False):
    """Call ``function(topology, *args)`` on ``world_size`` ranks; return the results in rank order.

    ``function`` is at the top level of its file. Arguments and results are JSON (paths arrive as
    strings). A rank is a process with one thread, the variables a launcher would set and
    a process group. Any failure fails the caller with every rank's traceback and output; when the
    time is up all ranks are killed. ``fresh`` ranks have imported nothing.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as directory:
        job = Path(directory)
        call = {"file": function.__code__.co_filename, "name": function.__name__, "args": args}
        (job / "call.json").write_text(json.dumps(call, default=str))
        port = _free_port()
        context = multiprocessing.get_context("spawn") if fresh else _forking()
        ranks = [_start(context, job, rank, world_size, port) for rank in range(world_size)]
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


def _start(context, job, rank, world_size, port):
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
    process = context.Process(target=_begin_rank, args=(str(job), environment))
    process.start()
    return process


@functools.cache
def _forking():
    """The process to fork from, with torch and DeepSpeed imported as a rank with one thread would."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "deepspeed"])
    before = dict(os.environ)
    os.environ.update(IMPORTED)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


def _begin_rank(job, environment):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(Path(job) / f"{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    _run_rank(Path(job))


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(ranks, timeout):
    """Wait until all ranks have ended; a rank that failed gives the others a little longer."""
    deadline = time.monotonic() + timeout
    shortened = False
    while any(rank.exitcode is None for rank in ranks):
        if not shortened and any(rank.exitcode for rank in ranks):
            deadline, shortened = min(deadline, time.monotonic() + 5), True
        if time.monotonic() > deadline:
            return shortened
        time.sleep(0.02)
    return True


def _kill(ranks):
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.kill()  # one that has not begun its own session yet
        rank.join()


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
