"""Values that the preview reads itself are read as Hydra's grammar reads them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from distllm.config.compose import compose, forced
from distllm.config.preview import _PLAIN, _value

PARSER = OverridesParser.create()
PIECES = [
    "a",
    "B",
    "e",
    "E",
    "0",
    "7",
    "10",
    "-",
    "+",
    ".",
    "_",
    "/",
    "true",
    "True",
    "null",
    "NULL",
    "inf",
    "nan",
]


@given(st.lists(st.sampled_from([*PIECES, "[", "]", ","]), max_size=6).map("".join))
def test_plain_values_mean_what_they_mean_to_hydra(text):
    if not _PLAIN.fullmatch(text):
        return
    parsed = PARSER.parse_override(f"key={text}")
    assert not parsed.is_sweep_override()
    assert repr(_value(text)) == repr(parsed.value())


@given(st.lists(st.sampled_from(PIECES[:13]), min_size=1, max_size=4).map("".join))
def test_every_name_reaches_hydra_under_its_own_spelling(name):
    override = forced(f"data.sources.{name}.weight=2")
    if not name.isascii() or set(name) & set("./+") or name.startswith("-"):
        return
    parsed = PARSER.parse_override(override)
    key, value = parsed.key_or_group, parsed.value()
    rest = key.removeprefix("data").split(".")[1:]
    while isinstance(value, dict):
        ((part, value),) = value.items()
        rest.append(part)
    # A number in scientific notation is all that Hydra cannot be told; the name is then refused.
    assert rest == ["sources", name, "weight"] or isinstance(rest[1], float)
    assert value == 2


@pytest.mark.parametrize("name", ["wiki", "wiki-2", "20news", "007", "2024", "_x"])
def test_names_survive_the_composition(name):
    assert list(compose([f"data.sources.{name}.weight=2"]).data.sources) == [name]
