"""Errors that elsewhere need a cluster, a full machine or a damaged run, each caused in the smallest way.

``make error-examples`` keeps what they look like for the page of each.
"""

import builtins
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prepared import write_dataset

from distllm.checkpoint import commit, load, mirror
from distllm.checkpoint import format as checkpoint_format
from distllm.cli import main
from distllm.cluster import allocation, elastic, hostfile, hostlist, slurm
from distllm.commands import demo, inspect, report, runs, serve, train
from distllm.commands.settle import settle
from distllm.config import peft
from distllm.config.attention import Machine
from distllm.config.problems import Problems
from distllm.config.schema import Config, TrainConfig
from distllm.data.examples import dialogue
from distllm.data.manifest import FORGET_FILE, Manifest
from distllm.data.pipeline import run as pipeline
from distllm.data.tokenizer.chat import PLAIN, Chat
from distllm.dist import collectives, topology
from distllm.dist.topology import Topology
from distllm.errors import ConfigProblems, DistllmError
from distllm.evaluate import harness
from distllm.kernels.cuda import build
from distllm.messages import name_of
from distllm.observe import ledger, workspace
from distllm.ops import backend
from distllm.plan import calibration
from distllm.serve import server
from distllm.serve.scheduler import Scheduler
from distllm.train import resume, rewind

