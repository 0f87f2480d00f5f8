import pytest

from distllm.config.compose import PACKAGE_CONF, compose, config_directories
from distllm.config.overrides import Groups
from distllm.config.preview import compose_plain, raise_early
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.errors import ConfigProblems

GROUPS = Groups.scan([PACKAGE_CONF]).choices
SOURCE = ["data.sources={a:{}}"]
EVERY_CHOICE = [
    pytest.param(f"{group}={choice}", marks=[] if number % 8 == 0 else pytest.mark.slow)
    for number, (group, choice) in enumerate((g, c) for g, choices in GROUPS.items() for c in choices)
]


def previewed(*overrides, config_dir=None):
    composed = compose_plain(list(overrides), config_directories(config_dir))
    assert composed is not None
    problems = Problems()
    config = build(Config, composed, problems)
    problems.raise_if_any()
    return config


@pytest.mark.parametrize("choice", EVERY_CHOICE)
def test_the_preview_composes_every_choice_as_hydra_does(choice):
    assert previewed(choice) == compose([choice])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=demo", "optim.lr=1e-4", "seed=3", "model=llama-10m"],
        ["engine=local", "experiment=bench", "train.max_steps=7", "name=2026-11-23"],
        ["experiment=demo", "eval=none", "optim=lion", "cluster=slurm-pyxis", "eval.sample_tokens=2"],
        ["train.total_tokens=2B", "engine.compile=true", "data.max_bytes=null"],
        ["optim.lr=1", "optim.lr=2"],
        ["data=text", "data.paths=[some/file.txt,other]", "data.out=/tmp/x"],
        ["data.paths=[]"],
        ["engine.compile=True", "name=007", "optim.lr=.5", "data.paths=[a b,'c, d']"],
        ["eval.prompt='a, b'", 'name="it\'s"', "runs_dir=a\\,b", "tokenizer.path=s3://x/y"],
        ["optim.eps=${optim.lr}", "name='${seed}-${model.hidden_size}'", "runs_dir=\\${seed}"],
        ["+seed=1", "++model.num_layers=3", "+optim.eps=1e-7"],
        ["data.sources.wiki.weight=2", "data.sources.20news.max_bytes=64MiB", "data.sources.007.priority=1"],
        ["data.sources={a:{weight:1,paths:[x]},b:{}}", "data.sources.a.weight=3", "data.sources.c={}"],
        ["~model.num_heads", "~model.num_layers", "model.num_layers=3"],
        ["data.sources={a:{weight:1,priority:2},b:{}}", "~data.sources.a.weight", "~data.sources.b"],
        ["data.sources.a={weight:1}", "+data.sources.a={priority:4}"],
        ["data.sources.a.weight=2", "data.sources.b.weight=${data.sources.a.weight}"],
        ["data.sources.a.weight=2", "data.sources.b.priority=${data.sources.a.priority}"],
    ],
)
def test_the_preview_merges_overrides_as_hydra_does(overrides):
    assert previewed(*overrides) == compose(overrides)


@pytest.mark.parametrize(
    "override",
    [
        "~seed",
        "~model.num_heads=4",
        "~optim.eps",
        "~model",
        "seed=1,2",
        "seed=range(1,3)",
        "name=[a",
        "name=é",
        "name=${hydra:job.name}",
        "name=???",
        "+name=???",
        "+model.num_layers=3",
        "+model=llama-10m",
        "model@teacher=llama-10m",
        "hydra.job.name=x",
        "experiment=[demo]",
        "data.paths={a:1}",
    ],
)
def test_what_only_hydra_can_tell_is_left_to_it(override):
    given = [*SOURCE, override, "data.paths=[x]"]
    assert compose_plain(given, [PACKAGE_CONF]) is None
    raise_early(given, None, lambda config, problems: problems.add("x", where="x", remedy="x"))


def test_an_interpolation_of_no_key_is_named_beside_other_problems():
    for tell in (lambda given: raise_early(given, None, lambda *_: None), compose):
        with pytest.raises(ConfigProblems) as caught:
            tell([*SOURCE, "data.paths=[x]", "name=${optim.lrr}", "optim.lrr=1"])
        told = str(caught.value)
        assert "name refers to optim.lrr, which is not a key" in told
        assert "unknown key 'optim.lrr'" in told


