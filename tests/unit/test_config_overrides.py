import pytest

from distllm.config.overrides import Groups, accepted_overrides, split_override, strip_launcher_arguments
from distllm.config.problems import Problems

GROUPS = Groups({"model": ("llama-10m", "llama-tiny"), "schedule": ("cosine", "linear")})


def judge(*overrides):
    problems = Problems()
    return accepted_overrides(overrides, GROUPS, problems), problems


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim.lr=1e-3", ("", "optim.lr", "1e-3")),
        ("optim.lr =1", ("", "optim.lr", "1")),
        ("name=", ("", "name", "")),
        ("name=a=b", ("", "name", "a=b")),
        ("name=two\nlines", ("", "name", "two\nlines")),
        ("+seed=1", ("+", "seed", "1")),
        ("++seed=1", ("++", "seed", "1")),
        ("~seed", ("~", "seed", None)),
        ("~seed=1", ("~", "seed", "1")),
        ("seed", ("", "seed", None)),
        ("=5", ("", "=5", None)),
        ("", ("", "", None)),
    ],
)
def test_an_override_is_prefix_key_and_value(text, parts):
    assert split_override(text) == parts


def test_only_what_launchers_append_is_stripped():
    kept = ["seed=1", "--cfg", "--local_rank=x", "local_rank=1", "--local_ranks=1", "x--local_rank=1"]
    added = ["--local_rank=0", "--local-rank=12", "--local_rank"]
    assert strip_launcher_arguments([*added, *kept, *added]) == kept


def test_known_keys_pass_unchanged_and_in_order():
    given = ["seed=1", "++optim.lr=1,2", "~optim.eps", "model=llama-tiny", "name='a=b'", "optim.lr=3"]
    accepted, problems = judge(*given)
    assert accepted == given
    assert len(problems) == 0


@pytest.mark.parametrize("text", ["seed", "--seed=1", "-x", "=5", "", "+seed"])
def test_what_is_no_override_is_quoted(text):
    accepted, problems = judge(text, "seed=1")
    (problem,) = problems.found
    assert accepted == ["seed=1"]
    assert problem.cause == f"cannot read {text!r}: an override is key=value"
    assert problem.where == "command line"


@pytest.mark.parametrize(
    "value",
    [
        "llama-tiny",
        "llama-tiny,llama-10m",
        "llama-tiny, llama-10m",
        "null",
        "",
        "choice(llama-tiny,x)",
        "glob(*)",
    ],
)
def test_choices_and_sweeps_over_choices_pass(value):
    assert judge(f"model={value}")[0] == [f"model={value}"]


@pytest.mark.parametrize("text", ["model@teacher=llama-10m", "+model=llama-10m", "~model"])
def test_other_ways_to_name_a_group_pass(text):
    assert judge(text)[0] == [text]


def test_each_wrong_choice_of_a_sweep_is_named():
    accepted, problems = judge("model=llama-tny,llama-tiny,gpt", "schedule=linear")
    assert accepted == ["schedule=linear"]
    assert [problem.cause for problem in problems.found] == [
        "model has no choice 'llama-tny'",
        "model has no choice 'gpt'",
    ]
    assert {problem.where for problem in problems.found} == {"model=llama-tny,llama-tiny,gpt"}
    assert problems.found[0].remedy == "did you mean 'llama-tiny'?"
    assert problems.found[1].remedy == "use one of: llama-10m, llama-tiny"


def test_a_choice_belongs_to_its_own_group():
    assert "schedule has no choice 'llama-tiny'" in judge("schedule=llama-tiny")[1].found[0].cause


def test_hydras_own_keys_pass_and_lookalikes_do_not():
    accepted, problems = judge("hydra.run.dir=x", "hydra=x", "hydrant.x=1")
    assert accepted == ["hydra.run.dir=x"]
    assert [problem.where for problem in problems.found] == ["hydra", "hydrant.x"]


@pytest.mark.parametrize("text", ["optim=1", "optim.adamw.lr=1", "OPTIM.LR=1", "optim.lr.x=1"])
def test_only_whole_leaves_are_keys(text):
    accepted, problems = judge(text)
    assert accepted == []
    assert "unknown key" in problems.found[0].cause


def test_what_a_typo_probably_meant_becomes_suspect():
    assert judge("trian.max_steps=3")[1].suspects == {"train.max_steps"}


def test_groups_of_several_directories_are_joined(tmp_path):
    for name in ("a/model/one.yaml", "b/model/two.yaml", "b/extra/x.yaml", "b/root.yaml", "b/model/no.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    groups = Groups.scan([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert groups.choices == {"extra": ("x",), "model": ("one", "two")}
