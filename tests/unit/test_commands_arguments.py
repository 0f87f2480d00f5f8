import dataclasses
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import prepared
import pytest

from distllm.commands.arguments import parse_config_arguments, parse_options
from distllm.commands.runs import require, run_of
from distllm.commands.settle import dataset_facts
from distllm.config.keys import flatten
from distllm.config.options import option
from distllm.config.problems import Problems
from distllm.config.schema import Config, DataConfig
from distllm.config.yaml import to_yaml
from distllm.errors import ConfigError, ConfigProblems, IntegrityError
from distllm.fsio import atomic_write_json
from distllm.train.run_directory import locate_run


@dataclass(frozen=True)
class Options:
    run: str | None = option(None, "name of the run")
    prompt: str = option("Once", "what to continue")
    tokens: int = option(40, "how many", unit="count", minimum=1)
    step: int | None = option(None, "which checkpoint", minimum=0)
    temperature: float = option(0.8, "how bold")
    greedy: bool = option(False, "the likeliest only")
    format: Literal["hf", "raw"] = option("hf", "what to write")


def parse(*words):
    return parse_options("write", Options, words)


def problems_of(*words, cls=Options):
    with pytest.raises(ConfigProblems) as caught:
        parse_options("write", cls, words)
    return caught.value.problems


def arguments(*words):
    return parse_config_arguments("train", "Train.", words)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("run=007", "run", "007"),
        ("run=null", "run", "null"),
        ("prompt=true", "prompt", "true"),
        ("prompt=1e3", "prompt", "1e3"),
        ("prompt=", "prompt", ""),
        ("prompt= x = y\n", "prompt", " x = y\n"),
        ("prompt='quoted'", "prompt", "'quoted'"),
        ("tokens=7", "tokens", 7),
        ("tokens=2k", "tokens", 2000),
        ("tokens=1e2", "tokens", 100),
        ("step=null", "step", None),
        ("step=0", "step", 0),
        ("temperature=1e-3", "temperature", 1e-3),
        ("temperature=2", "temperature", 2.0),
        ("greedy=true", "greedy", True),
        ("format=raw", "format", "raw"),
    ],
)
def test_a_word_sets_its_option_and_text_stays_text(word, key, value):
    options = parse(word)
    assert getattr(options, key) == value
    assert type(getattr(options, key)) is type(value)
    assert dataclasses.replace(options, **{key: getattr(Options(), key)}) == Options()


def test_the_last_word_wins():
    assert parse("tokens=1", "tokens=2").tokens == 2


@pytest.mark.parametrize(
    ("word", "cause", "remedy"),
    [
        ("tokns=3", "unknown key 'tokns'", "did you mean 'tokens'?"),
        ("tokens", "cannot read 'tokens'", "write key=value; distllm write takes run, prompt, tokens"),
        ("--tokens", "cannot read '--tokens'", "write key=value"),
        ("tokens=many", "tokens='many': 'many' is not a count", "how many (at least 1)"),
        ("tokens=null", "tokens=None: expected a number", "how many"),
        ("tokens=0", "below the least", "how many"),
        ("greedy=yes", "expected true or false", "the likeliest only"),
        ("greedy=1", "expected true or false", "the likeliest only"),
        ("temperature=nan", "not a finite number", "how bold"),
        ("format=rwa", "not one of hf, raw; did you mean 'raw'?", "what to write"),
    ],
)
def test_a_wrong_word_is_explained(word, cause, remedy):
    (problem,) = problems_of(word)
    assert cause in problem.cause
    assert remedy in problem.remedy


def test_all_wrong_words_are_reported_at_once():
    assert len(problems_of("tokns=3", "step", "step=-1", "greedy=2")) == 4


def test_a_required_option_must_be_given_whatever_its_value():
    needed = dataclasses.field(
        default=None,
        metadata={"help": "where", "unit": None, "minimum": None, "maximum": None, "required": True},
    )
    cls = dataclasses.make_dataclass("Needy", [("out", str | None, needed)], frozen=True)
    (problem,) = problems_of(cls=cls)
    assert problem.cause == "out=... is missing"
    assert problem.remedy == "give out=..., where"
    assert parse_options("write", cls, ["out=null"]).out == "null"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_option_with_range_and_default(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("tokens=oops", flag)
    assert caught.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "usage: distllm write key=value ..."
    assert [line.split("=")[0].strip() for line in shown[2:]] == list(asdict(Options()))
    assert "  tokens=           how many (at least 1) [default 40]" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "seed=1", "optim.lr=2"],
        ["seed=1", "--cfg", "job", "optim.lr=2"],
        ["seed=1", "optim.lr=2", "--cfg=job"],
        ["--local_rank=3", "seed=1", "optim.lr=2", "--cfg", "job"],
    ],
)
def test_flags_may_stand_anywhere_among_the_overrides(words):
    got = arguments(*words)
    assert (got.overrides, got.show, got.multirun, got.config_dir) == (
        ["seed=1", "optim.lr=2"],
        True,
        False,
        None,
    )


