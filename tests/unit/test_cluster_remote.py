"""The supervisors of `distllm launch`: signals, budgets and what is left behind, with stand-ins for ranks."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distllm.cluster import remote
from distllm.cluster.elastic import check_rendezvous, torchrun_command
from distllm.cluster.history import History
from distllm.cluster.remote import HOSTFILE, RENDEZVOUS, Remote, deepspeed_command, join
from distllm.cluster.snapshot import SETTLED_VARIABLE, Submission, keep_submission
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.config.yaml import to_yaml
from distllm.errors import LaunchError

pytestmark = pytest.mark.slow

SUPERVISOR = """
import sys
from pathlib import Path
from distllm.cluster import remote
from distllm.cluster.snapshot import Submission

remote._STRAGGLE_SECONDS = 2.0
remote.deepspeed_command = lambda *_: [sys.executable, sys.argv[2]]
submission = Submission.load(Path(sys.argv[1]))
sys.exit(remote.supervise_remote(remote.Remote(submission, {"n1": [0], "n2": [0]}, "pdsh", "n1", 29400)))
"""
LAUNCHER = """
import json, os, subprocess, sys, time
from pathlib import Path
from distllm.observe.ledger import Ledger

run = Path({run!r})
plans = json.loads((run / "plans.json").read_text())
number = len(list(run.glob("ran-*")))
(run / f"ran-{{number}}").write_text(str(os.getpid()))
plan = plans[min(number, len(plans) - 1)]
if plan.get("saves"):
    (run / "checkpoints" / f"step-{{plan['saves']:09d}}").mkdir(parents=True)
