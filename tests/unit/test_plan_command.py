import json
import subprocess
import sys
from dataclasses import replace

import pytest

from distllm.commands.plan import run
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.config.resolve import resolve
from distllm.errors import ConfigError, ConfigProblems
from distllm.plan import admission
from distllm.plan.admission import check_memory
from distllm.plan.calibration import Calibration, read_calibration, write_calibration

BIG = [
    "cluster=h100", "cluster.nodes=4", "model=llama-1b", "data.seq_len=4096", "train.tokens_per_step=1048576",
    "train.total_tokens=20B", "engine.micro_batch_tokens=16384", "precision=bf16",
]  # fmt: skip


@pytest.mark.slow
def test_a_plan_is_made_without_torch():
    code = f"import sys, distllm.cli as c; c.main(['plan', *{BIG!r}]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in (
        "fits",
        "tokens/s",
        "MFU",
        "device-hours",
        "kWh",
        "price",
        "goodput",
        "fastest of",
        "limited by",
    ):
        assert word in done.stdout


def test_the_fastest_layout_is_first_and_fits(capsys):
    assert run([*BIG, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    speeds = [one["tokens_per_second"] for one in plan["found"]["best"]]
    assert len(speeds) >= 5
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[0] >= plan["asked"]["tokens_per_second"]
    for one in plan["found"]["best"]:
        device = sum(size for name, size in one["memory"].items() if name != "host")
        assert device <= one["limit_bytes"]
    assert plan["cost"]["price"] == pytest.approx(plan["cost"]["gpu_hours"] * 2.5)


def test_a_model_that_fits_nowhere_is_said_to(capsys):
    assert run([*BIG, "model.num_layers=10000", "cluster.nodes=1"]) == 0
    out = capsys.readouterr().out
    assert "does NOT fit" in out
    assert "none of" in out
    assert "the smallest needs" in out


def test_scaling_goes_to_sixteen_thousand_devices(capsys):
    assert run([*BIG, "--scale"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [8 * 2**n for n in range(12)]
    assert float(rows[-1][4]) < float(rows[0][4]) / 1000  # time to failure
    assert float(rows[-1][3].rstrip("%")) < float(rows[0][3].rstrip("%"))


def test_a_cluster_without_figures_is_refused():
    with pytest.raises(ConfigError) as raised:
        run(["cluster=gpu8", "train.max_steps=1"])
    assert "peak_tflops" in str(raised.value)
    assert "cluster=h100" in raised.value.remedy


def test_this_machine_must_be_measured_first(tmp_path):
    with pytest.raises(ConfigError, match="not been measured yet"):
        run(["train.max_steps=1", f"runs_dir={tmp_path}"])


def test_a_measured_machine_is_planned_for(tmp_path, capsys):
    found = Calibration(1, 2, 80e9, 28e9, 9e9, 30e9, 4e8, 1e-3)
    write_calibration(tmp_path, found)
    assert read_calibration(tmp_path) == found
    assert run(["experiment=demo", f"runs_dir={tmp_path}"]) == 0
    assert "this machine's CPUs" in capsys.readouterr().out
    assert run(["experiment=demo", "precision=bf16", f"runs_dir={tmp_path}"]) == 0
    assert "bf16 is several times slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            ["cluster.procs_per_node=9", "train.tokens_per_step=1179648"],
            "9 ranks per node requested",
        ),
        (["train.tokens_per_step=1000000"], "not a whole number"),
    ],
)
def test_bad_input_is_refused_all_at_once(words, cause):
    with pytest.raises(ConfigProblems) as raised:
        run([*BIG, *words, "model.num_heads=31"])
    assert cause in str(raised.value)
    assert "num_heads" in str(raised.value)


def resolved(*words):
    return resolve(compose([*words, "train.max_steps=1"]), starts_here=False)


def problems_of(run):
    problems = Problems()
    check_memory(run, problems)
    return [(problem.cause, problem.remedy) for problem in problems.found]


def test_a_run_too_large_for_its_memory_is_refused_with_what_fits(monkeypatch):
    run = resolved("model=llama-125m", "train.tokens_per_step=65536", "engine.micro_batch_tokens=65536")
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: 96 * 2**30)
    assert problems_of(run) == []
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: 8 * 2**30)
    [(cause, remedy)] = problems_of(run)
    assert "activations" in cause
    changed = remedy.partition(": ")[2].split()
    again = resolved(
        "model=llama-125m", "train.tokens_per_step=65536", "engine.micro_batch_tokens=65536", *changed
    )
    assert problems_of(again) == []


def test_where_nothing_fits_the_smallest_is_named(monkeypatch):
    run = resolved("model=llama-1b")
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: 2**30)
    [(_, remedy)] = problems_of(run)
    assert "would need" in remedy


def test_a_doubtful_run_is_let_through(monkeypatch):
    """A prediction that may be off by ten per cent refuses nothing that it might be wrong about."""
    run = resolved("model=llama-125m")
    need = admission._need(run, admission.work_of(run.shape), admission.layout_of(run)).device
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: need * 0.95)
    assert problems_of(run) == []
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: need * 0.85)
    assert problems_of(run)


def test_a_profile_without_memory_refuses_nothing():
    assert problems_of(replace(resolved("cluster=gpu8", "model=llama-1b", "model.num_layers=900"))) == []