@pytest.mark.parametrize("flag", [["-cd", "dir"], ["--config-dir", "dir"], ["--config-dir=dir"]])
def test_a_directory_and_a_sweep_can_be_asked_for(flag):
    got = arguments("-m", *flag, "~seed", "model=a,b")
    assert (got.overrides, got.config_dir, got.multirun, got.show) == (
        ["~seed", "model=a,b"],
        Path("dir"),
        True,
        False,
    )
    assert arguments("--multirun").multirun


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--multi"], "unknown flag '--multi'"),
        (["--config-d=x"], "unknown flag '--config-d=x'"),
        (["seed=1", "--sed"], "unknown flag '--sed'"),
        (["--cfg", "hydra"], "invalid choice: 'hydra'"),
        (["--cfg"], "expected one argument"),
        (["--multirun=1"], "ignored explicit argument"),
    ],
)
def test_a_flag_that_is_wrong_or_abbreviated_is_a_configuration_error(words, cause):
    with pytest.raises(ConfigError) as caught:
        arguments(*words)
    assert cause in caught.value.cause
    assert caught.value.where == "command line"
    assert caught.value.remedy


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("settle") / "data"
    return directory, prepared.write_dataset(directory, train=[[5] * 40] * 20, valid=[[6] * 20])


def config_of(directory):
    return Config(data=DataConfig(out=str(directory)))


def test_the_facts_are_those_of_the_manifest(dataset):
    directory, manifest = dataset
    problems = Problems()
    facts = dataset_facts(config_of(directory), problems, needed=True)
    assert (facts.vocab_size, facts.train_tokens, facts.valid_tokens) == (manifest.vocab_size, 20 * 41, 21)
    assert facts.digest == manifest.digest
    assert len(problems) == 0


def test_a_missing_or_damaged_dataset_is_a_problem_only_where_it_is_needed(dataset, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset[0], damaged)
    (damaged / "tokenizer.json").write_text("{}")
    for directory, cause in ((damaged, "not what was written"), (tmp_path / "none", "no prepared dataset")):
        problems = Problems()
        assert dataset_facts(config_of(directory), problems, needed=False) is None
        assert len(problems) == 0
        assert dataset_facts(config_of(directory), problems, needed=True) is None
        (problem,) = problems.found
        assert cause in problem.cause
        assert problem.where == f"data.out={directory}"
        assert f"distllm prepare data.out={directory}" in problem.remedy


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, ``one`` and ``two``, in the directory ``runs`` of the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("two", "one", "no-run"):
        Path("runs", name).mkdir(parents=True)
    for name in ("two", "one"):
        Path("runs", name, "config.yaml").write_text(to_yaml(asdict(Config(name=name))))
    return tmp_path / "runs"


def test_a_run_is_found_by_its_name_or_its_path(runs, tmp_path):
    assert run_of("one", "runs").config == Config(name="one")
    assert run_of(str(runs / "two"), "elsewhere").config.name == "two"
    assert run_of("runs/two", "elsewhere").directory.path == Path("runs/two")
    runs.rename(tmp_path / "moved")
    assert locate_run("one", str(tmp_path / "moved")).config == tmp_path / "moved" / "one" / "config.yaml"


def test_an_unknown_run_lists_the_known_ones(runs):
    with pytest.raises(ConfigError) as caught:
        locate_run("no-run", "runs")
    assert caught.value.cause == "no run 'no-run'"
    assert caught.value.where == "no-run or runs/no-run"
    assert caught.value.remedy == "runs here: one, two"


def test_where_there_is_no_run_the_remedy_is_to_train(tmp_path):
    with pytest.raises(ConfigError) as caught:
        locate_run("one", str(tmp_path / "missing"))
    assert "distllm train" in caught.value.remedy


def test_a_run_of_another_version_names_what_it_does_not_know(runs):
    with (runs / "one" / "config.yaml").open("a") as stream:
        stream.write("optimizer: sgd\n")
    with pytest.raises(ConfigProblems, match="unknown key 'optimizer'"):
        run_of("one", "runs")


def test_a_stored_run_settles_for_the_ranks_it_ran_on(runs, dataset):
    config = dataclasses.replace(
        Config(name="one"),
        data=DataConfig(out=str(dataset[0]), seq_len=8),
        train=dataclasses.replace(Config().train, tokens_per_step=512, max_steps=4),
    )
    (runs / "one" / "config.yaml").write_text(to_yaml(asdict(config)))
    entry = {"value": 64, "from": "derived", "detail": "8 x 8", "help": "derived"}
    atomic_write_json(runs / "one" / "explain.json", {"world_size": entry})
    stored = run_of("one", "runs")
    assert stored.dataset == dataset[0]
    resolved = stored.resolved()
    assert (resolved.world.size, resolved.sequences_per_step, resolved.micro_batch_size) == (64, 64, 1)
    for damaged in ([], {"world_sise": entry}, {"world_size": {"value": 64}}, {"world_size": 64}):
        atomic_write_json(runs / "one" / "explain.json", damaged)
        with pytest.raises(IntegrityError, match=r"explain\.json (is not what|holds no JSON object)"):
            stored.resolved()


def test_a_configuration_that_was_cut_off_is_not_filled_with_defaults(runs):
    keys = flatten(asdict(Config()))
    table = {key: {"value": None, "from": "schema", "detail": "", "help": ""} for key in keys}
    table["world_size"] = {"value": 1, "from": "derived", "detail": "", "help": ""}
    atomic_write_json(runs / "one" / "explain.json", table)
    assert run_of("one", "runs").config == Config(name="one")
    file = runs / "one" / "config.yaml"
    file.write_text(file.read_text().partition("optim:")[0])
    with pytest.raises(IntegrityError, match=r"config\.yaml has lost \d+ of its keys"):
        run_of("one", "runs")


def test_an_option_that_must_be_given_is_named_with_its_command():
    assert require(0, "step", "inspect") == 0
    with pytest.raises(ConfigError, match=r"step=\.\.\. is missing") as caught:
        require(None, "step", "inspect")
    assert caught.value.remedy == "see distllm inspect --help"
