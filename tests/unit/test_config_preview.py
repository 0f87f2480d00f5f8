import pytest

from distllm.config.compose import PACKAGE_CONF, compose
from distllm.config.overrides import Groups
from distllm.config.preview import compose_plain, raise_early
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.errors import ConfigProblems

GROUPS = Groups.scan([PACKAGE_CONF]).choices
EVERY_CHOICE = [f"{group}={choice}" for group, choices in GROUPS.items() for choice in choices]


def previewed(*overrides):
    composed = compose_plain(list(overrides), PACKAGE_CONF)
    assert composed is not None
    problems = Problems()
    config = build(Config, composed, problems)
    problems.raise_if_any()
    return config


@pytest.mark.parametrize("choice", EVERY_CHOICE)
def test_the_preview_composes_every_choice_as_hydra_does(choice):
    assert previewed(choice) == compose([choice])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=demo", "optim.lr=1e-4", "seed=3", "model=llama-10m"],
        ["engine=local", "experiment=bench", "train.max_steps=7", "name=2026-11-23"],
        ["train.total_tokens=2B", "engine.compile=true", "data.max_bytes=null"],
        ["optim.lr=1", "optim.lr=2"],
        ["data=text", "data.paths=[some/file.txt,other]", "data.out=/tmp/x"],
        ["data.paths=[]"],
    ],
)
def test_the_preview_merges_overrides_as_hydra_does(overrides):
    assert previewed(*overrides) == compose(overrides)


@pytest.mark.parametrize(
    "override",
    ["optim.eps=${optim.lr}", "data.paths=[a b]", "eval.prompt='a b'", "+seed=1", "~seed", "seed=1,2"],
)
def test_what_is_not_plain_is_left_to_hydra(override):
    assert compose_plain([override], PACKAGE_CONF) is None
    raise_early([override], None, lambda config, problems: problems.add("x", where="x", remedy="x"))


def test_a_users_directory_is_left_to_hydra(tmp_path):
    raise_early(["optim.lrr=1"], tmp_path, lambda config, problems: None)


def test_everything_is_raised_together():
    with pytest.raises(ConfigProblems) as caught:
        raise_early(
            ["optim.lrr=1", "train.max_steps=abc"],
            None,
            lambda config, problems: problems.add("third", where="x", remedy="y"),
        )
    assert len(caught.value.problems) == 3
