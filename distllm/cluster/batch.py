"""What a job script does: check the nodes, start the ranks, and queue the job again when it should continue.

It runs once, on the first node of the job, outside of any container, and outlives its ranks. What happens
after a start depends on what ended it. If SLURM did (TERM: preemption, cancellation, a lost node, the time
limit), the script does nothing: SLURM decides whether the job returns, and a script that requeues on TERM
would restart a cancelled job. If the ranks ended by themselves (an error, or the warning before the time
limit), the script queues the job again, as often as the configuration allows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from distllm.cluster.allocation import Allocation
from distllm.cluster.control import TIME_LIMIT, Control
from distllm.cluster.evaluations import Evaluations
from distllm.cluster.fence import VARIABLE as FENCE
from distllm.cluster.fence import Fence
from distllm.cluster.health_report import NodeReport, bad_nodes, check_nodes, common_cause
from distllm.cluster.history import HOME, History, Start
from distllm.cluster.image import describe_image
from distllm.cluster.jobs import note_begin, note_successor
from distllm.cluster.outcome import EXITS_VARIABLE, Outcome, Watch, is_done
from distllm.cluster.slurm import UNREACHABLE, NoAnswerError, requeue, submit, unusable
from distllm.cluster.snapshot import SETTLED_VARIABLE, Submission
from distllm.cluster.srun import ranks_command
from distllm.cluster.surroundings import surroundings
from distllm.cluster.suspects import suspect_of
from distllm.errors import ConfigError, LaunchError, StorageError
from distllm.units import count_of

_POLL_SECONDS = 0.5
_REQUEUE_WAIT_SECONDS = 120.0
_RETRY_FOR_SECONDS, _RETRY_EVERY_SECONDS = 3600.0, 15.0
ENDED_BY_SLURM = 143
T = TypeVar("T")


class JobScript:
    """One start of a submitted run.

    Args:
        submission: what was submitted.
        allocation: the job.
    """

    # Signal handlers only set events: a handler that prints or writes a file could interrupt the same thing.
    def __init__(self, submission: Submission, allocation: Allocation) -> None:
        self._submission, self._allocation = submission, allocation
        self._config = submission.config()
        self._run_dir = submission.run_dir
        self._control, self._history = Control(self._run_dir), History(self._run_dir)
        self._warned, self._ended = threading.Event(), threading.Event()
        signal.signal(signal.SIGUSR2, lambda *_: self._warned.set())
        signal.signal(signal.SIGTERM, self._note_end)

    def run(self) -> int:
        """Run this start to its end and return the exit code of the job."""
        if (reason := self._reason_not_to_start()) is not None:
            say(reason)
            return 0
        self._exclude_lost_nodes()
        nodes, history = self._allocation.nodes, self._history
        start = history.begin(self._allocation.job, nodes, str(self._submission.path))
        note_begin(self._run_dir, self._allocation.job)
        say(f"start {start.number} on {' '.join(nodes)}, after step {start.before}")
        say(f"environment: {surroundings(os.environ)}")
        try:
            if (image := describe_image(self._submission)) is not None:
                say(f"image: {image}")
        except ConfigError as error:
            return self._follow(start, Outcome("hopeless", str(error), error.exit_code))
        if banned := sorted(set(nodes) & set(history.excluded())):
            return self._elsewhere(start, f"SLURM assigned {', '.join(banned)} again")
        reports = self._check_nodes(start)
        if self._ended.is_set():  # it ended the health check too, whose result means nothing then
            return self._leave()
        if (common := common_cause(reports)) is not None:
            return self._follow(start, Outcome("failed", common, StorageError.exit_code))
        if bad := bad_nodes(reports):
            history.exclude(bad)
            return self._elsewhere(start, "; ".join(f"{node}: {why}" for node, why in bad.items()))
        try:
            outcome = self._train(start)
        except LaunchError as error:
            outcome = Outcome("failed", str(error), error.exit_code)
        if self._ended.is_set():
            return self._leave()
        return self._follow(start, outcome)

    def _leave(self) -> int:
        say("ended by SLURM, which decides whether the job comes back")
        return ENDED_BY_SLURM

    def _reason_not_to_start(self) -> str | None:
        """Return why nothing should be started, or None; a request to an earlier start is removed."""
        if self._control.asked("cancel") is not None:
            return "the run was cancelled: distllm cancel"
        stop = self._control.asked("stop")
        if stop is not None and not stop.again:
            return f"the run was asked to stop: {stop.why}"
        self._control.forget("stop")
        return "the run is done" if is_done(self._run_dir) else None

    def _exclude_lost_nodes(self) -> None:
        """Exclude the nodes that an earlier start of this job lost, if SLURM no longer uses them."""
        starts = self._history.starts()
        if not starts or starts[-1].end is not None:
            return
        try:
            lost = unusable(starts[-1].nodes)
        except LaunchError as error:
            say(f"cannot find out which nodes were lost: {error.cause}")
            return
        self._history.exclude(
            {node: f"{state} after start {starts[-1].number}" for node, state in lost.items()}
        )
        for node, state in lost.items():
            say(f"start {starts[-1].number} was ended by SLURM, and {node} is {state}: excluded")

    def _check_nodes(self, start: Start) -> list[NodeReport]:
        if not self._config.cluster.health.enabled:
            return []
        head = self._allocation.head(self._config.cluster.head)
        port = self._allocation.port(start.number + 7919)
        reports = check_nodes(self._submission, self._config, self._allocation.nodes, head, port)
        for report in reports:
            say(f"health of {report}")
        return reports

    def _train(self, start: Start) -> Outcome:
        """Start the ranks and wait until all have ended."""
        logs = start_directory(self._run_dir, start.number)
        (logs / "exits").mkdir(parents=True, exist_ok=True)
        allocation, watch = self._allocation, Watch(self._run_dir)
        env = {
            **os.environ,
            "MASTER_ADDR": allocation.head(self._config.cluster.head),
            "MASTER_PORT": str(allocation.port(start.number)),
            FENCE: str(Fence(str(self._submission.path), start.number)),
            EXITS_VARIABLE: str(logs / "exits"),
            SETTLED_VARIABLE: str(self._submission.config_file),
        }
        say(f"ranks meet at {env['MASTER_ADDR']}:{env['MASTER_PORT']}, logs in {logs}")
        evaluations = Evaluations(self._submission, self._config)
        ranks = subprocess.Popen(ranks_command(self._submission, self._config, logs), env=env)
        while (code := ranks.poll()) is None:
            self._ask_to_save_if_warned()
            evaluations.submit_due()
            time.sleep(_POLL_SECONDS)
        evaluations.submit_due(at_once=True)
        return watch.outcome(code if code >= 0 else 128 - code, logs / "exits")

    def _follow(self, start: Start, outcome: Outcome) -> int:
        """Queue the job again if the outcome asks for it; return the exit code of the job."""
        suspect = self._suspect(start, outcome) if outcome.kind == "failed" else None
        self._history.end(start, outcome.kind, outcome.why, suspect)
        say(f"{outcome.kind}: {outcome.why}")
        if outcome.kind in ("done", "stopped", "hopeless"):
            return outcome.code
        slurm, path = self._config.cluster.slurm, str(self._submission.path)
        stalls = self._history.stalls_in_a_row(path)
        if stalls >= slurm.max_stalls:
            why = f"{stalls} starts in a row have ended without saving a further step"
            return self._give_up(start, why, outcome.code)
        if (forbidden := self._forbidden()) is not None:
            return self._give_up(start, forbidden, outcome.code)
        if suspect is not None:
            self._count_against(suspect)
        unwanted = set(self._allocation.nodes) & set(self._history.excluded())
        return self._chain() if unwanted else self._requeue()

    def _suspect(self, start: Start, outcome: Outcome) -> str | None:
        """Return the node on which a start failed, if the node may be the cause."""
        if outcome.host is not None:
            return next((node for node in start.nodes if node == outcome.host.partition(".")[0]), None)
        logs = start_directory(self._run_dir, start.number)
        return suspect_of(logs, start.nodes, self._config.cluster)

    def _count_against(self, node: str) -> None:
        """Exclude a node on which starts have failed too often."""
        most, failures = self._config.cluster.slurm.node_failures, self._history.failures_on(node)
        say(f"{failures} starts have failed on {node}")
        if most and failures >= most:
            self._history.exclude({node: f"{failures} starts of the run have failed there"})

    def _requeue(self) -> int:
        """Queue the job again and exit at once, which frees the nodes; the exit code has no effect then."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # scontrol inherits it: SLURM ends it with this script
        try:
            certain = retry_while_unreachable(lambda: requeue(self._allocation.job))
        except LaunchError as error:
            signal.signal(signal.SIGTERM, self._note_end)
            say(f"requeue refused: {error.cause}")
            return self._chain()
        if certain:
            say("queued again")
            return 75
        say("asked SLURM to queue the job again; it ends this script if it does")
        deadline = time.monotonic() + _REQUEUE_WAIT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        say("SLURM has not queued the job again")
        return self._chain()

    def _elsewhere(self, start: Start, why: str) -> int:
        """Let a new job take over that does not use the excluded nodes."""
        self._history.end(start, "elsewhere", why)
        say(f"not here: {why}")
        if (forbidden := self._forbidden()) is not None:
            return self._give_up(start, forbidden, StorageError.exit_code)
        try:
            return self._chain()
        except LaunchError as error:
            return self._give_up(start, f"no job takes over: {error.cause}", StorageError.exit_code)

    def _forbidden(self) -> str | None:
        """Return why the job may not come back; None if it may."""
        slurm = self._config.cluster.slurm
        restarts = self._history.restarts(str(self._submission.path))
        if not slurm.requeue:
            return "cluster.slurm.requeue=false"
        if restarts >= slurm.max_restarts:
            return f"{count_of(restarts, 'restart')}, cluster.slurm.max_restarts={slurm.max_restarts}"
        return None

    def _give_up(self, start: Start, why: str, code: int) -> int:
        self._history.give_up(start, why)
        say(f"{why}: not started again")
        return code

    def _chain(self) -> int:
        """Submit the same script as a new job, which begins when this one has ended."""
        excluded = sorted({*self._config.cluster.slurm.exclude, *self._history.excluded()})
        options = [f"--dependency=afterany:{self._allocation.job}"]
        options += [f"--exclude={','.join(excluded)}"] if excluded else []
        options += [f"--array={self._allocation.task}"] if self._allocation.task is not None else []
        job = retry_while_unreachable(lambda: submit(str(self._submission.script), options))
        task = self._allocation.task
        note_successor(self._run_dir, job if task is None else f"{job}_{task}")
        say(f"job {job} takes over{' without ' + ', '.join(excluded) if excluded else ''}")
        return 75

    def _ask_to_save_if_warned(self) -> None:
        """Pass SLURM's warning of the time limit on to the ranks, once."""
        if not self._warned.is_set():
            return
        self._warned.clear()
        say("warning of the time limit: asking the ranks to save")
        try:
            if self._control.asked("stop") is None:
                self._control.ask("stop", TIME_LIMIT, again=True)
        except StorageError as error:
            say(f"the ranks cannot be asked: {error.cause}")

    def _note_end(self, _number: int, _frame: FrameType | None) -> None:
        self._ended.set()


