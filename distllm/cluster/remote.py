"""Starting ranks on the machines of a hostfile with the deepspeed launcher, and supervising them.

DeepSpeed's launcher uses pdsh or Open MPI. By itself it passes no signals on to the ranks and leaves
them behind when it dies. Here a signal becomes a request in a file that rank 0 reads, and ranks end
when the launcher does (`distllm.cluster.leash`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distllm.cluster.batch import say, start_directory
from distllm.cluster.control import Control
from distllm.cluster.descendants import adopt_orphans, end_descendants
from distllm.cluster.fence import VARIABLE as FENCE
from distllm.cluster.fence import Fence
from distllm.cluster.history import History, Start
from distllm.cluster.hostfile import counts_from_zero, include_of
from distllm.cluster.leash import Leash, follow_launcher
from distllm.cluster.local import FORWARDED
from distllm.cluster.outcome import EXITS_VARIABLE, Outcome, Watch
from distllm.cluster.snapshot import SETTLED_VARIABLE, Submission
from distllm.config.schema import Config
from distllm.errors import LaunchError, StorageError
from distllm.fsio import atomic_write_json, read_json

MEMBER_MODULE = "distllm.launch.member"
HOSTFILE, RENDEZVOUS = "hostfile", "rendezvous.json"
_POLL_SECONDS = 0.2
_STRAGGLE_SECONDS = 30.0
_NEEDED = {"pdsh": "pdsh", "openmpi": "mpirun"}


@dataclass(frozen=True, slots=True)
class Remote:
    """A run on the machines of a hostfile.

    Attributes:
        submission: what runs.
        hosts: the machines that take part, rank 0's first, each with the slots of its ranks: the numbers of
            its devices.
        launcher: ``pdsh`` or ``openmpi``.
        head: name or address at which all ranks meet.
        port: port there.
    """

    submission: Submission
    hosts: Mapping[str, Sequence[int]]
    launcher: str
    head: str
    port: int


def supervise_remote(remote: Remote) -> int:
    """Run it to its end, restarting it while that makes progress; return the exit code."""
    return _Supervisor(remote).run()


class _Supervisor:
    def __init__(self, remote: Remote) -> None:
        self._remote, self._submission = remote, remote.submission
        self._config = remote.submission.config()
        self._control, self._history = Control(self._submission.run_dir), History(self._submission.run_dir)
        self._asked = 0
        self._signal: signal.Signals | None = None

    def run(self) -> int:
        previous = {number: signal.signal(number, self._forward) for number in FORWARDED}
        adopt_orphans()
        try:
            while True:
                start = self._history.begin("launch", list(self._remote.hosts), str(self._submission.path))
                outcome = self._once(start)
                self._history.end(start, outcome.kind, outcome.why)
                say(f"{outcome.kind}: {outcome.why}")
                if not self._goes_on(outcome):
                    return outcome.code
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _goes_on(self, outcome: Outcome) -> bool:
        if outcome.kind != "failed" or self._asked:
            return False
        slurm, path = self._config.cluster.slurm, str(self._submission.path)
        if self._history.stalls_in_a_row(path) >= slurm.max_stalls:
            say("starts in a row without saving a further step: not started again")
            return False
        return self._history.restarts(path) < slurm.max_restarts

    def _once(self, start: Start) -> Outcome:
        """Start the ranks, and wait until they and the processes that started them have ended."""
        path, run_dir = self._submission.path, self._submission.run_dir
        fence = Fence(str(path), start.number)
        logs = start_directory(run_dir, start.number)
        (logs / "exits").mkdir(parents=True, exist_ok=True)
        head, port = self._remote.head, self._remote.port + start.number % 100
        meeting = {"head": head, "port": port, "fence": str(fence), "exits": str(logs / "exits")}
        atomic_write_json(path / RENDEZVOUS, meeting)
        leash, watch = Leash(run_dir, fence), Watch(run_dir)
        leash.beat()
        command = deepspeed_command(self._remote, head, port)
        say(f"start {start.number} on {' '.join(self._remote.hosts)}, after step {start.before}")
        launcher = subprocess.Popen(
            command, cwd=self._submission.code, env=_environment(self._config, self._submission),
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = self._wait(launcher, leash, watch, logs / "exits")
        finally:
            leash.end_ranks()
            if launcher.poll() is None:
                launcher.kill()
                launcher.wait()
            end_descendants()  # remote shells to machines that do not answer outlive the launcher
        return watch.outcome(code, logs / "exits")

    def _wait(self, launcher: subprocess.Popen[bytes], leash: Leash, watch: Watch, exits: Path) -> int:
        """Wait for the launcher; once the run has ended, only as long as ranks may take to exit."""
        ended_at: float | None = None
        while (code := launcher.poll()) is None:
            leash.beat()
            self._pass_on_signal()
            if ended_at is None and (watch.has_ended() or any(exits.iterdir())):
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at > _STRAGGLE_SECONDS:
                say("some ranks, or the shells that started them, do not end: leaving them behind")
                return 70
            if self._asked > 1:
                return 130
            time.sleep(_POLL_SECONDS)
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; writing a file in a handler could fail in the middle of anything."""
        self._asked += 1
        self._signal = signal.Signals(number)

    def _pass_on_signal(self) -> None:
        """Ask rank 0 to stop, once after each signal."""
        if self._signal is None:
            return
        name, self._signal = self._signal.name, None
        try:
            self._control.ask("stop", f"the launcher got {name}")
        except StorageError as error:
            say(f"the ranks cannot be asked to stop: {error.cause}")


