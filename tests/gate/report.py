"""``PYTHONPATH=tests python -m gate.report``: what the compiler made of the kernels, for docs/kernels.md."""

from __future__ import annotations

import sys
from collections import defaultdict

from gate.rules import Measured, load_table

ARCHITECTURES = (80, 90, 100, 120)


def attention_table() -> list[str]:
    """Return rows of packed causal attention in bf16: registers, shared memory, matrix instructions."""
    cells: dict[tuple[int, str], dict[int, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for row in load_table():
        name, _, features = row.case.partition(", ")
        if name.startswith("attention") and name.endswith("bf16") and features == "causal, packed":
            key = int(name.split()[1]), row.measured.kernel.removesuffix("_kernel")
            cells[key][row.measured.arch].append(row.measured)
    return [
        f"| {width}, {kernel} | " + " | ".join(_cell(by_arch[arch]) for arch in ARCHITECTURES) + " |"
        for (width, kernel), by_arch in sorted(cells.items())
    ]


def summary() -> list[str]:
    """Return a row for each kernel over all its cases: how many, most registers, most shared memory."""
    found: dict[str, list[Measured]] = defaultdict(list)
    for row in load_table():
        found[row.measured.kernel.removesuffix("_kernel")].append(row.measured)
    lines = []
    for kernel, rows in sorted(found.items()):
        registers = sorted(row.registers for row in rows)
        shared, spilled = max(row.shared for row in rows), max(row.stack for row in rows)
        span = f"{registers[0]} - {registers[-1]}"
        lines.append(f"| {kernel} | {len(rows)} | {span} | {shared / 1024:.0f} KiB | {spilled} |")
    return lines


def _cell(rows: list[Measured]) -> str:
    texts = []
    for row in rows:
        tma = f", TMA {row.tma}" if row.tma else ""
        texts.append(f"{row.registers}, {row.shared / 1024:.0f} KiB, {row.matrix}{tma}")
    return " and ".join(texts) or "-"


def main() -> int:
    """Print both tables."""
    heads = " | ".join(f"sm_{arch}" for arch in ARCHITECTURES)
    print(f"| head size, kernel | {heads} |\n" + "|---" * (1 + len(ARCHITECTURES)) + "|")
    print("\n".join(attention_table()))
    print(
        "\n| kernel | compiled | registers | shared memory, at most | spilled bytes |\n|---|---|---|---|---|"
    )
    print("\n".join(summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
