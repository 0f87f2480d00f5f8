from dataclasses import replace

import numpy as np
import pytest
from prepared import write_sources

from distllm.commands.batches import _origins
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, resolve
from distllm.config.schema import Config
from distllm.config.schema_mixture import PhaseConfig
from distllm.config.schema_read import SourceConfig
from distllm.data.lengths import LengthWarmup
from distllm.data.manifest import Manifest
from distllm.data.mixture import (
    check_mixture,
    describe_order,
    lengths_of,
    open_stream,
    order_of,
    plan_digest,
    train_sources,
)
from distllm.data.order import SourceSamples
from distllm.data.stream import PackedSplit
from distllm.errors import ConfigError, ConfigProblems, DataError

SEQ_LEN, PER_STEP = 16, 4
SOURCES = (SourceSamples("a", (300,)), SourceSamples("b", (60, 40)), SourceSamples("short", (0,)))


def config_of(out="unused", *, data=None, mixture=None, **sources):
    """A configuration of four samples a step; sources by name as (weight, max_epochs)."""
    config = Config(seed=3)
    given = {name: SourceConfig(weight=pair[0], max_epochs=pair[1]) for name, pair in sources.items()}
    return replace(
        config,
        data=replace(config.data, out=str(out), seq_len=SEQ_LEN, sources=given, **(data or {})),
        train=replace(config.train, tokens_per_step=PER_STEP * SEQ_LEN, max_steps=50),
        mixture=replace(config.mixture, **(mixture or {})),
    )


def phases(*pairs):
    return {"phases": tuple(PhaseConfig(tokens, weights) for tokens, weights in pairs)}


def quotas(config):
    return [(phase.start, phase.quotas) for phase in order_of(config, SOURCES).phases]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixture")
    write_sources(
        directory,
        {
            "a": {"train": [[1] * 40] * 60, "valid": [[1] * 40]},
            "b": {"train": [[2] * 30] * 20, "valid": [[2] * 40]},
        },
        shard_bytes=500,
    )
    return directory


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, (3, 1, 0)),
        ({"a": (1, None), "b": (2, None)}, (1, 2, 0)),
        ({"b": (0, None)}, (1, 0, 0)),
        ({"b": (0.25, None)}, (3, 1, 0)),
        ({"a": (0.1, None), "b": (0.3, None)}, (1, 3, 0)),
    ],
)
def test_weights_are_relative_and_without_one_a_source_follows_its_size(sources, expected):
    assert quotas(config_of(**sources)) == [(0, expected)]


def test_temperature_flattens_the_sizes():
    (start, (a, b, _)) = quotas(config_of(mixture={"temperature": 2.0}))[0]
    assert start == 0
    assert a / b == pytest.approx(3**0.5, rel=1e-3)


def test_a_phase_begins_with_the_first_step_at_or_after_its_tokens():
    step = PER_STEP * SEQ_LEN
    mixture = phases((step, {"a": 1}), (step + 1, {"b": 0.5, "a": 0.5}), (5 * step, {"b": 1}))
    starts = [(PER_STEP, (1, 0, 0)), (2 * PER_STEP, (1, 1, 0)), (5 * PER_STEP, (0, 1, 0))]
    assert quotas(config_of(mixture=mixture)) == [(0, (3, 1, 0)), *starts]


def test_a_phase_at_zero_replaces_the_beginning_and_the_later_of_one_step_wins():
    mixture = phases((0, {"b": 1}), (1, {"a": 1}), (2, {"a": 1, "b": 1}))
    assert quotas(config_of(mixture=mixture)) == [(0, (0, 1, 0)), (PER_STEP, (1, 1, 0))]