def deepspeed_command(remote: Remote, head: str, port: int) -> list[str]:
    """Return the command line of the deepspeed launcher.

    Raises:
        LaunchError: pdsh or mpirun is not installed here, or the launcher cannot give ranks these slots.
    """
    needed = _NEEDED[remote.launcher]
    if shutil.which(needed) is None:
        raise LaunchError(
            f"{needed} is not installed on this machine",
            where=f"launcher={remote.launcher}",
            remedy=f"install it, or use another launcher: {', '.join(_NEEDED)}",
        )
    numbered = not counts_from_zero(remote.hosts)
    if numbered and remote.launcher == "openmpi":
        raise LaunchError(
            f"Open MPI always uses the first slots of a host, not {include_of(remote.hosts)}",
            where="include, exclude",
            remedy="launcher=pdsh, or slots from 0 on",
        )
    script = Path(sys.executable).with_name("deepspeed")
    return [
        sys.executable,
        str(script),
        f"--hostfile={remote.submission.path / HOSTFILE}",
        f"--launcher={remote.launcher}",
        *([f"--include={include_of(remote.hosts)}"] if numbered else []),
        "--no_ssh_check",
        "--force_multi",
        # Open MPI would bind each rank to one core; distllm divides the cores of a machine itself.
        *(["--launcher_args=--bind-to none"] if remote.launcher == "openmpi" else []),
        f"--master_addr={head}",
        f"--master_port={port}",
        "--no_local_rank",
        "--module",
        MEMBER_MODULE,
        str(remote.submission.path),
    ]


def join(path: Path, env: MutableMapping[str, str]) -> list[str]:
    """Become a rank of the submission at ``path``: set its variables in ``env``; return its overrides."""
    submission, meeting = Submission.load(path), read_json(path / RENDEZVOUS)
    if "OMPI_COMM_WORLD_RANK" in env and "RANK" not in env:
        names = {
            "RANK": "RANK",
            "SIZE": "WORLD_SIZE",
            "LOCAL_RANK": "LOCAL_RANK",
            "LOCAL_SIZE": "LOCAL_WORLD_SIZE",
        }
        env.update({ours: env[f"OMPI_COMM_WORLD_{theirs}"] for theirs, ours in names.items()})
        env.update({"MASTER_ADDR": meeting["head"], "MASTER_PORT": str(meeting["port"])})
    env.update(submission.config().cluster.env)
    env.update(
        {
            FENCE: meeting["fence"],
            EXITS_VARIABLE: meeting["exits"],
            SETTLED_VARIABLE: str(submission.config_file),
        }
    )
    os.chdir(submission.directory)
    fence = Fence.read(env)
    assert fence is not None
    follow_launcher(submission.run_dir, fence)
    return list(submission.words)


def _environment(config: Config, submission: Submission) -> dict[str, str]:
    """Return the environment of the launcher, which passes variables named PYTHON* on to the ranks."""
    paths = [str(submission.code), *filter(None, [os.environ.get("PYTHONPATH")])]
    device = {"DS_ACCELERATOR": config.cluster.device}
    return {**os.environ, **device, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
