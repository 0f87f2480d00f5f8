import contextlib
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from distllm.units import format_bytes, format_count, parse_bytes, parse_count

DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "b": 1, "": 1}


@given(st.integers(0, 10**30))
def test_whole_numbers_are_exact_at_any_size(value):
    assert parse_count(str(value)) == parse_count(f"{value:_}") == parse_bytes(str(value)) == value


@given(st.decimals(0, 10**9, places=6), st.sampled_from(sorted(DECIMAL)), st.booleans())
def test_decimals_mean_exactly_what_they_say_or_are_refused(number, suffix, upper):
    exact = Fraction(number) * DECIMAL[suffix]
    text = f"{number:f}{suffix.upper() if upper else suffix.lower()}"
    try:
        assert parse_count(text) == exact
    except ValueError:
        assert exact.denominator != 1


@given(st.integers(0, 10**12), st.sampled_from(sorted(BINARY)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number, suffix, space):
    assert parse_bytes(f"{number}{space}{suffix}") == number * BINARY[suffix]


@given(st.integers(0, 10**16 - 10**13))
def test_a_shown_count_reads_back_within_half_a_percent(value):
    shown = format_count(value)
    assert "e" not in shown
    assert abs(parse_count(shown) - value) <= 0.005 * value


@given(st.integers(1, 999), st.integers(0, 4))
def test_three_digits_survive_showing(digits, thousands):
    assert parse_count(format_count(digits * 1000**thousands)) == digits * 1000**thousands


@given(st.integers(2, 2047), st.integers(1, 4))
def test_half_units_survive_showing(halves, power):
    value = halves * 1024**power // 2
    assert parse_bytes(format_bytes(value)) == value


@given(st.text("0123456789._-+ eEkKmMiIbBgGtTx\n٣²", max_size=12))
def test_any_text_is_a_number_or_a_value_error(text):
    for parse in (parse_count, parse_bytes):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
