"""Every mistake of `interp/mutants.py` is found by the cases the kernels are tested with."""

import pytest
import torch
from interp import attention_cases, mutants, pointwise_cases
from interp.mutation import mutated
from triton.runtime.errors import InterpreterError

FOUND = (AssertionError, InterpreterError)  # a wrong number, or the sanitizer


def label(mutant):
    return f"{mutant[0].split('.')[1]}: {mutant[2].strip() or mutant[1].strip()}"[:70]


def from_case(cases, first):
    return [*cases[first:], *cases[:first]]


def is_killed(check, cases):
    for case in cases:
        try:
            check(case)
        except FOUND:
            return True
    return False


def check_attention(case):
    problem = attention_cases.draw(case)
    found = attention_cases.errors(
        attention_cases.ours(case, problem, order=7), attention_cases.oracle(case, problem)
    )
    assert max(found.values()) <= 2e-5


def check_pointwise(case):
    tensors = pointwise_cases.draw(case, torch.float32)
    found = pointwise_cases.evaluate(case, case.ours, tensors, torch.float32, order=3)
    found = pointwise_cases.errors(found, pointwise_cases.evaluate(case, case.exact, tensors, torch.float64))
    assert max(found) <= 2e-5


def test_there_are_enough_of_them():
    every = [*mutants.ATTENTION, *mutants.POINTWISE]
    assert len({mutant[:3] for mutant in every}) == len(every) >= 40


@pytest.mark.parametrize("mutant", mutants.ATTENTION, ids=label)
def test_attention_mutant_is_killed(mutant):
    *change, first = mutant
    with mutated(*change):
        assert is_killed(check_attention, from_case(attention_cases.EXACT_CASES, first))


@pytest.mark.parametrize("mutant", mutants.POINTWISE, ids=label)
def test_pointwise_mutant_is_killed(mutant):
    *change, first = mutant
    with mutated(*change):
        assert is_killed(check_pointwise, from_case(pointwise_cases.CASES, first))


def test_a_change_that_is_no_mistake_survives():
    with mutated("pointwise.gated", "value = x * gate", "value = gate * x"):
        assert not is_killed(check_pointwise, pointwise_cases.CASES[7:8])
    with mutated("attention.forward", "seen_by_all = keys\n", "seen_by_all = keys + 0\n"):
        assert not is_killed(check_attention, attention_cases.EXACT_CASES[:2])
