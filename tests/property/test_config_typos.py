"""Every single-edit typo of every key is refused, and the remedy names the key that was meant."""

import string

import pytest

from distllm.config.compose import config_directories
from distllm.config.keys import is_key, keys
from distllm.config.overrides import Groups, accepted_overrides
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.registry import edit_distance

LETTERS = string.ascii_lowercase + "_."
KEYS = [key.replace("*", "wiki-2") for key in keys(Config)]  # a name in a mapping is free to choose
GROUPS = Groups.scan(config_directories(None))


def single_edits(word):
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    yield from (a + b[1:] for a, b in cuts if b)
    yield from (a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1)
    # One wrong letter per position is enough: the distance does not depend on which letter it is.
    for index, (a, b) in enumerate(cuts):
        letter = LETTERS[(index * 7 + len(word)) % len(LETTERS)]
        yield a + letter + b
        if b:
            yield a + letter + b[1:]


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow, id="every"), 13])
@pytest.mark.parametrize("key", [*KEYS, *GROUPS.choices])
def test_every_single_edit_of_a_key_gets_a_did_you_mean(key, stride):
    known = {*KEYS, *GROUPS.choices}
    tried = 0
    for typo in sorted({*single_edits(key)} - known)[len(key) % stride :: stride]:
        if not typo or typo.startswith("hydra.") or is_key(typo, keys(Config)):
            continue
        problems = Problems()
        accepted = accepted_overrides([f"{typo}=1"], GROUPS, problems)
        assert accepted == []
        (problem,) = problems.found
        assert "did you mean" in problem.remedy, typo
        suggestion = problem.remedy.split("'")[1]
        assert suggestion in known or is_key(suggestion, keys(Config))
        assert edit_distance(typo, suggestion) == 1, (typo, suggestion)
        tried += 1
    assert tried > 2 * len(key) / stride - 1