@pytest.mark.parametrize(
    ("config", "cause", "where"),
    [
        (config_of(c=(1, None)), "no source 'c'", "data.sources.c"),
        (config_of(mixture=phases((0, {"bb": 1}))), "no source 'bb'", "mixture.phases[0].weights.bb"),
        (config_of(short=(1, None)), "too short for one sample", "data.sources.short"),
        (config_of(a=(0, None), b=(0, None)), "no source has a weight", "data.sources"),
        (config_of(mixture=phases((9, {}))), "no source has a weight", "mixture.phases[0].weights"),
        (
            config_of(mixture=phases((9, {"a": 1}), (9, {"a": 1}))),
            "follows the one from 9",
            "mixture.phases[1].from_tokens",
        ),
    ],
)
def test_impossible_mixtures_are_refused_by_name(config, cause, where):
    with pytest.raises(ConfigError, match=cause) as error:
        order_of(config, SOURCES)
    assert error.value.where == where
    assert error.value.remedy


def resolved_on(config, dataset):
    manifest = Manifest.load(dataset)
    facts = DatasetFacts(
        vocab_size=manifest.vocab_size,
        train_tokens=manifest.splits["train"].tokens,
        valid_tokens=manifest.splits["valid"].tokens,
        digest=manifest.digest,
    )
    config = replace(config, engine=replace(config.engine, name="local", zero_stage=0))
    return resolve(config, dataset=facts, starts_here=False), manifest


@pytest.mark.parametrize("packing", ["window", "greedy"])
def test_a_run_that_exceeds_the_epochs_of_a_source_is_refused_with_what_to_change(dataset, packing):
    config = config_of(dataset, data={"packing": packing}, a=(1, None), b=(1, 2.4))
    resolved, manifest = resolved_on(config, dataset)
    problems = Problems()
    check_mixture(resolved, manifest, problems)
    (problem,) = problems.found
    total = train_sources(manifest, config)[1].total
    assert f"goes through source b {100 / total:.2f} times (100 of its {total} samples)" in problem.cause
    assert problem.where == "data.sources.b.max_epochs"
    # as many steps as it advises are allowed, one more is not
    steps = int(problem.remedy.split("train.max_steps=")[1].split(")")[0])
    for number, refused in ((steps, 0), (steps + 1, 1)):
        shorter = replace(config, train=replace(config.train, max_steps=number))
        problems = Problems()
        check_mixture(resolved_on(shorter, dataset)[0], manifest, problems)
        assert len(problems) == refused


def test_a_wrong_mixture_is_one_of_the_problems(dataset):
    resolved, manifest = resolved_on(config_of(dataset, nope=(1, None)), dataset)
    problems = Problems()
    check_mixture(resolved, manifest, problems)
    with pytest.raises(ConfigProblems, match="1 problem"):
        problems.raise_if_any()
    assert problems.found[0].where == "data.sources.nope"


def test_sizes_from_the_manifest_are_those_of_the_split(dataset):
    for packing in ("window", "greedy", "best_fit"):
        config = config_of(dataset, data={"packing": packing})
        opened = PackedSplit(dataset, "train", SEQ_LEN, packing=packing).sources
        assert train_sources(Manifest.load(dataset), config) == opened


def test_the_stream_of_a_run_follows_its_configuration(dataset):
    keys = {"seq_len_start": 4, "seq_len_warmup": 1000, **phases((2 * PER_STEP * SEQ_LEN, {"b": 1}))}
    resolved, _ = resolved_on(config_of(dataset, mixture=keys, a=(1, None), b=(1, None)), dataset)
    _, stream = open_stream(resolved, 0, 1)
    steps = [np.concatenate([b.tokens_BT for b in stream.step(s * PER_STEP)]) for s in range(3)]
    (early,) = stream.step(0)
    stream.close()
    assert [{1, 2} & set(step.ravel().tolist()) for step in steps] == [{1, 2}, {1, 2}, {2}]
    assert early.positions_BT.max() == 3
    origins = _origins(stream.order, early)
    assert sorted(line.split(" sample ")[0] for line in origins) == ["a", "a", "b", "b"]
    assert all(line.endswith("epoch 1") for line in origins)
    lines = describe_order(stream.order, 12)
    assert [line.split(",")[0] for line in lines] == [
        "source a: 4 of 12 samples",
        "source b: 8 of 12 samples",
    ]


