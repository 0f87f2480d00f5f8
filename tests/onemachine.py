"""A real SLURM on one machine: every node is a set of namespaces with its own address, name and processes.

``slurmctld`` runs in a node called ``ctl``, one ``slurmd`` in each of ``n1``, ``n2``, …; veth pairs
join them to a bridge in ``ctl``. Nothing touches the machine's own network. A node is held by its
process 1: when that is killed, everything in the node is gone at once, as if the power had failed.
Needs root, iproute2 and SLURM's daemons (`missing` says what is not there).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

NAMESPACES = ("ip", "unshare", "nsenter")
SLURM = ("slurmctld", "slurmd", "munged", "sbatch")
NETWORK = "10.77.0"
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
_CONFIGURATION = """
ClusterName=onemachine
SlurmctldHost=ctl({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={state}/run/munge.socket,cred_expire=5
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd.%n.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
KillWait=20
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
JobCompType=jobcomp/filetxt
JobCompLoc={state}/log/jobcomp.log
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=24:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=24:00:00 PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """Say why no cluster can be started here; an empty string if one can."""
    return missing_namespaces() or _absent(SLURM, "slurmctld slurmd slurm-client munge")


def missing_namespaces():
    """Say why no node can be made here; an empty string if one can."""
    if absent := _absent(NAMESPACES, "iproute2 util-linux"):
        return absent
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    words = ["unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "true"]
    probe = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"needs namespaces: {probe.stderr.strip()}"


def _absent(programs, packages):
    path = f"{os.environ['PATH']}:{_SBIN}"
    absent = [program for program in programs if shutil.which(program, path=path) is None]
    return f"needs {', '.join(absent)}: apt-get install {packages}" if absent else ""


class Machines:
    """Nodes with addresses on one bridge, without SLURM.

    Args:
        state: a directory with a short path, for what the nodes share.
        names: names of the nodes beside ``ctl``, which holds the bridge.
    """

    def __init__(self, state, names):
        self.state = Path(state)
        self.names = list(names)
        self._holders = {}
        os.environ["PATH"] = f"{os.environ['PATH']}:{_SBIN}"
        for directory in ("etc", "run", "log", "state", "spool", "dev"):
            (self.state / directory).mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o755)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Make the nodes and join them."""
        hosts = ["127.0.0.1 localhost", f"{NETWORK}.254 ctl"]
        hosts += [f"{self.address(name)} {name}" for name in self.names]
        (self.state / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
        self._make("ctl")
        self.run("ctl", "ip", "link", "add", "br0", "type", "bridge")
        self.run("ctl", "ip", "addr", "add", f"{NETWORK}.254/24", "dev", "br0")
        self.run("ctl", "ip", "link", "set", "br0", "up")
        for name in self.names:
            self.boot(name)

    def stop(self):
        """End everything in every node; a second call finds nothing left to do."""
        for name in list(self._holders):
            self.crash(name)

    def address(self, name):
        """The node's address on the bridge."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def boot(self, name):
        """Make a node and plug its cable in."""
        self._make(name)
        self.run("ctl", "ip", "link", "del", f"v{name}", check=False)
        # Only the network of ctl is entered: seen from its processes the node's pid would be another.
        outside = ["nsenter", "-t", self._pid("ctl"), "--net", "--", "ip", "link", "add", f"v{name}"]
        peer = ["type", "veth", "peer", "name", "eth0", "netns", self._pid(name)]
        subprocess.run([*outside, *peer], check=True, timeout=20)
        self.run("ctl", "ip", "link", "set", f"v{name}", "master", "br0", "up")
        self.run(name, "ip", "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        self.run(name, "ip", "link", "set", "eth0", "up")

    def crash(self, name):
        """Cut the node's power: its processes and sockets are gone, and nobody is told."""
        holder = self._holders.pop(name)
        if first := _child(holder.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(first), signal.SIGKILL)
        else:
            holder.kill()
        holder.wait(60)  # process 1 of the node ends when all others of the node have

    def cut(self, name):
        """Unplug the node's cable."""
        self.run("ctl", "ip", "link", "set", f"v{name}", "down")

    def mend(self, name):
        """Plug it in again."""
        self.run("ctl", "ip", "link", "set", f"v{name}", "up")

    def enter(self, name):
        """The words that, put before a command, run it in the node."""
        namespaces = ("--net", "--uts", "--mount", "--pid", "--ipc")
        return ["nsenter", "-t", self._pid(name), *namespaces, f"--wd={Path.cwd()}", "--"]

    def run(self, name, *words, check=True, timeout=120, env=None):
        """Run a command in the node to its end and return what it did."""
        done = subprocess.run(
            [*self.enter(name), *words], capture_output=True, text=True, timeout=timeout, check=False, env=env
        )
        assert not check or done.returncode == 0, f"{name}: {words}\n{done.stdout}{done.stderr}"
        return done

    def processes(self, *fragments):
        """Command lines, over all nodes, that hold every fragment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(fragment in line for fragment in fragments):
                    found.append(f"{path.parent.name}: {line}")
        return found

    def _pid(self, name):
        return _child(self._holders[name].pid)

    def _make(self, name):
        ready = self.state / "run" / f"{name}.up"
        ready.unlink(missing_ok=True)
        script = (
            f"hostname {name}; ip link set lo up; mount --bind {self.state}/etc/hosts /etc/hosts; "
            f"mount -t tmpfs -o mode=1777 tmpfs /dev/shm; : > {ready}; "
            "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"
        )
        with (self.state / "log" / f"node.{name}.log").open("wb") as log:
            self._holders[name] = subprocess.Popen(
                ["unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL",
                 "--mount-proc", "bash", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(ready.exists, 20, f"node {name} did not come up")


class Cluster(Machines):
    """SLURM on `Machines`: partitions ``normal`` and, above it, ``high``.

    Args:
        state: a directory with a short path.
        nodes: number of nodes.
        extra: further lines of slurm.conf.
    """

    def __init__(self, state, nodes=2, extra=""):
        super().__init__(state, [f"n{number}" for number in range(1, nodes + 1)])
        self._extra = extra
        self.configuration = self.state / "etc" / "slurm.conf"
        self._munged = None

    def start(self):
        """Start munge, the controller and the nodes, and wait until SLURM calls all of them idle."""
        os.environ["SLURM_CONF"] = str(self.configuration)
        shape = "CPUs=4 RealMemory=8000 Gres=gpu:h100:4 Feature=h100 State=UNKNOWN"
        lines = [f"NodeName={name} NodeAddr={self.address(name)} {shape}" for name in self.names]
        conf = _CONFIGURATION.format(network=NETWORK, state=self.state, nodes="\n".join(lines))
        self.configuration.write_text(conf + self._extra + "\n")
        self._make_devices()
        self._start_munge()
        super().start()
        self.run("ctl", "slurmctld", "-c", "-f", str(self.configuration))
        for name in self.names:
            self._slurmd(name)
        wait_for(lambda: self.idle() == set(self.names), 60, "SLURM's nodes did not become idle")

    def boot(self, name):
        """Make a node; once the controller runs, with its slurmd."""
        super().boot(name)
        if (self.state / "run" / "slurmctld.pid").exists():
            self._slurmd(name)

    def stop(self):
        """End everything, munge included."""
        super().stop()
        if self._munged is not None:
            self._munged.terminate()
            self._munged.wait()
            self._munged = None
        os.environ.pop("SLURM_CONF", None)

    def idle(self):
        """Names of the nodes that wait for work."""
        done = self.run("ctl", "sinfo", "-h", "-N", "-p", "normal", "-t", "idle", "-o", "%N", check=False)
        return set(done.stdout.split())

    def job(self, number, field):
        """One field of ``scontrol show job``, such as JobState, Restarts or NodeList."""
        done = self.run("ctl", "scontrol", "show", "job", "-o", str(number), check=False)
        words = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
        return words.get(field, "")

    def _slurmd(self, name):
        # A bridge drops the first packets of a new port: wait until the controller answers.
        port = f"echo > /dev/tcp/{NETWORK}.254/6817"
        wait_for(lambda: self.run(name, "bash", "-c", port, check=False).returncode == 0, 30, "no controller")
        self.run(name, "slurmd", "-c", "-N", name, "-f", str(self.configuration))

    def _start_munge(self):
        key = self.state / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        run, log = self.state / "run", self.state / "log"
        with (log / "munged.out").open("wb") as out:
            self._munged = subprocess.Popen(
                ["munged", "--foreground", "--force", "--num-threads=10", f"--key-file={key}",
                 f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
                 f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        wait_for((run / "munge.socket").exists, 20, "munged did not start")

    def _make_devices(self):
        rows = []
        for number, stand_in in enumerate(("null", "zero", "full", "random")):
            device = self.state / "dev" / f"nvidia{number}"
            made = subprocess.run(
                ["mknod", device, "c", "195", str(number)], check=False, capture_output=True
            )
            path = f"/dev/{stand_in}" if made.returncode else device
            rows.append(f"NodeName={self.names[0][0]}[1-{len(self.names)}] Name=gpu Type=h100 File={path}")
        (self.state / "etc" / "gres.conf").write_text("\n".join(rows) + "\n")


def wait_for(holds, seconds, what):
    """Wait until ``holds()`` is true and return its value.

    Raises:
        AssertionError: it is not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.1)
    return value


def _child(pid):
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip().split(" ")[0]
    except FileNotFoundError:
        return ""
