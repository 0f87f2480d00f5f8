from dataclasses import asdict
from operator import attrgetter

import pytest

from distllm.config.compose import PACKAGE_CONF, compose, composition_of, sources_of
from distllm.config.preview import compose_plain
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.errors import ConfigError, ConfigProblems


def problems_of(*overrides, **kwargs):
    with pytest.raises(ConfigProblems) as caught:
        compose(list(overrides), **kwargs)
    return caught.value.problems


def test_groups_overrides_and_schema_defaults_combine():
    config = compose(["model=llama-10m", "optim.lr=2e-3", "schedule=linear"])
    assert config.model.num_layers == 8
    assert config.optim.lr == 2e-3
    assert config.schedule.name == "linear"
    assert config.optim.beta2 == Config().optim.beta2


def test_an_experiment_changes_groups_and_values():
    config = compose(["experiment=demo"])
    assert (config.name, config.engine.zero_stage, config.cluster.procs_per_node) == ("demo", 2, 2)
    assert config.data.max_bytes == 10_000_000


def test_an_override_beats_the_experiment():
    assert compose(["experiment=demo", "optim.lr=0.5"]).optim.lr == 0.5


@pytest.mark.parametrize(
    ("override", "expected"),
    [("train.total_tokens=2B", 2 * 10**9), ("train.total_tokens=1_000", 1000)],
)
def test_counts_can_be_written_with_a_unit(override, expected):
    assert compose([override]).train.total_tokens == expected


def test_bytes_can_be_written_with_a_unit():
    assert compose(["data.shard_bytes=2MiB"]).data.shard_bytes == 2 * 2**20


def test_all_problems_are_reported_at_once():
    found = problems_of(
        "train.max_steps=abc", "optim.lrr=1", "modle=llama-tiny", "model=lama-tiny", "optim.eps=-1"
    )
    assert {problem.where for problem in found} == {
        "train.max_steps", "optim.lrr", "modle", "model=lama-tiny", "optim.eps",
    }  # fmt: skip
    assert all(problem.remedy for problem in found)


@pytest.mark.parametrize(
    ("override", "cause"),
    [
        ("train.max_steps=abc", "not a count"),
        ("optim.lr=fast", "expected a number"),
        ("optim.lr=true", "expected a number"),
        ("optim.lr=.nan", "expected a number"),
        ("model.num_layers=2.5", "expected a whole number"),
        ("engine.compile=maybe", "expected true or false"),
        ("engine.zero_stage=4", "above the greatest"),
        ("precision.compute=fp8", "not one of fp32, bf16"),
        ("data.paths=here", "expected a list"),
        ("model.hidden_size=null", "expected a number"),
        ("optim.name=adamww", "did you mean 'adamw'"),
    ],
)
def test_wrong_values_are_refused(override, cause):
    (problem,) = problems_of(override)
    assert cause in problem.cause
    assert problem.where == override.split("=")[0]


@pytest.mark.parametrize(
    "override", ["optim.l=1", "optim.weight_dec=1", "train.max_step=5", "mod=llama-tiny"]
)
def test_a_prefix_of_a_key_is_not_accepted(override):
    (problem,) = problems_of(override)
    assert "unknown key" in problem.cause


def test_the_hint_never_advises_to_append_a_dead_key():
    (problem,) = problems_of("optim.lrr=1")
    assert "+" not in problem.remedy
    (appended,) = problems_of("+optim.lrr=1")
    assert "did you mean 'optim.lr'" in appended.remedy


def test_launcher_arguments_are_ignored():
    assert compose(["--local_rank=1", "seed=3"]).seed == 3


def test_a_user_directory_adds_choices(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: llama-10m\noptim:\n  lr: 7e-4\n"
    )
    config = compose(["experiment=mine"], config_dir=tmp_path)
    assert config.optim.lr == 7e-4
    assert config.model.hidden_size == 256


def test_unknown_keys_in_a_file_are_found_with_those_of_the_command_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nmodel:\n  hidden_sise: 3\ndata:\n  _target_: os.system\n"
    )
    found = problems_of("experiment=mine", "optim.lrr=1", config_dir=tmp_path)
    assert [problem.where for problem in found] == ["optim.lrr", "model.hidden_sise", "data._target_"]
    assert "would run code" in found[2].cause


def test_an_unknown_choice_inside_a_file_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: lama\n"
    )
    (problem,) = problems_of("experiment=mine", config_dir=tmp_path)
    assert "model/lama" in problem.cause


def test_interpolation_reaches_schema_defaults():
    assert compose(["optim.eps=${optim.lr}"]).optim.eps == Config().optim.lr


def test_sources_name_file_override_and_schema():
    sources = sources_of(composition_of(["experiment=demo", "seed=4"]))
    assert sources["optim.lr"].detail == "conf/experiment/demo.yaml (experiment=demo)"
    assert sources["model.hidden_size"].detail == "conf/model/llama-tiny.yaml (model=llama-tiny)"
    assert sources["seed"].detail == "seed=4"
    assert sources["optim.beta1"].kind == "schema"


