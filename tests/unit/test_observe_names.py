from dataclasses import dataclass, field, replace

import pytest
from records import EVAL, STEP

from distllm.observe.goodput import CATEGORIES, Account
from distllm.observe.names import definitions, eval_values, reliability_values, step_values


def test_values_of_a_step():
    assert step_values(STEP) == {
        "train/loss": 7.5,
        "train/perplexity": pytest.approx(1808.04, abs=0.01),
        "train/lr": 1e-3,
        "train/grad_norm": 2.5,
        "perf/tokens_per_second": 1000.0,
        "perf/mfu": 0.5,
        "perf/overhead_fraction": 0.004,
        "perf/eta_seconds": 9.0,
        "data/wait_fraction": 0.25,
        "data/damaged_samples": 0,
        "sys/memory_bytes": 1024,
        "reliability/attempt": 1,
        "reliability/skipped_steps": 1,
        "reliability/rewinds": 0,
    }


def test_what_is_not_known_is_left_out():
    assert "perf/mfu" not in step_values(replace(STEP, mfu=None))
    assert "train/perplexity" not in step_values(replace(STEP, loss=float("nan")))
    assert "train/perplexity" not in step_values(replace(STEP, loss=1e6))


@dataclass(frozen=True)
class Detailed:
    step: int = 1
    tokens: int = 2
    loss: float = 3.0
    perplexity: float | None = None
    metrics: dict = field(default_factory=lambda: {"bleu": 31.5, "by source": {"wiki": 2.0}})


def test_measures_of_an_evaluation_carry_its_task_and_their_path():
    assert eval_values(EVAL, "translation")["eval/translation/bits_per_byte"] == 2.5
    assert eval_values(Detailed(), "t") == {
        "eval/t/loss": 3.0,
        "eval/t/metrics/bleu": 31.5,
        "eval/t/metrics/by source/wiki": 2.0,
    }


def test_reliability_so_far():
    seconds = dict.fromkeys(CATEGORIES, 0.0) | {"productive": 75.0, "restart": 25.0}
    values = reliability_values(Account(seconds, 3, 10, 4, {"killed": 2}, 2))
    assert values == {
        "reliability/goodput": 0.75,
        "reliability/ettr": 0.75,
        "reliability/lost_steps": 4,
        "reliability/restarts": 2,
        "reliability/mttf_seconds": 50.0,
    }
    assert "reliability/mttf_seconds" not in reliability_values(Account(seconds, 1, 1, 0, {}, 0))


def test_every_name_has_an_axis():
    patterns = [name.rstrip("*") for name, axis, _ in definitions("causal_lm") if axis]
    for name in [*step_values(STEP), *eval_values(EVAL, "causal_lm")]:
        assert any(name.startswith(pattern) for pattern in patterns), name
