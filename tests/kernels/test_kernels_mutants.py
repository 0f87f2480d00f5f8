"""Every mistake of `interp/mutants.py` is found by the cases the kernels are tested with.

Each is made in a process of its own: a wrong address may write where it ends the process, or harms a
later test. A process that dies by a signal has found its mistake, too.
"""

import multiprocessing
import os

import pytest
import torch
from interp import attention_cases, mutants, pointwise_cases
from interp.mutation import mutated
from triton.runtime.errors import InterpreterError

FOUND = (AssertionError, InterpreterError)  # a wrong number, or the sanitizer


FORK = multiprocessing.get_context("fork")
KILLED, SURVIVED = 0, 3


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


def judge(change, check, cases):
    with mutated(*change):
        found = is_killed(check, cases)
    os._exit(KILLED if found else SURVIVED)


def is_killed_elsewhere(change, check, cases):
    child = FORK.Process(target=judge, args=(change, check, cases))
    child.start()
    child.join()
    assert child.exitcode in (KILLED, SURVIVED) or child.exitcode < 0, "the test itself failed"
    return child.exitcode != SURVIVED


def test_there_are_enough_of_them():
    every = [*mutants.ATTENTION, *mutants.POINTWISE]
    assert len({mutant[:3] for mutant in every}) == len(every) >= 40


@pytest.mark.parametrize("mutant", mutants.ATTENTION, ids=label)
def test_attention_mutant_is_killed(mutant):
    *change, first = mutant
    assert is_killed_elsewhere(change, check_attention, from_case(attention_cases.EXACT_CASES, first))


@pytest.mark.parametrize("mutant", mutants.POINTWISE, ids=label)
def test_pointwise_mutant_is_killed(mutant):
    *change, first = mutant
    assert is_killed_elsewhere(change, check_pointwise, from_case(pointwise_cases.CASES, first))


def test_a_change_that_is_no_mistake_survives():
    with mutated("pointwise.gated", "value = x * gate", "value = gate * x"):
        assert not is_killed(check_pointwise, pointwise_cases.CASES[7:8])
    with mutated("attention.forward", "seen_by_all = keys\n", "seen_by_all = keys + 0\n"):
        assert not is_killed(check_attention, attention_cases.EXACT_CASES[:2])
