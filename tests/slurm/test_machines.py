"""Several machines, no scheduler: the deepspeed launcher over ssh, a cut cable, torchrun and a node lost."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import onemachine
import pytest
import tiny
from onemachine import Machines, wait_for

from distllm.cluster.history import History

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 24
TIMEOUT_SECONDS = 20


def missing():
    absent = [program for program in ("sshd", "ssh", "pdsh", "ssh-keygen") if shutil.which(program) is None]
    named = f"needs {', '.join(absent)}: apt-get install openssh-server pdsh" if absent else ""
    return onemachine.missing_namespaces() or named


@pytest.fixture(scope="module")
def machines():
    if reason := missing():
        pytest.skip(reason)  # which programs or rights machines on one machine lack here
    state = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
    with Machines(state, ["n1", "n2"]) as running:
        _keys(state)
        for name in running.names:
            serve_ssh(running, name)
        yield running
    assert running.processes(str(state)) == []
    shutil.rmtree(state)


def _keys(state):
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(state / "etc" / name)]
        subprocess.run(words, check=True, timeout=30)
    (state / "etc" / "authorized").write_bytes((state / "etc" / "user.pub").read_bytes())
    (state / "etc" / "sshd_config").write_text(
        f"HostKey {state}/etc/host\nAuthorizedKeysFile {state}/etc/authorized\nStrictModes no\n"
        "PermitRootLogin yes\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )


def serve_ssh(machines, name):
    Path("/run/sshd").mkdir(exist_ok=True)
    machines.run(name, shutil.which("sshd"), "-f", str(machines.state / "etc" / "sshd_config"))
    wait_for(
        lambda: machines.run("ctl", "bash", "-c", f"echo > /dev/tcp/{name}/22", check=False).returncode == 0,
        30, f"no ssh on {name}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("machines"))


def words(root, name, *more):
    return tiny.overrides(
        root, f"name={name}", "engine=local", f"train.max_steps={STEPS}", "checkpoint.every_steps=8",
        "eval.every_steps=0", f"cluster.timeout_seconds={TIMEOUT_SECONDS}",
        "cluster.oversubscribe=true", "cluster.threads_per_rank=1", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(root):
    done = tiny.distllm("train", *words(root, "alone", "cluster.procs_per_node=2"))
    assert done.returncode == 0, done.stderr
    return tiny.exact(tiny.steps(root, "alone"))


@pytest.fixture(autouse=True)
def nothing_left(machines, root):
    yield
    left = machines.processes("distllm.launch", str(root))
    for line in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split(":")[0]), signal.SIGKILL)
    assert left == []


def environment(machines):
    key = machines.state / "etc" / "user"
    options = f"-i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return tiny.environment(PDSH_SSH_ARGS_APPEND=options, OMPI_MCA_plm_rsh_args=options, **as_root)


def launch(machines, root, *more, node="ctl"):
    """Start `distllm launch` in a node, its output in a file."""
    log = (root / f"launch-{time.monotonic_ns()}.log").open("w+")
    process = subprocess.Popen(
        [*machines.enter(node), *tiny.command("launch", *more)],
        stdout=log, stderr=subprocess.STDOUT, env=environment(machines), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    process.told = lambda: Path(log.name).read_text()
    return process


def hostfile(machines, root):
    path = root / "hosts"
    path.write_text("# two machines\nn1 slots=1\nn2 slots=1\n")
    return f"hostfile={path}"


def slow(steps=18):
    return f"chaos.faults=[slow@1x{steps}]"


def at_step(root, name, step, process):
    def reached():
        with contextlib.suppress(FileNotFoundError, ValueError):
            return max(tiny.steps(root, name), default=0) >= step
        assert process.poll() is None, process.told()
        return False

    wait_for(reached, 300, process.told)


def inside(machines, root, name, number):
    """Send a signal to `distllm launch` itself, and not to the nsenter that waits for it."""
    lines = machines.processes("distllm.cli", "launch", str(root), f"name={name}")
    (pid,) = [int(line.split(":")[0]) for line in lines if " nsenter " not in line]
    os.kill(pid, number)


def ranks(machines, root):
    return machines.processes("distllm.launch", str(root))


def test_the_deepspeed_launcher_over_real_addresses(machines, root, expected):
    """Each host has four slots, of which the others belong to somebody else."""
    path = root / "shared-hosts"
    path.write_text("n1 slots=4\nn2 slots=4\n")
    some = (f"hostfile={path}", "include=n1:1@n2:3")
    process = launch(machines, root, *some, *words(root, "pdsh"))
    assert process.wait(300) == 0, process.told()
    for slot in (1, 3):
        assert f"Setting CUDA_VISIBLE_DEVICES={slot}\n" in process.told()
    assert tiny.exact(tiny.steps(root, "pdsh")) == expected
    assert History(root / "runs/pdsh").starts()[0].nodes == ("n1", "n2")


def test_open_mpi_starts_the_ranks_too(machines, root, expected):
    """One host of three is left out, and the rest is what pdsh does."""
    # Open MPI is one launcher of several, and no package of Python; CI installs it.
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun: apt-get install openmpi-bin")
    path = root / "mpi-hosts"
    path.write_text("n1 slots=1\nctl slots=1\nn2 slots=1\n")
    words_of_mpi = (f"hostfile={path}", "exclude=ctl", "launcher=openmpi")
    process = launch(machines, root, *words_of_mpi, *words(root, "mpi"))
    assert process.wait(300) == 0, process.told()
    assert tiny.exact(tiny.steps(root, "mpi")) == expected
    assert History(root / "runs/mpi").starts()[0].nodes == ("n1", "n2")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_the_ranks_and_leaves_none(machines, root, expected, number):
    name = f"asked{number}"
    process = launch(machines, root, hostfile(machines, root), *words(root, name, slow()))
    at_step(root, name, 2, process)
    inside(machines, root, name, number)
    assert process.wait(120) == 75, process.told()
    assert ranks(machines, root) == []
    saved = History(root / "runs" / name).saved_step()
    assert 2 <= saved < STEPS
    again = launch(machines, root, hostfile(machines, root), *words(root, name, slow()))
    assert again.wait(300) == 0, again.told()
    assert tiny.exact(tiny.steps(root, name)) == expected


def test_a_launcher_that_is_killed_leaves_no_rank(machines, root):
    process = launch(
        machines, root, hostfile(machines, root), *words(root, "orphans", slow(400), "train.max_steps=400")
    )
    at_step(root, "orphans", 2, process)
    own = machines.processes("hostfile", str(root), "orphans")  # distllm launch, deepspeed and pdsh
    for line in own:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split(":")[0]), signal.SIGKILL)
    process.wait(30)
    assert ranks(machines, root) != []
    wait_for(lambda: ranks(machines, root) == [], 120, lambda: str(ranks(machines, root)))
    assert History(root / "runs/orphans").saved_step() > 0, "what was trained until then is saved"


def test_a_cable_cut_in_mid_step_ends_both_sides_and_the_run_goes_on(machines, root, expected):
    once = "cluster.slurm.max_stalls=1"
    process = launch(
        machines,
        root,
        hostfile(machines, root),
        *words(root, "cut", slow(), once, "checkpoint.every_steps=24"),
    )
    at_step(root, "cut", 6, process)
    machines.cut("n2")
    try:
        cut_at = time.monotonic()
        assert process.wait(300) == 70, process.told()
        assert time.monotonic() - cut_at < 250
        wait_for(lambda: ranks(machines, root) == [], 150, lambda: str(ranks(machines, root)))
    finally:
        machines.mend("n2")
    again = launch(
        machines, root, hostfile(machines, root), *words(root, "cut", once, "checkpoint.every_steps=24")
    )
    assert again.wait(300) == 0, again.told()
    assert tiny.exact(tiny.steps(root, "cut")) == expected


def test_torchrun_loses_a_machine_and_the_other_goes_on(machines, root, expected):
    more = [*words(root, "elastic", slow(), "cluster.procs_per_node=1"), "elastic=1:2", "rendezvous=n1:29400"]
    first = launch(machines, root, *more, node="n1")
    second = launch(machines, root, *more, node="n2")
    at_step(root, "elastic", 10, first)
    machines.crash("n2")
    second.wait(30)
    try:
        assert first.wait(400) == 0, first.told()
    finally:
        machines.boot("n2")
        serve_ssh(machines, "n2")
    found = tiny.exact(tiny.steps(root, "elastic"))
    assert [step[4] for step in found] == [step[4] for step in expected], "the same global batches"
    assert max(abs(one[1] - two[1]) for one, two in zip(found, expected, strict=True)) < 1e-4
    assert "resuming from step 8" in first.told()


def test_what_a_hostfile_must_not_say_is_told_at_once(machines, root):
    path = root / "bad-hosts"
    path.write_text("n1 slots=1\nn1 slots=1\nn2 slot=1\nno-such-host.invalid slots=2\n")
    more = ["exclude=n9", "optim.lrr=1", "cluster.head=nowhere.invalid"]
    done = machines.run("ctl", *tiny.command("launch", f"hostfile={path}", *words(root, "bad"), *more),
                        check=False, env=environment(machines))  # fmt: skip
    assert done.returncode == 64, done.stdout + done.stderr
    for part in ("n1 is listed twice", "cannot read 'n2 slot=1'", "'no-such-host.invalid' does not resolve",
                 "'n9' is not in the hostfile", "unknown key 'optim.lrr'",
                 "'nowhere.invalid' does not resolve",
                 "different numbers of slots"):  # fmt: skip
        assert part in done.stderr, done.stderr
    assert not (root / "runs" / "bad" / "slurm").exists()
