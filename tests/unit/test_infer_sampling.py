"""What each filter leaves of a distribution, and that a seed settles a draw."""

import collections

import pytest
import torch

from distllm.infer.sampling import Sampling, draw_rows, penalised

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05], dtype=torch.float64).log()


def draw(logits, past, sampling, seed):
    return draw_rows(logits[None], [past], sampling, [seed])[0]


def drawn(draws=400, past=(), **options):
    sampling = Sampling(temperature=options.pop("temperature", 1.0), **options)
    return collections.Counter(draw(LOGITS.clone(), past, sampling, seed) for seed in range(draws))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 1}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.5}, {1, 2, 3}),
        ({"min_p": 0.7}, {1}),
        ({"min_p": 0.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 4, "min_p": 0.3}, {1, 2, 3}),
        ({"top_p": 0.9, "top_k": 3}, {1, 2, 3}),
        ({"temperature": 0.0}, {1}),
    ],
)
def test_filters_keep_the_likeliest(options, kept):
    assert set(drawn(**options)) == kept


def test_temperature_sharpens():
    cold, warm = drawn(temperature=0.3), drawn(temperature=3.0)
    assert cold[1] > drawn()[1] > warm[1]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-5])
def test_next_to_no_temperature_takes_the_likeliest(temperature):
    far = torch.tensor([1e30, 3e30, -1e30], dtype=torch.float64)
    assert {draw(far, (), Sampling(temperature=temperature), seed) for seed in range(9)} == {1}


def test_a_seed_settles_a_draw():
    sampling = Sampling(temperature=1.0)
    first = [draw(LOGITS, (), sampling, seed) for seed in range(30)]
    assert first == [draw(LOGITS, (), sampling, seed) for seed in range(30)]
    assert len(set(first)) > 1


def test_what_was_said_is_less_likely_whatever_its_sign():
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalised(logits, [0, 1, 0, 99], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert penalised(logits, [0, 1], 1.0) is logits
    assert torch.equal(logits, torch.tensor([2.0, -2.0, 1.0]))


def test_a_penalty_changes_the_likeliest():
    sampling = Sampling(repetition_penalty=5.0)
    assert draw(LOGITS, [1], sampling, 0) == 3
    assert draw(LOGITS, [1, 3], sampling, 0) == 2


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_what_is_not_finite(value, options):
    spoiled = LOGITS.index_fill(0, torch.tensor([3]), value)
    with pytest.raises(ValueError, match="not finite"):
        draw_rows(torch.stack([LOGITS, spoiled]), [(), ()], Sampling(temperature=1.0, **options), [1, 2])