def test_what_is_composed_can_be_composed_again_from_its_yaml(tmp_path):
    import yaml

    from distllm.config.yaml import to_yaml

    config = compose(["experiment=demo"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "again.yaml").write_text("# @package _global_\n" + to_yaml(asdict(config)))
    assert yaml.safe_load(to_yaml(asdict(config)))["name"] == "demo"
    assert compose(["experiment=again"], config_dir=tmp_path) == config


def test_a_users_file_wins_over_the_built_in_one_of_its_name(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "llama-tiny.yaml").write_text("hidden_size: 96\nnum_heads: 6\n")
    composition = composition_of([], config_dir=tmp_path)
    assert composition.config.model.hidden_size == 96
    assert composition.config.model.num_kv_heads is None
    assert (
        sources_of(composition)["model.hidden_size"].detail == "conf/model/llama-tiny.yaml (model=llama-tiny)"
    )
    assert sources_of(composition)["model.num_kv_heads"].kind == "schema"


def test_a_users_root_configuration_is_refused_and_not_ignored(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 4\n")
    with pytest.raises(ConfigError, match="replace the root") as caught:
        compose([], config_dir=tmp_path)
    assert "experiment/NAME.yaml" in caught.value.remedy


def test_a_directory_may_have_commas_and_spaces_in_its_name(tmp_path):
    folder = tmp_path / "a, b" / "model"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("hidden_size: 96\nnum_heads: 6\n")
    assert compose(["model=own"], config_dir=folder.parent).model.hidden_size == 96


def test_a_file_that_is_no_yaml_is_one_problem(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("hidden_size: [1\n")
    (problem,) = problems_of("model=own", config_dir=tmp_path)
    assert str(tmp_path / "model" / "own.yaml") in problem.cause
    assert problem.remedy == "fix the file that the message names"


@pytest.mark.parametrize(
    ("defaults", "remedy"),
    [
        ("[own, _self_]", "take the circle out"),
        ("null", "list of other choices"),
        ("[1]", "list of other choices"),
    ],
)
def test_defaults_that_choose_nothing_are_a_problem(tmp_path, defaults, remedy):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(f"defaults: {defaults}\nhidden_size: 8\n")
    (problem,) = problems_of("model=own", config_dir=tmp_path)
    assert remedy in problem.remedy
    assert compose_plain(["model=own"], [tmp_path, PACKAGE_CONF]) is None


def test_empty_defaults_choose_nothing_more(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text("defaults: []\nhidden_size: 96\n")
    assert compose(["model=own"], config_dir=tmp_path).model.hidden_size == 96
    assert compose_plain(["model=own"], [tmp_path, PACKAGE_CONF]) is None


def test_where_hydra_composes_nothing_no_further_problem_is_guessed():
    problems = Problems()
    with pytest.raises(ConfigProblems) as caught:
        compose(["optim.lrr=1", "name=[a"], problems=problems)
    assert [problem.where for problem in caught.value.problems] == ["optim.lrr", "name"]


@pytest.mark.slow
def test_every_word_that_hydra_cannot_read_is_named_with_the_quotes_it_needs():
    unreadable = problems_of(
        "model.init_from=~/x", "name=größe", "eval.prompt=it's", "data.paths=[a", "seed=1"
    )
    assert [problem.where for problem in unreadable] == [
        "model.init_from",
        "name",
        "eval.prompt",
        "data.paths",
    ]
    for problem, value in zip(unreadable[:3], ("~/x", "größe", "it's"), strict=True):
        word = problem.remedy.strip('"')
        assert attrgetter(problem.where)(compose([word])) == value
    assert "brackets" in unreadable[3].remedy
    (swept,) = problems_of("train.max_steps=1,2")
    assert "-m for a run of each" in swept.remedy
    (added,) = problems_of("+model.hidden_size=8")
    assert "without the '+'" in added.remedy
    (taken,) = problems_of("~model.rope_theta")
    assert "~KEY" in taken.remedy


@pytest.mark.slow
def test_a_group_named_on_the_command_line_stands_above_the_keys_of_an_experiment(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\neval: {every_steps: 7, sample_tokens: 3, max_tokens: 9}\noptim: {lr: 1}\n"
        "cluster: {procs_per_node: 2}\n"
    )
    plain = compose(["experiment=mine"], config_dir=tmp_path)
    assert (plain.eval.every_steps, plain.optim.lr, plain.cluster.procs_per_node) == (7, 1.0, 2)
    words = ["experiment=mine", "optim=lion", "eval=none", "cluster=slurm-pyxis", "train.max_steps=11"]
    named = composition_of(words, config_dir=tmp_path)
    assert (named.config.eval.every_steps, named.config.eval.sample_tokens) == (0, 0)
    assert named.config.eval.max_tokens == 9  # which eval=none says nothing of
    assert (named.config.optim.name, named.config.optim.lr) == ("lion", 3e-4)
    # the choices that a choice begins with are of it
    assert (named.config.cluster.procs_per_node, named.config.cluster.container.kind) == (8, "pyxis")
    assert named.config.train.max_steps == 11
    sources = sources_of(named)
    assert sources["eval.every_steps"].detail == "conf/eval/none.yaml (eval=none)"
    assert sources["cluster.procs_per_node"].detail == "conf/cluster/h100.yaml (cluster=h100)"
    assert sources["eval.max_tokens"].detail == "conf/experiment/mine.yaml (experiment=mine)"
    # whatever stands first, a key of the command line is the last word
    assert compose(["eval.every_steps=5", *words], config_dir=tmp_path).eval.every_steps == 5


def test_a_named_group_keeps_its_lists_mappings_and_references(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "source: many\nout: data/${name}\nsources: {a: {paths: ['it''s, [x]', \"two\\nlines\"], weight: 2}}\n"
    )
    config = compose(["experiment=demo", "data=mine"], config_dir=tmp_path)
    assert config.data.sources["a"].paths == ("it's, [x]", "two\nlines")
    assert config.data.out == "data/demo"
    assert config.data.seq_len == 256
    assert compose(["experiment=demo"]).data.source == "pydocs"  # nothing of it stays behind
