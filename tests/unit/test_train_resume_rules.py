"""What may differ when a run goes on, and what makes it another experiment."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from distllm.checkpoint.load import Found
from distllm.config.resolve import World, resolve
from distllm.config.schema import Config
from distllm.errors import CheckpointError, ConfigError
from distllm.train.resume import check_configuration, check_resume
from distllm.train.run_directory import RunDirectory

WHERE = Path("runs/one")
BEFORE = Config(train=replace(Config().train, max_steps=10))


def resume_as(after, *, allow=False):
    return check_configuration(asdict(BEFORE), after, WHERE, allow_schedule=allow)


def test_an_unchanged_configuration_resumes_silently():
    assert resume_as(BEFORE) == []


def test_changes_of_schedule_and_place_are_listed():
    after = replace(
        BEFORE,
        optim=replace(BEFORE.optim, lr=0.5),
        logger=replace(BEFORE.logger, console=False),
    )
    assert resume_as(after, allow=True) == [
        "schedule change since the checkpoint: optim.lr: 0.001 -> 0.5",
        "cosmetic change since the checkpoint: logger.console: True -> False",
    ]


def test_another_schedule_needs_to_be_allowed():
    after = replace(
        BEFORE,
        optim=replace(BEFORE.optim, lr=0.5),
        schedule=replace(BEFORE.schedule, warmup_fraction=0.5),
        logger=replace(BEFORE.logger, console=False),
    )
    with pytest.raises(ConfigError) as caught:
        resume_as(after)
    assert caught.value.cause.endswith(
        "in the middle of the run: optim.lr: 0.001 -> 0.5; schedule.warmup_fraction: 0.02 -> 0.5"
    )
    assert "--allow" in caught.value.remedy


def test_a_change_of_place_needs_no_permission():
    after = replace(BEFORE, logger=replace(BEFORE.logger, console=False), runs_dir="elsewhere")
    assert len(resume_as(after)) == 2


@pytest.mark.parametrize("allow", [False, True])
def test_another_experiment_is_refused_with_every_reason(allow):
    after = replace(
        BEFORE,
        seed=3,
        model=replace(BEFORE.model, num_layers=2),
        optim=replace(BEFORE.optim, lr=0.5),
    )
    with pytest.raises(ConfigError) as caught:
        resume_as(after, allow=allow)
    assert caught.value.cause.endswith("another experiment: seed: 0 -> 3; model.num_layers: 8 -> 2")
    assert caught.value.where == str(WHERE)


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (replace(BEFORE, tokenizer=replace(BEFORE.tokenizer, vocab_size=999)), "tokenizer.vocab_size"),
        (replace(BEFORE, data=replace(BEFORE.data, seq_len=7)), "data.seq_len: "),
        (replace(BEFORE, model=replace(BEFORE.model, hidden_size=8)), "model.hidden_size: "),
    ],
)
def test_model_tokenizer_and_data_are_what_a_run_is(after, change):
    with pytest.raises(ConfigError, match="another experiment") as caught:
        resume_as(after, allow=True)
    assert change in caught.value.cause


def test_another_dataset_is_refused_by_its_digest(tmp_path):
    resolved = resolve(BEFORE, world=World(1, 1, "test"), starts_here=False)
    found = Found(3, tmp_path, 3, {"samples": 8}, {"config": asdict(BEFORE), "dataset": "e", "order": "o"})
    with pytest.raises(ConfigError, match="the dataset changed: d instead of e"):
        check_resume(found, resolved, RunDirectory(tmp_path), SameDataset(), None, allow_schedule=True)


class SameDataset:
    """As much of a manifest as a resume asks for."""

    digest = "d"

    def follows(self, digest):
        return digest == "d"


def test_a_checkpoint_of_a_version_that_noted_no_order_is_not_guessed_about(tmp_path):
    resolved = resolve(BEFORE, world=World(1, 1, "test"), starts_here=False)
    facts = {"config": asdict(BEFORE), "dataset": "d"}
    found = Found(3, tmp_path, 3, {"samples": 8}, facts)
    with pytest.raises(CheckpointError, match="an older version wrote it") as caught:
        check_resume(found, resolved, RunDirectory(tmp_path), SameDataset(), None, allow_schedule=False)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("policy", "error", "cause"),
    [("must", CheckpointError, "no checkpoint to resume from"), ("auto", None, "")],
)
def test_without_a_checkpoint_only_must_is_an_error(tmp_path, policy, error, cause):
    config = replace(BEFORE, checkpoint=replace(BEFORE.checkpoint, resume=policy))
    resolved = resolve(config, world=World(1, 1, "test"), starts_here=False)
    ask = partial(
        check_resume, None, resolved, RunDirectory(tmp_path), SameDataset(), None, allow_schedule=False
    )
    if error is None:
        assert ask() == []
        return
    with pytest.raises(error, match=cause):
        ask()
