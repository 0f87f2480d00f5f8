"""SLURM's host lists: reading what was written gives the same hosts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.cluster.hostlist import compress, expand
from distllm.errors import ConfigError

hosts = st.from_regex(r"[a-z]{1,4}(-[a-z]{1,3})?[0-9]{0,4}", fullmatch=True)


@given(st.sets(hosts, max_size=40))
def test_expanding_what_was_compressed_gives_the_same_hosts(names):
    assert set(expand(compress(names))) == names


@given(st.sets(hosts, max_size=20))
def test_compressing_is_stable(names):
    once = compress(names)
    assert compress(expand(once)) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("a,b[2],c-x", ["a", "b2", "c-x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_notation(text, expected):
    assert expand(text) == expected


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[3-1]", "n[a-b]", "n[[1]]", "n[1-999999]", "n[1-]"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ConfigError, match="not a list of hosts"):
        expand(text)


def test_compress_keeps_widths_apart():
    assert compress(["n1", "n2", "n3", "n07", "login"]) == "login,n[1-3],n07"