def write(directory, name, text):
    path = directory / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "overrides"),
    [
        ("experiment/mine", "# @package _global_\nseed: 4\noptim: {lr: 7e-4}\n", ["experiment=mine"]),
        (
            "experiment/mine",
            "\n# @package _global_\ndefaults:\n  - override /model: llama-10m\n  - _self_\nseed: 4\n",
            ["experiment=mine", "seed=5"],
        ),
        (
            "experiment/mine",
            "# @package _global_\ndefaults:\n  - override /model: own\n",
            ["experiment=mine", "model=llama-tiny"],
        ),
        ("model/llama-tiny", "hidden_size: 96\n", []),
        ("model/own", "# about\n\nhidden_size: 96\n", ["model=own"]),
        ("model/own", "# @package _global_\nmodel: {hidden_size: 96}\n", ["model=own"]),
        ("model/own", "# @package optim\nlr: 0.5\n", ["model=own"]),
        ("model/own", "# @package optim\nlr: 0.5\n", ["model=own", "optim=lion", "experiment=demo"]),
        ("model/own", "# @package model.rope\nfactor: 2\n", ["model=own", "seed=5"]),
        ("model/own", "# about\n# @package other\nhidden_size: ${train.tokens_per_step}\n", ["model=own"]),
        ("data/own", "sources:\n  wiki: {weight: 2, max_bytes: 1MB}\n  a-b: {}\n", ["data=own"]),
        ("data/own", "sources:\n  wiki: {weight: 2}\n", ["data=own", "data.sources.wiki.priority=3"]),
        (
            "data/own",
            "sources:\n  wiki: {weight: 2}\n",
            ["data=own", "data.sources={wiki:{priority:3},x:{}}"],
        ),
    ],
)
def test_the_preview_reads_a_users_directory_as_hydra_does(tmp_path, name, text, overrides):
    write(tmp_path, "model/own", "hidden_size: 48\nnum_heads: 6\n")
    write(tmp_path, name, text)
    assert previewed(*overrides, config_dir=tmp_path) == compose(overrides, config_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "override"),
    [
        ("model/own", "defaults:\n  - llama-10m\n", "model=own"),
        ("model/own", "# @package _group_\nhidden_size: 96\n", "model=own"),
        ("experiment/own", "seed: 3\n", "experiment=own"),
        ("experiment/own", "# @package _global_\ndefaults:\n  - override /model: nope\n", "experiment=own"),
        ("experiment/own", "# @package _global_\ndefaults:\n  - /model: llama-10m\n", "experiment=own"),
        ("experiment/own", "# @package _global_\ndefaults:\n  - demo\n", "experiment=own"),
        ("fresh/own", "lr: 0.5\n", "+fresh=own"),
        ("model/own", "hidden_size: ???\n", "model=own"),
    ],
)
def test_what_a_users_file_leaves_to_hydra(tmp_path, name, text, override):
    write(tmp_path, name, text)
    assert compose_plain([override], config_directories(tmp_path)) is None


@pytest.mark.parametrize("text", ["a: [1", "- 1\n"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    write(tmp_path, "experiment/broken", text)
    with pytest.raises(ConfigProblems) as caught:
        raise_early(["experiment=broken", "optim.lrr=1"], tmp_path, lambda config, problems: None)
    assert [problem.where for problem in caught.value.problems] == [
        "optim.lrr", str(tmp_path / "experiment" / "broken.yaml"),
    ]  # fmt: skip


def test_typos_in_a_users_directory_are_found_early(tmp_path):
    write(tmp_path, "data/own", "sources:\n  wiki: {wieght: 2, max_bytes: 1X}\n  .x: {}\n")
    with pytest.raises(ConfigProblems) as caught:
        raise_early(["data=own"], tmp_path, lambda config, problems: None)
    assert [problem.where for problem in caught.value.problems] == [
        "data.sources.wiki.wieght", "data.sources.wiki.max_bytes", "data.sources..x",
    ]  # fmt: skip
    assert caught.value.problems[0].remedy == "did you mean 'data.sources.wiki.weight'?"


def test_everything_is_raised_together():
    with pytest.raises(ConfigProblems) as caught:
        raise_early(
            ["optim.lrr=1", "train.max_steps=abc"],
            None,
            lambda config, problems: problems.add("third", where="x", remedy="y"),
        )
    assert len(caught.value.problems) == 3
