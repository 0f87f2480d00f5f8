import dataclasses

import pytest

from distllm.config import checks
from distllm.config.checks_prepare import check_prepare
from distllm.config.compose import compose, composition_of
from distllm.config.diff import changes
from distllm.config.explain import explanation, render, select
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, World, resolve
from distllm.errors import ConfigError, ConfigProblems

BASE = [
    "train.max_steps=10",
    "data.seq_len=128",
    "train.tokens_per_step=4096",
    "engine.micro_batch_tokens=1024",
]
TWO_RANKS = World(2, 2, "test")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(checks, "cores_of_ranks", lambda: 2)


def resolved(*overrides, **kwargs):
    return resolve(compose([*BASE, *overrides]), **kwargs)


def problems_of(*overrides, **kwargs):
    with pytest.raises(ConfigProblems) as caught:
        resolved(*overrides, **kwargs)
    return caught.value.problems


def test_the_batch_geometry_follows_from_tokens_per_step():
    one, two = resolved(), resolved(world=TWO_RANKS)
    assert (one.sequences_per_step, one.micro_batch_size, one.grad_accum_steps) == (32, 8, 4)
    assert (two.sequences_per_step, two.micro_batch_size, two.grad_accum_steps) == (32, 8, 2)


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    got = resolved("train.tokens_per_step=1536", "engine.micro_batch_tokens=1024")
    assert (got.sequences_per_step, got.micro_batch_size, got.grad_accum_steps) == (12, 6, 2)


def test_the_horizon_can_be_given_in_steps_or_tokens():
    by_steps = resolved()
    by_tokens = resolved("train.max_steps=null", "train.total_tokens=42000")
    assert by_steps.total_tokens == 10 * 4096
    assert (by_tokens.max_steps, by_tokens.total_tokens) == (10, 40960)


def test_stopping_early_leaves_the_horizon():
    got = resolved("train.stop_at_step=4")
    assert (got.stop_step, got.max_steps, got.total_tokens) == (4, 10, 40960)


def test_the_vocabulary_of_the_dataset_wins_and_is_padded():
    facts = DatasetFacts(vocab_size=5001, train_tokens=10**6, valid_tokens=10**4, digest="d")
    assert resolved(dataset=facts).shape.vocab_size == 5056


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [
        (["model.num_heads=7", "model.num_kv_heads=null"], "not divisible by num_heads"),
        (["model.num_heads=6", "model.num_kv_heads=4"], "not divisible by num_kv_heads"),
        (["model.hidden_size=18", "model.num_heads=6", "model.num_kv_heads=null"], "is odd"),
        (["train.max_steps=null"], "length of the run is not given"),
        (["train.total_tokens=1M"], "length of the run is given twice"),
        (["train.max_steps=null", "train.total_tokens=100"], "less than one step"),
        (["train.tokens_per_step=4000"], "whole number of 128-token sequences"),
        (["engine.micro_batch_tokens=64"], "is less than one sequence"),
        (["engine.name=local"], "does not partition anything"),
        (["engine=local", "precision=bf16"], "no fp32 copy"),
        (["engine=zero0", "engine.offload=cpu"], "only state that ZeRO partitions"),
        (["engine.offload=nvme"], "needs a directory"),
        (["engine.offload=cpu", "engine.offload_dir=/var/tmp/x"], "other offloads have none"),
        (["engine.offload=nvme", "engine.offload_dir=/dev/shm/x"], "is on tmpfs, which is in memory"),
        (["checkpoint.keep_best=1", "eval=none"], "nothing is evaluated"),
        (["checkpoint.every_steps=5", "checkpoint.ephemeral_every_steps=5"], "is not below every_steps"),
        (["cluster.threads_per_rank=3"], "need 3 threads"),
        (
            ["cluster.procs_per_node=3", "train.tokens_per_step=3840"],
            "3 ranks requested, this machine has 2",
        ),
        (["cluster=gpu8"], "need as many GPUs"),
        (["name=a/b"], "cannot be the name"),
    ],
)
def test_impossible_combinations_are_refused(overrides, cause):
    found = problems_of(*overrides)
    assert [cause in problem.cause for problem in found] == [True], found
    assert found[0].remedy