if plan.get("child"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (run / "child").write_text(str(child.pid))
stop = run / "control" / "stop"
deadline = time.monotonic() + plan.get("waits", 0)
while not stop.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
if stop.exists():
    why = json.loads(stop.read_text())["why"]
    Ledger(run / "ledger.jsonl", number + 1).event("stopped", step=4, why=f"asked to stop: {{why}}")
elif "event" in plan:
    kind, fields = plan["event"]
    Ledger(run / "ledger.jsonl", number + 1).event(kind, **fields)
if plan.get("hangs"):
    time.sleep(300)
sys.exit(plan.get("code", 0))
"""


class Launch:
    """A submission, and a launcher that does what is planned for each start."""

    def __init__(self, tmp_path, *overrides):
        self.run_dir = tmp_path / "run"
        self.config = compose(["cluster.nodes=2", *overrides])
        text = to_yaml(asdict(self.config))
        (tmp_path / "code").mkdir()
        self.submission = keep_submission(self.run_dir, ["seed=1"], text, None, code=tmp_path / "code")
        self.launcher = tmp_path / "launcher.py"
        self.launcher.write_text(LAUNCHER.format(run=str(self.run_dir)))

    def begin(self, *plans):
        (self.run_dir / "plans.json").write_text(json.dumps(plans))
        words = [sys.executable, "-c", SUPERVISOR, str(self.submission.path), str(self.launcher)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *plans):
        process = self.begin(*plans)
        try:
            told, _ = process.communicate(timeout=90)
        finally:
            process.kill()
            process.wait()
        return process.returncode, told

    @property
    def starts(self):
        return [start.end for start in History(self.run_dir).starts()]

    def wait_for(self, name):
        deadline = time.monotonic() + 60
        while not (self.run_dir / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.05)


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_to_its_end(launch):
    code, told = launch.run({"event": ["done", {"step": 8}]})
    assert (code, launch.starts) == (0, ["done"])
    assert "start 1 on n1 n2, after step 0" in told
    meeting = json.loads((launch.submission.path / RENDEZVOUS).read_text())
    assert (meeting["head"], meeting["port"]) == ("n1", 29401)
    assert meeting["fence"] == f"{launch.submission.path}@1"


def test_failures_are_started_again_while_that_leads_somewhere(launch):
    code, told = launch.run({"code": 1, "saves": 4}, {"code": 1}, {"code": 1})
    assert code == 70
    assert launch.starts == ["failed"] * 3
    assert "without saving a further step: not started again" in told


def test_restarts_are_bounded(tmp_path):
    launch = Launch(tmp_path, "cluster.slurm.max_restarts=1")
    code, _ = launch.run({"code": 1, "saves": 4}, {"code": 1, "saves": 8}, {"code": 1, "saves": 12})
    assert (code, launch.starts) == (70, ["failed"] * 2)


def test_wrong_configurations_are_not_tried_again(launch):
    exits = launch.run_dir / "slurm" / "starts" / "001" / "exits"
    exits.mkdir(parents=True)
    (exits / "1").write_text("64\n")
    code, _ = launch.run({"code": 1})
    assert (code, launch.starts) == (64, ["hopeless"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_becomes_a_request_that_every_rank_can_see(launch, number):
    process = launch.begin({"waits": 60, "code": 1})
    try:
        launch.wait_for("ran-0")
        process.send_signal(number)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert f"asked to stop: the launcher got {number.name}, at step 4" in told
    assert launch.starts == ["stopped"]


def test_a_second_signal_ends_everything_at_once(launch):
    process = launch.begin({"hangs": True, "child": True})
    try:
        launch.wait_for("child")
        child = int((launch.run_dir / "child").read_text())
        process.terminate()
        time.sleep(0.5)
        process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not alive(child)
    assert not alive(int((launch.run_dir / "ran-0").read_text()))
    beat = json.loads((launch.run_dir / "control" / "launcher.json").read_text())
    assert beat["beat"] == -1, "ranks on other machines are let go of"


def test_shells_that_hang_after_the_end_are_let_go_of(launch):
    code, told = launch.run({"event": ["done", {"step": 8}], "hangs": True, "child": True})
    assert code == 0
    assert "do not end: leaving them behind" in told
    assert not alive(int((launch.run_dir / "child").read_text()))


def test_the_command_of_the_deepspeed_launcher(launch, tmp_path, monkeypatch):
    target = Remote(launch.submission, {"n1": (0,)}, "pdsh", "n1", 29400)
    monkeypatch.setattr(remote.shutil, "which", lambda name: f"/usr/bin/{name}")
    words = deepspeed_command(target, "10.0.0.1", 29401)
    assert Path(words[1]).name == "deepspeed"
    assert f"--hostfile={launch.submission.path / HOSTFILE}" in words
    assert words[-3:] == ["--module", "distllm.launch.member", str(launch.submission.path)]
    assert "--master_addr=10.0.0.1" in words
    assert not any("--include" in word for word in words)
    shared = replace(target, hosts={"n1": (0, 2), "n2": (1, 3)})
    assert "--include=n1:0,2@n2:1,3" in deepspeed_command(shared, "10.0.0.1", 29401)
    with pytest.raises(LaunchError, match="Open MPI always uses the first slots of a host"):
        deepspeed_command(replace(shared, launcher="openmpi"), "10.0.0.1", 29401)
    monkeypatch.setattr(remote.shutil, "which", lambda name: None)
    with pytest.raises(LaunchError, match="pdsh is not installed"):
        deepspeed_command(target, "10.0.0.1", 29401)


def test_a_rank_learns_everything_from_the_submission(tmp_path, monkeypatch):
    launch = Launch(tmp_path, "cluster.env.NCCL_DEBUG=INFO")
    held = []
    monkeypatch.setattr(
        remote, "follow_launcher", lambda run_dir, fence: held.append((run_dir, fence.number))
    )
    meeting = {"head": "n1", "port": 29402, "fence": "line@2", "exits": "/exits"}
    (launch.submission.path / RENDEZVOUS).write_text(json.dumps(meeting))
    monkeypatch.chdir(tmp_path)
    env = {"RANK": "1", "WORLD_SIZE": "2"}
    assert join(launch.submission.path, env) == ["seed=1"]
    assert env["NCCL_DEBUG"] == "INFO"
    assert env["DISTLLM_FENCE"] == "line@2"
    assert env[SETTLED_VARIABLE] == str(launch.submission.config_file)
    assert "MASTER_ADDR" not in env, "the launcher has set it"
    assert held == [(launch.run_dir, 2)]
    assert Path.cwd() == Submission.load(launch.submission.path).directory


def test_a_rank_of_open_mpi_gets_torchs_names(tmp_path, monkeypatch):
    launch = Launch(tmp_path)
    monkeypatch.setattr(remote, "follow_launcher", lambda *_: None)
    meeting = {"head": "n1", "port": 29402, "fence": "line@2", "exits": "/exits"}
    (launch.submission.path / RENDEZVOUS).write_text(json.dumps(meeting))
    names = {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    env = {f"OMPI_COMM_WORLD_{name}": value for name, value in names.items()}
    join(launch.submission.path, env)
    wanted = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert wanted.items() <= env.items()
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("n1", "29402")


AGENT = """
import sys
from distllm.cluster.elastic import run_agent
from distllm.config.compose import compose

sys.exit(run_agent([sys.executable, "-c", sys.argv[1], sys.argv[2]], compose(["cluster.env.NOTE=seen"])))
"""
TORCHRUN = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
def leave(number, frame):
    sys.exit(7)
signal.signal(signal.SIGUSR1, leave)
open(sys.argv[1], "w").write(f"{child.pid} {os.environ['NOTE']}")
time.sleep(300)
"""


def test_an_agent_gets_the_signal_and_leaves_no_rank(tmp_path):
    note = tmp_path / "note"
    process = subprocess.Popen([sys.executable, "-c", AGENT, TORCHRUN, str(note)])
    try:
        deadline = time.monotonic() + 60
        while not (note.exists() and note.read_text().endswith("seen")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 7
        assert not alive(int(note.read_text().split()[0]))
    finally:
        process.kill()
        process.wait()


ORPHANS = """
import os, subprocess, sys
from distllm.cluster.descendants import adopt_orphans, descendants, end_descendants
adopt_orphans()
grandchild = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(300)"
child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); sys.exit()"
subprocess.run([sys.executable, "-c", child], check=True)
while not descendants(os.getpid()):
    pass
end_descendants()
print(descendants(os.getpid()))
"""


def test_what_left_the_group_and_lost_its_parent_is_ended_too():
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60, check=True
    )
    *pids, left = done.stdout.split()
    assert left == "[]"
    assert not [pid for pid in pids if alive(pid)]


def test_the_command_of_an_agent():
    config = compose(["name=mine", "cluster.procs_per_node=4", "cluster.slurm.max_restarts=5"])
    words = torchrun_command(config, "n1:29400", 2, 4, ["seed=1"])
    assert words[-3:] == ["--module", "distllm.launch.train", "seed=1"]
    assert {"--nnodes=2:4", "--nproc-per-node=4", "--rdzv-endpoint=n1:29400", "--max-restarts=5"} <= set(
        words
    )


@pytest.mark.parametrize(
    ("text", "low", "high", "said"),
    [
        ("localhost:29400", 1, 2, None),
        ("localhost", 1, 2, "is not HOST:PORT"),
        ("localhost:80", 1, 2, "is not HOST:PORT"),
        ("localhost:29400", 0, 2, "allows no number"),
        ("nowhere.invalid:29400", 1, 2, "does not resolve"),
    ],
)
def test_where_agents_meet(text, low, high, said):
    problems = Problems()
    check_rendezvous(text, low, high, problems)
    assert [said in problem.cause for problem in problems.found] == ([True] if said else [])
