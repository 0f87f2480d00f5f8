import os
import resource
import subprocess
import sys

import pytest

from distllm.cli import COMMANDS, main
from distllm.commands.train import sweep

# What the two seconds of importing torch would break. Other work on the machine inflates CPU time,
# so a run under the bar proves it, and only ten above it refute it.
CPU_SECONDS = 0.5
TRIES = 10


def cpu_seconds_of(*arguments):
    """Run the installed command until it was fast once; return its least CPU time and its result."""
    best = float("inf")
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "distllm.cli", *arguments], capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best < CPU_SECONDS / 2:
            break
    return best, done


def test_help_names_every_command_at_once():
    seconds, done = cpu_seconds_of("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert seconds < 0.3


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "optim.lrr=1", "train.max_steps=abc"],
        ["train", "experiment=demo", "data.out=/nowhere", "model.num_heads=5"],
        ["train", "--confg"],
        ["prepare", "data=text"],
    ],
)
def test_configuration_errors_answer_fast_and_without_torch(arguments):
    seconds, done = cpu_seconds_of(*arguments)
    assert done.returncode == 64, done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < CPU_SECONDS


def test_no_command_imports_torch_before_its_arguments_are_checked():
    script = (
        "import sys, distllm.cli as cli\n"
        f"for name in {sorted(COMMANDS)!r}:\n"
        "    cli.main([name, '--nonsense'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_is_suggested(capsys):
    assert main(["trian"]) == 64
    assert "did you mean 'train'" in capsys.readouterr().err


def test_an_unknown_flag_is_suggested_and_a_prefix_refused(capsys):
    assert main(["train", "--multi"]) == 64
    assert "unknown flag '--multi'" in capsys.readouterr().err
    assert main(["train", "--config-dri=x"]) == 64
    assert "did you mean '--config-dir'" in capsys.readouterr().err


def test_cfg_job_prints_the_whole_configuration(capsys):
    import yaml

    assert main(["train", "experiment=demo", "optim.lr=0.5", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optim"]["lr"] == 0.5
    assert shown["optim"]["beta1"] == 0.9
    assert shown["name"] == "demo"


def test_config_dir_is_read_by_the_command(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "odd.yaml").write_text("hidden_size: 6\n")
    assert main(["train", "model=odd", "--config-dir", str(tmp_path), "--cfg", "job"]) == 0
    assert "hidden_size: 6" in capsys.readouterr().out
    assert main(["train", "--config-dir", str(tmp_path / "missing"), "--cfg", "job"]) == 64


def test_explain_prints_value_origin_and_help(capsys):
    assert main(["explain", "optim.lr", "experiment=demo"]) == 0
    out = capsys.readouterr().out
    assert "optim.lr = 0.003" in out
    assert "conf/experiment/demo.yaml (experiment=demo)" in out


def test_a_sweep_names_each_run_after_its_values():
    runs = list(sweep(["experiment=demo", "optim.lr=1e-3,2e-3", "seed=range(1,3)"]))
    assert len(runs) == 4
    names = [run[-1] for run in runs]
    assert names[0] == "name='demo.optim.lr=0.001,seed=1'"
    assert len(set(names)) == 4
    assert all(run[0] == "experiment=demo" for run in runs)


def test_errors_show_a_traceback_only_when_asked(capsys):
    assert main(["train", "optim.lrr=1"]) == 64
    assert "Traceback" not in capsys.readouterr().err
    assert main(["-v", "train", "optim.lrr=1"]) == 64
    assert "Traceback" in capsys.readouterr().err


def test_output_into_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m distllm.cli explain experiment=demo | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ, check=False)
    assert "Traceback" not in done.stderr