def shared(ranks, *overrides):
    world = World(4, 4, "test")
    return resolved(f"engine.sequence_ranks={ranks}", *overrides, world=world, starts_here=False)


@pytest.mark.slow
def test_ranks_that_share_rows_take_more_of_them_at_once():
    alone, together = shared(1, "model.num_kv_heads=1"), shared(2, "model.num_kv_heads=1")
    assert together.micro_batch_size == 2 * alone.micro_batch_size
    assert together.grad_accum_steps == alone.grad_accum_steps
    assert together.sequences_per_step == alone.sequences_per_step
    assert "engine.sequence_ranks" in together.derivations["micro_batch_size"].formula


@pytest.mark.parametrize(
    ("ranks", "overrides", "cause"),
    [
        (3, ["model.num_heads=6", "model.num_kv_heads=6", "data.seq_len=96", "train.tokens_per_step=3840"],
         "4 ranks are not a whole number of groups"),
        (4, ["model.num_heads=8", "data.seq_len=130", "train.tokens_per_step=4160"],
         "cannot be divided among sequence_ranks"),
        (4, ["model.num_heads=12", "model.num_kv_heads=6"], "6 key/value heads cannot be divided equally"),
        (2, ["model.num_experts=4"], "balance of experts"),
        (2, ["model.layer_drop=0.1"], "drops whole rows"),
        (2, ["task=dpo"], "a loss per position"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_shared_are_refused(ranks, overrides, cause):
    with pytest.raises(ConfigProblems) as caught:
        shared(ranks, *overrides)
    (problem,) = (problem for problem in caught.value.problems if "sequence_ranks" in str(problem.where))
    assert cause in problem.cause
    assert problem.remedy


@pytest.mark.parametrize(
    ("ranks", "overrides", "cause"),
    [
        (2, [], "0 experts cannot be divided"),
        (3, ["model.num_experts=6"], "4 ranks are not a whole number of groups"),
        (4, ["model.num_experts=6"], "6 experts cannot be divided among expert_ranks 4"),
        (
            2,
            ["model.num_experts=4", "optim=muon", "engine=zero0"],
            "needs whole tensors of experts",
        ),
        (2, ["model.num_experts=4", "engine.offload=cpu"], "updated on the device"),
        (2, ["model.num_experts=4", "model.lora.rank=4", "model.init_from=x"], "frozen"),
        (2, ["model.num_experts=4"], None),
    ],
)
def test_experts_that_cannot_be_parted_are_refused(ranks, overrides, cause):
    problems = []
    try:
        world = World(4, 4, "test")
        resolved(f"engine.expert_ranks={ranks}", *overrides, world=world, starts_here=False)
    except ConfigProblems as caught:
        problems = [problem for problem in caught.problems if "expert_ranks" in str(problem.where)]
    assert [problem.cause for problem in problems if cause is None or cause not in problem.cause] == []
    assert all(problem.remedy for problem in problems)
    assert len(problems) == (cause is not None)


def test_combinations_and_typos_are_reported_together():
    problems = Problems()
    config = compose([*BASE, "model.hidden_size=193", "optim.lrr=1"], problems=problems)
    with pytest.raises(ConfigProblems) as caught:
        resolve(config, problems=problems)
    assert len(caught.value.problems) == 2


def test_a_mistyped_value_does_not_also_count_as_missing():
    problems = Problems()
    config = compose(["train.max_steps=abc", "data.seq_len=128"], problems=problems)
    with pytest.raises(ConfigProblems) as caught:
        resolve(config, problems=problems)
    assert [problem.where for problem in caught.value.problems] == ["train.max_steps"]


def test_a_step_larger_than_the_dataset_is_refused():
    facts = DatasetFacts(vocab_size=300, train_tokens=4000, valid_tokens=100, digest="d")
    (problem,) = problems_of(dataset=facts)
    assert "less than one step" in problem.cause


def test_a_compiled_block_is_gathered_as_a_whole(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: name)
    zero = resolved("engine=zero3", "engine.compile=true").deepspeed["zero_optimization"]
    block = ["distllm.models.layers.Block"]
    assert zero["leaf_module"] == {"classes": block, "names": [], "name_suffixes": []}


def test_an_eager_block_is_not_gathered_as_a_whole():
    zero = resolved("engine=zero3", "engine.compile=false").deepspeed["zero_optimization"]
    assert "leaf_module" not in zero, "DeepSpeed warns at every start when the list of classes is empty"


def test_compilation_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    (problem,) = problems_of("engine.compile=true")
    assert "C++ compiler" in problem.cause


@pytest.mark.parametrize(
    ("overrides", "cause"),
    [(["data=text"], "needs input files"), (["data.paths=[x]"], "takes no paths"),
     (["tokenizer.path=/nowhere"], "does not exist")],
)  # fmt: skip
def test_prepare_checks_its_input(overrides, cause):
    problems = Problems()
    check_prepare(compose(overrides), problems)
    assert [cause in problem.cause for problem in problems.found] == [True]


def explained(*overrides):
    composition = composition_of([*BASE, *overrides])
    return explanation(composition, resolve(composition.config))


def test_explain_names_the_override_the_file_and_the_schema():
    table = explained("optim.lr=0.1")
    assert table["optim.lr"]["detail"] == "optim.lr=0.1"
    assert "model=llama-tiny" in table["model.hidden_size"]["detail"]
    assert table["optim.beta1"]["from"] == "schema"


def test_explain_gives_the_derivation_with_its_inputs():
    text = render(select(explained(), "micro_batch_size"))
    assert "micro_batch_size = 8" in text
    assert "engine.micro_batch_tokens / data.seq_len" in text


def test_explain_covers_every_key_and_the_whole_deepspeed_json():
    table = explained()
    assert table["deepspeed.zero_optimization.stage"]["value"] == 2
    assert all(entry["detail"] for entry in table.values())


def test_explain_selects_groups_and_suggests():
    assert set(select(explained(), "schedule")) == {
        "schedule.name", "schedule.warmup_fraction", "schedule.final_lr_fraction", "schedule.decay_fraction",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="unknown key"):
        select(explained(), "optim.lrr")


def test_changes_carry_what_they_mean_for_a_resume():
    before = dataclasses.asdict(compose(BASE))
    after = dataclasses.asdict(compose([*BASE, "optim.lr=9", "model.num_layers=2", "eval.every_steps=7"]))
    assert {change.key: change.on_resume for change in changes(before, after)} == {
        "model.num_layers": "identity", "optim.lr": "schedule", "eval.every_steps": "cosmetic",
    }  # fmt: skip
    assert changes(before, before) == []


EXPLAINED = {
    "model=llama-tiny": ("8/3 x model.hidden_size 192", "model.hidden_size / model.num_heads = 192 / 6"),
    "model=bert-tiny": ("4 x model.hidden_size 192", "model.hidden_size / model.num_heads = 192 / 6"),
    "model=t5-small": ("model.intermediate_size", "model.head_dim"),
    "model=modernbert-tiny": (
        "model.intermediate_size",
        "model.hidden_size / model.num_heads = 192 / 6",
    ),
}


@pytest.mark.parametrize(("preset", "formulas"), EXPLAINED.items())
def test_the_widths_of_every_family_say_where_they_come_from(preset, formulas):
    task = {"llama": "causal_lm", "t5": "span_corruption"}.get(preset[6:].split("-")[0], "masked_lm")
    derived = resolved(preset, f"task={task}").derivations
    for name, formula in zip(("intermediate_size", "head_dim"), formulas, strict=True):
        assert derived[name].formula.startswith(formula)


def test_triton_kernels_are_refused_where_they_do_not_compute_what_is_asked():
    causes = [str(problem) for problem in problems_of("engine.kernels=triton", "model.positions=relative")]
    assert any("cluster.device is cpu" in cause for cause in causes)
    assert any("does not support a bias by distance" in cause for cause in causes)
    causes = [str(problem) for problem in problems_of("engine.kernels=triton")]
    assert any("has no head size" in cause for cause in causes)