def test_the_digest_of_a_plan_forgives_the_future_only():
    step = PER_STEP * SEQ_LEN
    base = config_of(mixture=phases((10 * step, {"b": 1})))
    appended = config_of(mixture=phases((10 * step, {"b": 1}), (20 * step, {"a": 1})))
    changed = config_of(mixture=phases((10 * step, {"a": 1})))
    warmed = config_of(mixture={**base.mixture.__dict__, "seq_len_start": 4, "seq_len_warmup": 99})
    packed = config_of(data={"packing": "greedy"}, mixture=base.mixture.__dict__)

    def digests(config):
        order = order_of(config, SOURCES)
        return [plan_digest(config, order, samples * PER_STEP) for samples in (10, 11, 20, 21)]

    at = digests(base)
    assert [a == b for a, b in zip(at, digests(appended), strict=True)] == [True, True, True, False]
    assert [a == b for a, b in zip(at, digests(changed), strict=True)] == [True, False, False, False]
    for other in (warmed, packed):
        assert not set(digests(other)) & set(at)


def test_a_resume_with_another_past_is_refused_and_with_another_future_goes_on():
    from distllm.checkpoint.load import Found
    from distllm.train.resume import _check_plan

    step = PER_STEP * SEQ_LEN

    class Opened:
        """What a resume knows of the configuration and of the stream."""

        def __init__(self, config):
            self.config, self.order = config, order_of(config, SOURCES)

    before = Opened(config_of())
    facts = {"order": plan_digest(before.config, before.order, 40)}
    found = Found(10, "unused", 10, {"samples": 40}, facts)
    future, past = (Opened(config_of(mixture=phases((n * step, {"a": 1})))) for n in (10, 9))
    _check_plan(found, future, future)
    with pytest.raises(ConfigError, match="within the 40 samples") as error:
        _check_plan(found, past, past)
    assert "up to step 10" in error.value.remedy


def test_lengths_double_in_equal_parts_of_the_tokens():
    lengths = LengthWarmup(seq_len=64, start=8, tokens=30 * 64)
    length_N = lengths.length_at(np.arange(40)).tolist()
    assert length_N == [8] * 10 + [16] * 10 + [32] * 10 + [64] * 10
    firsts = [n for n in range(1, 40) if length_N[n] != length_N[n - 1]]
    assert lengths.prefix(40) == [8, *firsts]
    assert lengths.prefix(20) == [8, 10]
    assert lengths_of(config_of()) is None


@pytest.mark.parametrize(
    ("mixture", "data", "cause"),
    [
        ({"seq_len_start": 3, "seq_len_warmup": 9}, {}, "is not data.seq_len 16 over a power of two"),
        ({"seq_len_start": 16, "seq_len_warmup": 9}, {}, "is not data.seq_len 16 over a power of two"),
        ({"seq_len_start": 4}, {}, "needs both"),
        ({"seq_len_warmup": 4}, {}, "needs both"),
        ({"seq_len_start": 4, "seq_len_warmup": 9}, {"mask_documents": False}, "does nothing"),
    ],
)
def test_a_warm_up_that_cannot_work_is_refused(dataset, mixture, data, cause):
    with pytest.raises(ConfigProblems) as error:
        resolved_on(config_of(dataset, mixture=mixture, data=data), dataset)
    assert cause in str(error.value)


def test_a_source_of_pairs_is_no_stream_of_text(tmp_path):
    pairs = [([1, 2], [3])] * 9
    write_sources(tmp_path, {"p": {"train": pairs}}, fields={"p": ("source", "target")})
    with pytest.raises(DataError, match=r"source p of .* has documents of the fields source, target"):
        PackedSplit(tmp_path, "train", 4)