ALONE = Topology.single()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory as the current one, so that messages name relative paths."""
    monkeypatch.chdir(tmp_path)
    return Path()


def problems_of(act, *arguments):
    """Return the problems that a check notes."""
    problems = Problems()
    act(*arguments, problems)
    return {name_of(one) for one in problems.found}


def cause(act):
    """Return the names of what is wrong."""
    with pytest.raises(DistllmError) as caught:
        act()
    error = caught.value
    return {name_of(one) for one in (error.problems if isinstance(error, ConfigProblems) else (error,))}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", {"cannot-read-text"}),
        ("n1 slots=2\nn1 slots=2", {"is-listed-twice"}),
        ("n1 slots=0", {"has-no-slots"}),
        ("# n1 slots=8", {"path-lists-no-host"}),
    ],
)
def test_hostfiles(here, text, names):
    Path("hosts").write_text(text)
    assert problems_of(hostfile.read_hostfile, Path("hosts")) == names


def test_hosts_that_are_chosen():
    def of(include, exclude=""):
        return problems_of(hostfile.chosen_slots, {"localhost": 8, "127.0.0.1": 4}, include, exclude)

    assert of("n3") == {"is-not-in-hostfile", "no-host-is-left"}
    assert of("") == of("", "localhost:0") == {"hosts-have-different-numbers-of-slots"}
    assert of("localhost:0-3@127.0.0.1") == of("", "localhost:4-7") == set()
    assert of("localhost:7@127.0.0.1:3,4") == {"host-has-no-slot"}
    assert of("n[4-1]") == {"is-not-list-of-hosts", "no-host-is-left"}
    for text in ("localhost:", "localhost:x", "localhost:0,2,127.0.0.1:1", "localhost,127.0.0.1:0"):
        assert of(text) == {"is-ambiguous-which-slots-belong-to-which-host", "no-host-is-left"}, text
    assert cause(lambda: hostlist.expand("n[4-1]")) == {"is-not-list-of-hosts"}


def test_meeting_places():
    found = problems_of(elastic.check_rendezvous, "no.such.host.invalid:http", 4, 2)
    assert found == {
        "is-not-host-port",
        "does-not-resolve-to-address",
        "elastic-allows-no-number-of-machines",
    }


def test_slurm_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert cause(lambda: slurm.requeue("17")) == {"slurm-requeue"}


def test_a_node_without_a_free_port(monkeypatch):
    class Taken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, _address):
            raise OSError("in use")

    monkeypatch.setattr(allocation.socket, "socket", Taken)
    node = SimpleNamespace(job="17", nodes=["n1"])
    assert cause(lambda: allocation.Allocation.port(node, 1)) == {"no-free-port-on-first-node"}


COMMANDS = {
    "explain optim.lr model": "one-key-at-time-not",
    "explain run=a optim.lr=1": "finished-run-explains-itself-and-takes-no-overrides",
    "launch experiment=demo": "give-hostfile-file-or-rendezvous-host-port-with-elastic-min",
    "launch experiment=demo rendezvous=localhost:29400 elastic=many": "elastic-is-not-number-of-machines",
    "serve run=demo host=0.0.0.0": "can-be-reached-by-others-and-there-is-no-token",
    "train -m experiment=demo optim.lr=interval(1,2)": "cannot-sweep-over-input-line",
    "train -m experiment=demo optim.lr=[1": "train-combinations",
    "train engine.hpz_ranks=3 engine.zero_stage=3": "hpz-ranks-needs-zero-stage-3-and-must-divide-ranks",
    "train engine.compile=true engine.activation_checkpointing=selective":
        "torch-compile-decides-itself-what-block-keeps-selective-checkpointing-has",
    "train engine.compile=true engine.sequence_ranks=2 cluster.procs_per_node=2":
        "compiled-block-is-one-graph-and-cannot-contain-all-to",
    "train model.num_experts=2 engine.expert_ranks=2 cluster.procs_per_node=2 optim.private.noise=1":
        "with-expert-parallelism-gradient-of-expert-sums-rows-of-all",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(command, here, monkeypatch, capsys):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    assert main(command.split()) == 64
    assert COMMANDS[command] in capsys.readouterr().err


def test_a_server_without_its_packages_or_its_port(monkeypatch):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert cause(lambda: server.listen("127.0.0.1", port)) == {"cannot-listen-on-host"}
    missing(monkeypatch, "distllm.serve.server", "uvicorn")
    assert cause(lambda: serve.run(["run=demo"])) == {"server-needs-which-is-not-installed"}
    picky = SimpleNamespace(
        chat_template="{{ raise_exception('roles must alternate') }}",
        special_tokens=frozenset(),
        opening="",
        ending="",
    )
    assert cause(lambda: Chat(picky, PLAIN).prompt_ids([])) == {"chat-template-refuses-these-messages"}
    assert cause(lambda: Scheduler.submit(SimpleNamespace(_pool=None), None)) == {
        "this-model-does-not-continue-texts"
    }


def missing(monkeypatch, module, name):
    """Let an import of ``module`` fail for want of ``name``."""
    plain = builtins.__import__

    def refusing(asked, *arguments, **named):
        if asked == module:
            raise ImportError(f"No module named {name!r}", name=name)
        return plain(asked, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_packages_of_dashboards_and_of_the_demo(monkeypatch):
    missing(monkeypatch, "wandb_workspaces.reports.v2", "wandb_workspaces")
    assert cause(lambda: workspace.workspace("e", "p", "causal_lm")) == {
        "layout-is-built-with-wandb-workspaces-which-is-not-installed"
    }
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert cause(lambda: demo.run([])) == {
        "demo-compares-exported-model-with-transformers-which-is-not-installed"
    }


def test_a_demo_that_does_not_keep_its_promises(here, monkeypatch):
    monkeypatch.setattr(demo.subprocess, "run", lambda *_a, **_o: SimpleNamespace(returncode=65))
    assert cause(lambda: demo._run(["prepare", "experiment=demo"])) == {"distllm-ended-with-exit-code"}
    line = {
        "kind": "step",
        "step": 51,
        "loss": 6.5,
        "grad_norm": 0.5,
        "batch_digest": "5f30",
        "tokens_per_second": 1.0,
    }
    two = [{**line, "attempt": 1}, {**line, "attempt": 2, "loss": 6.75}]
    evals = [{"kind": "eval", "loss": 8.0, "perplexity": 2981.0, "bits_per_byte": 3.0}] * 2
    Path("runs/demo").mkdir(parents=True)
    file = Path("runs/demo/metrics.jsonl")
    file.write_text("\n".join(map(json.dumps, [*two, *evals])) + "\n")
    run = Path("runs/demo")
    assert cause(lambda: demo._check_continuation(run, 51)) == {"step-had-different-result-after-resume"}
    file.write_text("\n".join(map(json.dumps, [two[0], {**two[0], "attempt": 2}])) + "\n")
    assert cause(lambda: demo._check_continuation(run, 53)) == {"resumed-run-did-not-repeat-step"}
    file.write_text("\n".join(map(json.dumps, [*two, *evals])) + "\n")
    assert cause(lambda: demo._summarise(run, "demo", 100.0)) == {
        "perplexity-fell-x-less-than-x-that-demo-promises"
    }


def test_checkpoints_on_disks_that_do_not_obey(here, monkeypatch):
    step = Path("checkpoints/step-000000100")
    step.mkdir(parents=True)
    record = {"rank-00000.safetensors": SimpleNamespace(bytes=10)}
    assert cause(lambda: commit.commit(step, step.parent, 100, record)) == {
        "checkpoint-of-step-could-not-be-written-is-not-as"
    }

    def failing():
        with commit.write_errors(step.parent, 100):
            raise OSError(19, "No such device")

    assert cause(failing) == {"checkpoint-of-step-could-not-be-written"}

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied", f"{step}/manifest.json")

    monkeypatch.setattr(checkpoint_format, "listed_files", refuse)
    assert cause(lambda: checkpoint_format.verify(step)) == {"not-permitted-to-read"}
    monkeypatch.setattr(Path, "rename", refuse)
    assert cause(lambda: checkpoint_format.set_aside(step)) == {"cannot-set-damaged-checkpoint-aside"}
    monkeypatch.setattr(load, "max_over_ranks", lambda *_a: (2.0,))
    assert cause(lambda: load._check_visible(step, ALONE)) == {
        "rank-does-not-see-checkpoint-that-rank-0-sees"
    }
    assert cause(lambda: mirror._names(b"[]", "s3://bucket/run")) == {"is-not-manifest"}


def test_runs_that_cannot_go_on(here):
    wanted = SimpleNamespace(config=SimpleNamespace(checkpoint=SimpleNamespace(resume="never")))
    found, directory = SimpleNamespace(step=100), SimpleNamespace(path=Path("runs/demo"))
    assert cause(lambda: resume.check_resume(found, wanted, directory, None, None, allow_schedule=False)) == {
        "run-directory-holds-checkpoint-of-step"
    }
    state = SimpleNamespace(excluded=[], rewinds=3, step=120)
    more = {"good_step": 100, "exclude": None, "max_rewinds": 3, "why": "the loss is NaN"}
    assert cause(lambda: rewind.go_back(here, None, state, ALONE, **more)) == {
        "and-run-has-gone-back-times-already"
    }
    state.rewinds = 0
    assert cause(lambda: rewind.go_back(here, None, state, ALONE, **more)) == {
        "and-there-is-no-checkpoint-of-step-or-before-to"
    }


def test_ranks_that_lose_each_other_or_their_device(monkeypatch):
    def lost():
        with collectives.rank_errors(ALONE, "summing gradients"):
            raise torch.distributed.DistNetworkError("Connection closed by peer [127.0.0.1]:29500")

    assert cause(lost) == {"rank-lost-another-rank-while"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert cause(lambda: topology._device("cuda", 5)) == {"local-rank-has-no-gpu-are-visible"}


def test_compilers_that_are_not_there(monkeypatch):
    said = SimpleNamespace(
        returncode=1, stdout="fatal error: torch/csrc/stable/library.h: No such file or directory"
    )
    with monkeypatch.context() as patched:
        patched.setattr(build.subprocess, "run", lambda *_a, **_o: said)
        assert cause(lambda: build.run_compiler(["g++", "-x", "c++"])) == {"build-failed"}
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "nvcc", lambda: None)
    assert cause(lambda: build._command("cpu", None)) == {"no-c-compiler-is-on-path"}
    assert cause(lambda: build._command("cuda", None)) == {
        "cuda-kernels-are-compiled-once-on-machine-that-runs-them"
    }


def test_files_that_are_something_else(here):
    Path("ledger.jsonl").mkdir()
    assert cause(lambda: ledger.read_events(Path("ledger.jsonl"))) == {"is-not-regular-file"}
    (here / calibration.FILE).write_text('{"speed": 1}')
    assert cause(lambda: calibration.read_calibration(here)) == {"path-is-no-calibration"}
    (here / FORGET_FILE).write_text("{}")
    assert cause(lambda: Manifest.load(here)) == {
        "documents-were-being-forgotten-in-when-process-was-stopped"
    }
    Path("mmlu.yaml").write_text("process: !function utils.process")
    assert cause(lambda: harness._refuse_code(here)) == {"names-python-code-which-harness-would-run"}
    text = SimpleNamespace(decode=lambda _ids: "Once upon a time")
    assert cause(lambda: dialogue.messages_of({dialogue.MESSAGES: np.zeros(1)}, text)) == {
        "messages-of-conversation-are-not-json"
    }
    assert cause(
        lambda: harness.HarnessModel(SimpleNamespace(shape=SimpleNamespace(family="encoder")), None)
    ) == {"harness-scores-how-text-goes-on-and-model-is-of"}


def test_a_dataset_or_a_run_that_is_not_what_the_command_needs(here, monkeypatch):
    write_dataset(here / "data", train=[[5] * 3000], valid=[[6] * 600])
    keys = ["data.out=data", "data.seq_len=64", "train.tokens_per_step=128", "train.max_steps=4"]
    keys += ["cluster.oversubscribe=true", "model.hidden_size=16", "model.num_heads=2", "model.num_layers=1"]
    monkeypatch.delenv("RANK", raising=False)
    launched = "cluster-nodes-needs-launcher-that-starts-ranks-on-every-node"
    assert cause(lambda: train._train([*keys, "cluster.nodes=2"], None, ())) == {launched}
    _, resolved = settle(keys, None, None, need_dataset=True)
    monkeypatch.setattr(runs, "run_of", lambda *_: SimpleNamespace(resolved=lambda: resolved))
    assert cause(lambda: inspect.run(["run=a", "step=5"])) == {"step-is-after-last-step"}

    def gone():
        raise OSError("no such file: data")

    monkeypatch.setattr(runs, "run_of", lambda *_: SimpleNamespace(resolved=gone))
    assert cause(lambda: report._batch_text(here)(3, 0)) == {"dataset-of-step-cannot-be-read"}
    other = {"was-prepared-with-another-configuration"}
    assert cause(lambda: pipeline._find_existing(here / "data", resolved.config)) == other


def test_a_training_that_ends_before_the_demo_kills_it(here, monkeypatch):
    ended = SimpleNamespace(poll=lambda: 70, returncode=70)
    monkeypatch.setattr(demo.subprocess, "Popen", lambda *_, **__: ended)
    config = Config(train=TrainConfig(max_steps=10))
    found = cause(lambda: demo._train_until_killed([], here / "run", config))
    assert found == {"training-ended-by-itself-with-exit-code"}


def test_a_gpu_without_launch_parameters():
    machine = Machine((3, 5), frozenset({"triton"}))
    assert cause(lambda: backend._reason("triton", torch.device("cpu"), machine)) == {"backend-reason"}


def test_folders_of_adapters_that_are_not_whole(here):
    assert cause(lambda: peft.read_adapter(here)) == {"folder-holds-no"}
    Path(peft.CONFIG).write_text('{"peft_type": "LORA"}')
    assert cause(lambda: peft.read_adapter(here)) == {"folder-holds-no"}