def run_job(paths: Sequence[str], env: Mapping[str, str]) -> int:
    """Act as the script of a job, for one submission or for that of this task of an array.

    Raises:
        LaunchError: this process is not in a job, or SLURM refuses a request.
    """
    allocation = Allocation.read(env)
    index = allocation.task if len(paths) > 1 and allocation.task is not None else 0
    return JobScript(Submission.load(Path(paths[index])), allocation).run()


def retry_while_unreachable(ask: Callable[[], T]) -> T:
    """Send a request to SLURM, and repeat it while the controller is unreachable: a run must outlive that.

    Raises:
        LaunchError: SLURM refused, may have received the request, or was unreachable for too long.
    """
    deadline = time.monotonic() + _RETRY_FOR_SECONDS
    while True:
        try:
            return ask()
        except NoAnswerError as error:
            if UNREACHABLE not in error.cause or time.monotonic() > deadline:
                raise
            say(f"{error.cause}: asking again")
            time.sleep(_RETRY_EVERY_SECONDS)


def start_directory(run_dir: Path, number: int) -> Path:
    """Return the directory that holds the logs of a start."""
    return run_dir / HOME / "starts" / f"{number:03d}"


def say(text: str) -> None:
    """Write one line to the log of the job."""
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] distllm: {text}", file=sys.stdout, flush=True)
