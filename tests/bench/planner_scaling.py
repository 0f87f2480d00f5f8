"""Draw scaling to 16 384 GPUs beside published points: ``python tests/bench/planner_scaling.py FILE.png``.

Left: MFU of llm-foundry's 7B and 70B models from 8 to 16 384 H100 as the planner sees them, and as
their table prints them to 512; Llama 3's 405B at 16 384 and Megatron's 462B at 6 144 for scale. Right: what
failures leave of the time, with the interval between checkpoints, and the times to failure that were
published.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from planner_tables import FIT, points

from distllm.plan.fitted import FITTED
from distllm.plan.goodput import expected_goodput

SIZES = [8 * 2**n for n in range(12)]
# Llama 3 (2024): 400 TFLOP/s per GPU at 8 192 and 380 at 16 384, of 989; Megatron: model_table.png.
OTHERS = {"Llama 3 405B": ([8192, 16384], [40.4, 38.4]), "Megatron 462B": ([6144], [46.5])}
# Kokolis et al. 2024: 7.9 h at 1 024 GPUs, 1.8 h projected at 16 384; Llama 3: 419 failures in 54 days.
MTTF = {"Meta, measured and projected": ([1024, 16384], [7.9, 1.8]), "Llama 3": ([16384], [54 * 24 / 419])}
NODE_MTTF_HOURS = 3690


def scaled(model):
    """Return (GPUs, MFU) of one model with its published micro-batch on every size."""
    row = next(p for p in points(FIT) if p.label.startswith(f"{model} 512 GPUs"))
    found = []
    for ranks in SIZES:
        point = replace(row, layout=replace(row.layout, ranks=ranks))
        found.append(point.predicted_mfu(FITTED))
    return SIZES, found


def published(model):
    rows = [p for p in points(FIT) if p.label.startswith(f"{model} ")]
    rows = [p for p in rows if p.layout.seq_len == 2048]
    return [p.layout.ranks for p in rows], [p.mfu for p in rows]


def failures(ranks, params=70e9, save_bandwidth=100e9, restart=300):
    return expected_goodput(
        nodes=ranks // 8,
        node_mttf_seconds=NODE_MTTF_HOURS * 3600,
        save_seconds=12 * params / save_bandwidth,
        restart_seconds=restart,
        busy_seconds=30 * 86400,
    )


def draw(path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for model, colour in (("7b", "tab:blue"), ("70b", "tab:orange")):
        left.plot(*scaled(model), color=colour, label=f"MPT {model}, planned")
        left.plot(*published(model), "o", color=colour, label=f"MPT {model}, published")
    for name, (sizes, values) in OTHERS.items():
        left.plot(sizes, values, "^", label=f"{name}, published")
    left.set(xscale="log", xlabel="H100", ylabel="MFU %", ylim=(0, 60), title="Utilisation")
    left.legend(fontsize=7)
    found = [failures(ranks) for ranks in SIZES]
    right.plot(SIZES, [one.fraction for one in found], label="goodput, 70B, 8 s to save, 300 s to restart")
    right.set(xscale="log", xlabel="H100", ylabel="share of time", ylim=(0, 1.02), title="Failures")
    hours = right.twinx()
    hours.plot(SIZES, [one.mttf_seconds / 3600 for one in found], "k--", label="time to failure, h")
    hours.plot(SIZES, [one.interval_seconds / 3600 for one in found], "k:", label="between checkpoints, h")
    for name, (sizes, values) in MTTF.items():
        hours.plot(sizes, values, "s", label=f"{name}: time to failure, h")
    hours.set(yscale="log", ylabel="hours")
    lines = [line for axis in (right, hours) for line in axis.get_lines()]
    right.legend(lines, [line.get_label() for line in lines], fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def table():
    """The plotted figures as Markdown."""
    lines = [
        "| H100 | MFU 7B | MFU 70B | time to failure h | between checkpoints min | goodput |",
        "|---|---|---|---|---|---|",
    ]
    for place, ranks in enumerate(SIZES):
        one = failures(ranks)
        small, large = scaled("7b")[1][place], scaled("70b")[1][place]
        lines.append(
            f"| {ranks} | {small:.1f} % | {large:.1f} % | {one.mttf_seconds / 3600:.2f} "
            f"| {one.interval_seconds / 60:.1f} | {one.fraction:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    draw(sys.argv[1])
    print(table())
