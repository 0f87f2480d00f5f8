"""The health check of one node; ``srun`` runs it once on every node before the ranks start.

Each node checks its disks, memory and GPUs, and connects to the first node over a plain socket to
measure reachability, bandwidth and the difference of the clocks. Then all nodes sum a tensor with the
backend that training uses. Each prints one line of JSON that begins with `MARK`.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from distllm.cluster.strays import end_strays
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.config.yaml import from_yaml
from distllm.errors import StorageError
from distllm.fsio import ensure_writable, free_bytes
from distllm.units import format_bytes

MARK = "DISTLLM-HEALTH "
_COPIED_BYTES = 64 * 2**20
_SENT_BYTES = 4 * 2**20
_TENSOR_ELEMENTS = 2**20
_GPU_QUERY = "index,ecc.errors.uncorrected.volatile.total,clocks_throttle_reasons.hw_slowdown"


class NodeCheck:
    """Measures one node and collects its problems.

    Attributes:
        problems: of this node itself.
        shared: of what all nodes have in common, the disk of the run directory.
        suspects_head: between this node and the first one.
        figures: the measurements by name.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._limits, self._config, self._run_dir = config.cluster.health, config, run_dir
        self.problems: list[str] = []
        self.shared: list[str] = []
        self.suspects_head: list[str] = []
        self.figures: dict[str, float] = {}

    def local(self) -> None:
        """Run the checks that need no other node, after ending ranks that earlier starts left behind here."""
        if strays := end_strays(self._run_dir):
            print(f"distllm: ended ranks of an earlier start: {', '.join(map(str, strays))}", flush=True)
        self._check_disk("run directory", self._run_dir, self.shared)
        self._check_disk("temporary directory", Path(tempfile.gettempdir()), self.problems)
        if self._limits.min_memory_bandwidth:
            self._check_memory()
        if self._config.cluster.device == "cuda":
            self._check_gpus()

    def network(self, head: str, port: int, deadline: float) -> None:
        """Connect to the first node: compare clocks and measure the bandwidth."""
        try:
            skew, bandwidth = talk(head, port, deadline)
        except OSError as error:
            self.suspects_head.append(f"cannot reach the first node at {head}:{port}: {error}")
            return
        self.figures |= {"clock_skew_seconds": skew, "network_bytes_per_second": bandwidth}
        if abs(skew) > self._limits.max_clock_skew:
            self.suspects_head.append(f"its clock differs by {skew:+.1f} s from the first node's")
        if bandwidth < self._limits.min_network_bandwidth:
            self.suspects_head.append(f"sends only {format_bytes(bandwidth)}/s to the first node")

    def collective(self, node: int, nodes: int, head: str, port: int, seconds: float) -> None:
        """Sum a tensor over all nodes, and with either neighbour alone if that is slow."""
        floor = self._limits.min_collective_bandwidth
        try:
            together, pairs = sum_over_nodes(
                self._config.cluster.device, node, nodes, head, port, seconds, floor
            )
        except (RuntimeError, ValueError) as error:
            self.suspects_head.append(f"a sum over all nodes fails: {str(error).splitlines()[0]}")
            return
        self.figures["collective_bytes_per_second"] = together
        if pairs is not None:
            self.figures["pair_bytes_per_second"] = pairs
        said = f"sums only {format_bytes(together)}/s with all nodes"
        if pairs is None and together < floor:
            self.suspects_head.append(said)
        elif pairs is not None and pairs < floor:
            self.problems.append(f"{said} and {format_bytes(pairs)}/s with its better neighbour")

    def _check_disk(self, name: str, directory: Path, found: list[str]) -> None:
        try:
            ensure_writable(directory)
        except StorageError as error:
            found.append(f"{name}: {error.cause}")
            return
        free = free_bytes(directory)
        self.figures[f"free_bytes_{name.split(maxsplit=1)[0]}"] = free
        if free < self._limits.min_free_bytes:
            found.append(f"only {format_bytes(free)} free in the {name} {directory}")

    def _check_memory(self) -> None:
        """Copy a block a few times: a broken or throttled memory channel makes a node far slower."""
        source, target = bytearray(_COPIED_BYTES), bytearray(_COPIED_BYTES)
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            target[:] = source
            best = min(best, time.perf_counter() - began)
        bandwidth = _COPIED_BYTES / best
        self.figures["memory_bytes_per_second"] = bandwidth
        if bandwidth < self._limits.min_memory_bandwidth:
            self.problems.append(f"copies only {format_bytes(bandwidth)}/s in memory")

    def _check_gpus(self) -> None:
        """Count the GPUs that the driver shows, and report errors that it has counted."""
        wanted = self._config.cluster.procs_per_node
        if shutil.which("nvidia-smi") is None:
            self.problems.append("nvidia-smi is missing: no GPU driver")
            return
        done = self._run("nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader")
        if done is None:
            return
        rows = [
            [cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()
        ]
        if done.returncode or len(rows) < wanted:
            self.problems.append(f"nvidia-smi shows {len(rows)} GPUs of {wanted} ({done.stderr.strip()})")
        for row in rows:
            if len(row) == 3 and row[1].isdigit() and int(row[1]) > 0:
                self.problems.append(f"GPU {row[0]} has {row[1]} uncorrected memory errors")
            if len(row) == 3 and row[2].lower() == "active":
                self.problems.append(f"GPU {row[0]} is slowed down by its hardware")
        if shutil.which("dcgmi") is not None:
            self._diagnose_gpus()

    def _diagnose_gpus(self) -> None:
        """Run the quick level of NVIDIA's own diagnosis, which takes seconds."""
        done = self._run("dcgmi", "diag", "-r", "1")
        if done is not None and done.returncode:
            failed = [line for line in done.stdout.splitlines() if "fail" in line.lower()]
            self.problems.append(f"dcgmi diag -r 1: {' '.join((failed or [done.stderr])[0].split(' |'))}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str] | None:
        """Run a tool of the GPU driver; None, and a problem, if it hangs."""
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=self._limits.timeout_seconds / 2
            )
        except subprocess.TimeoutExpired:
            self.problems.append(f"{' '.join(command[:2])} does not end")
            return None


class Listener:
    """The first node's side of `talk`: it sends its time and receives bytes."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("", port))
        self._served = threading.Semaphore(0)
        threading.Thread(target=self._serve, daemon=True).start()

    def wait(self, nodes: int, deadline: float) -> None:
        """Return when ``nodes`` nodes were served, or at ``deadline``."""
        for _ in range(nodes):
            self._served.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Take no more connections."""
        self._server.shutdown(socket.SHUT_RDWR)  # closing alone would leave the thread in accept
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                _receive(connection, 1)
                connection.sendall(struct.pack("!d", time.time()))
                _receive(connection, _SENT_BYTES)
                connection.sendall(b".")
                connection.recv(1)  # until the other side has read the answer and closed
            except OSError:
                return  # the other side reports what it did not get
        self._served.release()


def talk(head: str, port: int, deadline: float) -> tuple[float, float]:
    """Return by how many seconds this clock is ahead of the first node's, and bytes per second sent to it.

    Args:
        head: name or address of the first node.
        port: the port on which it listens.
        deadline: time of `time.monotonic` until which connecting is tried.

    Raises:
        OSError: the first node cannot be reached, or does not answer.
    """
    while True:
        try:
            connection = socket.create_connection((head, port), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    with connection:
        connection.settimeout(max(1.0, deadline - time.monotonic()))
        sent_at = time.time()
        connection.sendall(b"?")
        (there,) = struct.unpack("!d", _receive(connection, 8))
        skew = (sent_at + time.time()) / 2 - there
        began = time.perf_counter()
        connection.sendall(bytes(_SENT_BYTES))
        _receive(connection, 1)
        return skew, _SENT_BYTES / (time.perf_counter() - began)


def _receive(connection: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        block = connection.recv(min(1 << 16, size - len(content)))
        if not block:
            raise ConnectionError("the connection was closed")
        content += block
    return bytes(content)


def sum_over_nodes(
    device: str, node: int, nodes: int, head: str, port: int, seconds: float, floor: int = 0
) -> tuple[float, float | None]:
    """Sum a tensor over all nodes, or raise what the backend raises.

    Returns:
        Bytes per second over all nodes; and, if any node measured less than ``floor``, the better of this
        node's rates with its two neighbours (`distllm.cluster.pairs`), else None.
    """
    import torch
    import torch.distributed as dist

    from distllm.cluster.pairs import best_of_pairs, rate

    target = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"tcp://{head}:{port}",
        rank=node,
        world_size=nodes,
        timeout=datetime.timedelta(seconds=seconds),
    )
    tensor = torch.ones(_TENSOR_ELEMENTS, device=target)
    dist.all_reduce(tensor)
    if float(tensor[0]) != float(nodes):
        raise RuntimeError(f"the sum over {nodes} nodes is {float(tensor[0])} instead of {nodes}")
    tensor.zero_()
    together = rate(tensor)
    slow = torch.tensor([float(together < floor)], device=target)
    dist.all_reduce(slow)
    pairs = best_of_pairs(tensor, node, nodes) if float(slow[0]) and nodes > 2 else None
    dist.destroy_process_group()
    return together, pairs


def main(arguments: list[str]) -> int:
    """Check this node and print the result as one line."""
    file, run_dir, head, port = arguments
    problems = Problems()
    config = build(Config, from_yaml(Path(file)), problems)
    problems.raise_if_any()
    node, nodes = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    deadline = time.monotonic() + config.cluster.health.timeout_seconds / 2
    listener = Listener(int(port)) if node == 0 else None
    check = NodeCheck(config, Path(run_dir))
    check.local()
    if nodes > 1:
        check.network(head, int(port), deadline)
    if nodes > 1 and config.cluster.health.collective:
        check.collective(node, nodes, head, int(port) + 1, max(5.0, deadline - time.monotonic()))
    report = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "problems": check.problems,
        "shared": check.shared,
        "together": check.suspects_head,
        "figures": check.figures,
    }
    print(MARK + json.dumps(report), flush=True)
    if listener is not None:
        listener.wait(nodes if nodes > 1 else 0, deadline)
        listener.close()
    os._exit(0)  # threads of a backend that are still running would abort the process


if __name__ == "__main__":
    main(sys.argv[1:])
