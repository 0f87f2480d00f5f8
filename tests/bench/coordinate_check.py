"""The coordinate check of muP, drawn: how far activations move in the first steps, by width.

    python tests/bench/coordinate_check.py docs/coordinate-check.png

Decoders of widths 64 to 512 take a few Adam steps on one batch, with the standard parametrisation and
with muP of base width 64. A line is one step; level lines mean that a width trains like another.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from coordinates import STEPS, movements

WIDTHS = (64, 128, 256, 512)


def main(out: str) -> None:
    found = {mup: {width: movements(width, mup) for width in WIDTHS} for mup in (False, True)}
    names = list(found[True][WIDTHS[0]])
    figure, axes = plt.subplots(2, len(names), figsize=(3 * len(names), 5.4), sharex=True, sharey="col")
    for row, mup in zip(axes, (False, True), strict=True):
        for axis, name in zip(row, names, strict=True):
            for step in range(STEPS):
                values = [found[mup][width][name][step] for width in WIDTHS]
                axis.plot(
                    WIDTHS, values, marker="o", color=plt.cm.viridis(step / STEPS), label=f"step {step + 1}"
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_title(f"{name}, {'muP' if mup else 'standard'}", fontsize=9)
            growth = values[-1] / values[0]
            print(f"{'muP' if mup else 'standard':<10}{name:<14}last step, 512 over 64: {growth:.2f}")
    axes[0][0].set_ylabel("mean change of an activation")
    axes[1][0].set_ylabel("mean change of an activation")
    axes[1][0].set_xlabel("width")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


main(sys.argv[1])
