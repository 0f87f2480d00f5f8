"""Running fault drills: the commands that a user would type, with faults injected in and around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from distllm.cluster.descendants import adopt_orphans, end_descendants
from distllm.cluster.drills import SHARDS, Drill
from distllm.cluster.scorecard import EXIT_CODES, Command, Row, compare, score
from distllm.errors import LaunchError
from distllm.fsio import read_tail

REFERENCE = "reference"
_SPARE_STARTS = 3
_FLIP_EVERY = 4096
_TAIL_BYTES = 1 << 16
_STALL_SECONDS = 2.0
NOWHERE = "http://127.0.0.1:9"
"""An address without a server: nothing listens on the discard port."""

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Ground:
    """The experiment that is drilled, and where.

    Attributes:
        directory: holds the runs of the drill, and nothing else.
        overrides: of the experiment, without names and faults.
        launcher: the command that starts a run; empty for `distllm train`.
        dataset: the prepared dataset on this machine.
        limit_seconds: time within which a fault must be noticed.
    """

    directory: Path
    overrides: Sequence[str]
    launcher: Sequence[str]
    dataset: Path
    limit_seconds: float

    @property
    def reference(self) -> Path:
        """The run directory of the undisturbed run."""
        return self.directory / REFERENCE


def run_reference(ground: Ground, steps: int) -> None:
    """Run the experiment without faults.

    Raises:
        LaunchError: it fails even then.
    """
    done = _start(ground, REFERENCE, [f"train.stop_at_step={steps}"])
    if done.code != 0:
        raise LaunchError(
            f"the run without faults ended with exit code {done.code}",
            where=str(_log(ground, REFERENCE)),
            remedy="make the experiment work first: run the same command with train instead of chaos",
        )


def run_drill(ground: Ground, drill: Drill) -> list[Row]:
    """Run one drill to its end and judge each of its faults."""
    stop = f"train.stop_at_step={drill.steps}"
    if not drill.around:
        faults = ",".join(map(str, drill.faults))
        commands = _until_done(ground, drill, [stop, f"chaos.faults=[{faults}]"], len(drill.faults))
        directory = ground.directory / drill.name
        return score(drill, directory, commands, ground.reference, ground.limit_seconds)
    if drill.around[0] in SHARDS:
        return _drill_shards(ground, drill, stop)
    return _drill_servers(ground, drill, stop)


def _until_done(ground: Ground, drill: Drill, more: Sequence[str], faults: int) -> list[Command]:
    """Act as a scheduler: start the run again until it is done or its exit code forbids a retry."""
    commands: list[Command] = []
    while len(commands) < faults + _SPARE_STARTS:
        commands.append(_start(ground, drill.name, more))
        if commands[-1].code in (0, 64, 65):
            break
    return commands


def _drill_shards(ground: Ground, drill: Drill, stop: str) -> list[Row]:
    """Damage the dataset and check that the run refuses it; repair it and check that the run is exact."""
    farm = ground.directory / "dataset"
    shards = _link_farm(ground.dataset, farm)
    more = [stop, f"data.out={farm}", "data.on_damage=fail"]
    refused: dict[str, tuple[Command, str]] = {}
    for kind in drill.around:
        for shard in shards:
            (farm / shard).unlink()
            if kind == "corrupt_shard":
                _copy_damaged(ground.dataset / shard, farm / shard)
        command = _start(ground, drill.name, more)
        refused[kind] = (command, _last_error(_log(ground, drill.name)))
        for shard in shards:
            (farm / shard).unlink(missing_ok=True)
            (farm / shard).symlink_to((ground.dataset / shard).absolute())
    final = _start(ground, drill.name, more)
    equality = compare(ground.directory / drill.name, ground.reference, drill.steps)
    rows = []
    for kind, (command, words) in refused.items():
        problem = _ending_problem(final, equality)
        if command.code not in EXIT_CODES[kind]:
            problem = f"exit code {command.code} instead of {EXIT_CODES[kind][-1]}"
        seconds = command.ended - command.began
        rows.append(Row(kind, words, seconds, 0, None, command.code, equality, problem))
    return rows


def _drill_servers(ground: Ground, drill: Drill, stop: str) -> list[Row]:
    """Train once with a server that stalls in the middle of a shard, or with no tracking server."""
    more, variables, stall = [stop], {}, _Stall()
    with ExitStack() as open_servers:
        if "stalled_shard" in drill.around:
            server = open_servers.enter_context(_stalling_server(ground.dataset))
            url, stall = f"http://127.0.0.1:{server.server_port}", server.stall
            cache = ground.directory / "cache"
            more += [f"data.out={url}", f"data.cache_dir={cache}", f"data.stall_seconds={_STALL_SECONDS:g}"]
        if "tracker_down" in drill.around:
            more.append("logger.wandb=online")
            variables = {"WANDB_BASE_URL": NOWHERE, "WANDB_API_KEY": "0" * 40}
            adopt_orphans()
        command = _start(ground, drill.name, more, variables)
    if variables:
        end_descendants()  # the process that uploads would retry for minutes
    directory = ground.directory / drill.name
    equality = compare(directory, ground.reference, drill.steps)
    problem = _ending_problem(command, equality)
    rows = []
    for kind in drill.around:
        judged = _judge_stall(stall) if kind == "stalled_shard" else _judge_tracker(directory)
        cause, noticed, own_problem = judged
        rows.append(Row(kind, cause, noticed, 0, None, command.code, equality, problem or own_problem))
    return rows


def _judge_stall(stall: _Stall) -> tuple[str, float | None, str]:
    """Return what was noticed, after how many seconds, and what is wrong with that."""
    if stall.stalled_at is None:
        return "", None, "the run fetched no shard"
    if stall.asked_again_at is None:
        return "", None, "the shard was not requested again"
    return "requested the shard again", stall.asked_again_at - stall.stalled_at, ""


def _judge_tracker(run: Path) -> tuple[str, float | None, str]:
    """Check that the run directory holds what could not be uploaded, for a later upload."""
    kept = [path for path in run.glob("wandb/offline-run-*/*.wandb") if path.stat().st_size > 0]
    if not kept:
        return "", None, "the run kept nothing to upload later"
    return f"no server: kept in {kept[-1].parent.name}", None, ""


def _ending_problem(command: Command, equality: str) -> str:
    if command.code != 0:
        return f"the run ended with exit code {command.code}"
    return "" if equality == "bit-equal" else "the steps differ from those of the run without faults"


def _start(
    ground: Ground, name: str, more: Sequence[str], variables: Mapping[str, str] | None = None
) -> Command:
    """Start a run once and wait for its end; its output goes to a log next to the run directories."""
    words = [*ground.overrides, *more, f"runs_dir={ground.directory}", f"name={name}"]
    command = [*ground.launcher, *words] if ground.launcher else [
        sys.executable, "-m", "distllm.cli", "train", *words
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if key not in _LAUNCHER_VARIABLES}
    began = time.time()
    with _log(ground, name).open("ab") as log:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**clean, **(variables or {})}, check=False
        ).returncode
    return Command(code, began, time.time())


def _log(ground: Ground, name: str) -> Path:
    return ground.directory / f"{name}.log"


def _last_error(log: Path) -> str:
    """Return the cause that the last command of a log printed."""
    lines = read_tail(log, _TAIL_BYTES).decode(errors="replace").splitlines()
    found = [line.removeprefix("distllm: ") for line in lines if line.startswith("distllm: ")]
    return found[-1] if found else ""


def _link_farm(dataset: Path, farm: Path) -> list[Path]:
    """Fill ``farm`` with links to the files of a dataset; return its training shards."""
    shards = []
    for path in sorted(dataset.rglob("*")):
        inside = path.relative_to(dataset)
        if path.is_dir():
            (farm / inside).mkdir(parents=True, exist_ok=True)
            continue
        (farm / inside).parent.mkdir(parents=True, exist_ok=True)
        (farm / inside).symlink_to(path.absolute())
        if inside.suffix == ".tar" and inside.parent.name == "train":
            shards.append(inside)
    return shards


def _copy_damaged(shard: Path, target: Path) -> None:
    """Copy a shard with one wrong byte in every page, so that any part that is read is damaged."""
    shutil.copyfile(shard, target)
    with target.open("r+b") as stream:
        for position in range(_FLIP_EVERY // 2, target.stat().st_size, _FLIP_EVERY):
            stream.seek(position)
            byte = stream.read(1)[0]
            stream.seek(position)
            stream.write(bytes([byte ^ 1]))


@dataclass
class _Stall:
    """When a server stalled and when the same file was asked for again (unix seconds)."""

    path: str = ""
    stalled_at: float | None = None
    asked_again_at: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    """Serves a directory on the loopback interface and stalls once, in the middle of a shard."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.stall = _Stall()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _handler_of(directory))

    @property
    def stalled_at(self) -> float | None:
        return self.stall.stalled_at

    @property
    def asked_again_at(self) -> float | None:
        return self.stall.asked_again_at


def _handler_of(directory: Path) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        """Serves files, except that it stalls in the first shard."""

        server: _Server

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def do_GET(self) -> None:
            stall = self.server.stall
            with self.server.lock:
                is_shard = self.path.endswith(".tar") and "/train/" in self.path
                stalls = is_shard and stall.stalled_at is None
                if stalls:
                    stall.path, stall.stalled_at = self.path, time.time()
                elif self.path == stall.path and stall.asked_again_at is None:
                    stall.asked_again_at = time.time()
            if not stalls:
                super().do_GET()
                return
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            stall.ended.wait()

        def log_message(self, *_arguments: Any) -> None:
            """Print nothing."""

    return Handler


@contextmanager
def _stalling_server(directory: Path) -> Iterator[_Server]:
    server = _Server(directory)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stall.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
