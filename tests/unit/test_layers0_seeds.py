import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from distllm.seeds import derive_seed


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((0,), 4246866556266386882),
        ((0, "init", "layers.3"), 6312521042791887095),
        ((1, "init", "layers.3"), 2157589429243380227),
        ((2**63, "order", 7), 1101616551343839832),
    ],
)
def test_numbers_never_change(arguments, number):
    """Another number would mean other weights and another data order for every run resumed."""
    assert derive_seed(*arguments) == number


def test_every_part_of_the_path_and_its_order_counts():
    paths = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",), ("a", "a"), ("a", ""), ("", "a")]
    seeds = {derive_seed(seed, *path) for seed, path in product((0, 1, -1), paths)}
    assert len(seeds) == 3 * len(paths)


def test_a_number_and_its_text_are_different_streams():
    assert len({derive_seed(0, 1), derive_seed(0, "1"), derive_seed(0, 1, ""), derive_seed(1)}) == 4


def test_it_does_not_depend_on_the_process():
    script = "from distllm.seeds import derive_seed; print(derive_seed(5, 'init', 'embedding', 3))"
    command = [sys.executable, "-c", script]
    printed = {
        subprocess.run(command, env={"PYTHONHASHSEED": salt}, capture_output=True, check=True).stdout
        for salt in ("1", "2")
    }
    assert printed == {f"{derive_seed(5, 'init', 'embedding', 3)}\n".encode()}


def test_seeds_fit_every_generator_and_fill_their_63_bits_evenly():
    seeds = [derive_seed(0, "stream", index) for index in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds]).mean(axis=0)
    # five standard deviations of a fair coin thrown 2000 times
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / 2000**0.5
