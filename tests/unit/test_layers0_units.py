import pytest

from distllm.units import format_bytes, format_count, format_duration, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("1_000_000", 10**6),
        ("1.5M", 1_500_000),
        ("2B", 2 * 10**9),
        ("2g", 2 * 10**9),
        ("3 k", 3000),
        ("  0.5T ", 5 * 10**11),
        ("1e6", 10**6),
        ("2.5e3k", 2_500_000),
        ("0", 0),
        # 1.001 * 1000 and 0.1 * 3e16 are no whole numbers in floating point
        ("1.001k", 1001),
        ("9007199254.740993G", 9_007_199_254_740_993_000),
    ],
)
def test_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        ("512b", 512),
        ("10MB", 10**7),
        ("64MiB", 64 * 2**20),
        ("1.5KiB", 1536),
        ("2 tib", 2 * 2**40),
        ("0.25GB", 250_000_000),
    ],
)
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "k", "-5", "+5", "1.5.2", "5x", "1 2", ".5k", "5.", "_5", "1,000", "nan", "0x10", "5MiB"],
)
def test_what_is_no_count_is_quoted_with_an_example(text):
    with pytest.raises(ValueError) as caught:
        parse_count(text)
    assert str(caught.value) == f"{text!r} is not a count such as 4096, 1.5M or 2B"


@pytest.mark.parametrize("text", ["10M", "5k", "1Kib2", "MB", "-1MB", "64 Mi B"])
def test_what_is_no_size_is_quoted_with_an_example(text):
    with pytest.raises(ValueError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a size such as 10MB or 64MiB"


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_count, "1.5"), (parse_count, "1.0005k"), (parse_bytes, "1.3KiB")]
)
def test_parts_of_a_unit_are_refused(parse, text):
    with pytest.raises(ValueError, match=f"'{text}' is not a whole number"):
        parse(text)


@pytest.mark.parametrize("text", ["1e400M", "1e999999999"])
def test_an_absurd_exponent_is_refused_and_not_computed(text):
    with pytest.raises(ValueError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (0.1234, "0.1234"),
        (1000, "1k"),
        (1_234_567, "1.23M"),
        (-1_500, "-1.5k"),
        (8e9, "8B"),
        (2.5e12, "2.5T"),
        (1e15, "1000T"),
    ],
)
def test_counts_are_shown_with_three_digits(value, shown):
    assert format_count(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(999.96, "1k"), (999_700, "1M"), (999_999_999, "1B")])
def test_a_count_that_rounds_up_takes_the_next_suffix(value, shown):
    assert format_count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (-(2**20), "-1.0 MiB"),
        (7.25 * 2**30, "7.2 GiB"),
        (2**40, "1.0 TiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_shown_in_powers_of_two(value, shown):
    assert format_bytes(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (61, "1m01s"),
        (3599.7, "1h00m00s"),
        (3725.4, "1h02m05s"),
        (100 * 3600, "100h00m00s"),
    ],
)
def test_durations(seconds, shown):
    assert format_duration(seconds) == shown
