"""Times of the kernels on a GPU beside torch, torch.compile, FlashAttention, Liger and the prediction.

``PYTHONPATH=tests python tests/bench/kernel_speed.py`` prints a table and writes ``kernel_speed.json``; it is
part of ``make gpu-check``. A contestant counts only if it computes what the first one, torch's own, does: the
results and gradients are compared before anything is timed. What a machine lacks is a row that says so.
``--dry`` runs everything once on the CPU, in Triton's interpreter, at sizes that only show that it runs.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("kernel_speed.json")


@dataclass(frozen=True)
class Setting:
    """Where and at what sizes; ``rows`` are positions, ``compiler`` is torch.compile's backend."""

    device: str = "cuda"
    dtype: str = "bfloat16"
    batch: int = 2
    length: int = 8192
    heads: int = 16
    head_dims: tuple[int, ...] = (64, 128)
    rows: int = 16384
    channels: int = 4096
    turned_heads: int = 32
    inner: int = 11008
    vocabulary: int = 32768
    compiler: str = "inductor"
    tolerance: float = 0.05


DRY = Setting("cpu", "float32", 1, 48, 2, (64,), 6, 32, 2, 48, 70, "aot_eager", 1e-4)


def measure(setting, timer, gpu=None):
    """Return a row for each task and contestant.

    Args:
        setting: device and sizes.
        timer: returns the milliseconds of one call of what it is given.
        gpu: the entry of `gate.roofline` whose predictions stand beside our kernels, if there is one.
    """
    import torch
    from bench.kernel_tasks import AbsentError, tasks

    rows = []
    for task in tasks(setting):
        torch.manual_seed(0)
        inputs = task.inputs()
        expected = []
        for name, build in task.contestants.items():
            ours = name.startswith("distllm")
            row = {"task": task.name, "contestant": name}
            try:
                row |= compete(build, inputs, expected, timer, setting)
            except AbsentError as reason:
                row["absent"] = str(reason)
            except Exception as error:  # whatever a peer raises is its row; ours end the benchmark
                if ours:
                    raise
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
            if task.flops and "forward_ms" in row:
                row["forward_tflops"] = task.flops / row["forward_ms"] / 1e9
            rows.append(row | (task.predicted(gpu) if gpu is not None and ours else {}))
    return rows


def compete(build, inputs, expected, timer, setting):
    """Return what one contestant takes; ``expected`` is filled by the first one and binds the others.

    Some peers write gradients over their inputs: each gets copies.
    """
    made = build()
    with made if hasattr(made, "__enter__") else nullcontext(made) as function:
        own = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        found = results(function, own)
        expected.extend(found if not expected else ())
        off = difference(found, expected)
        assert off <= setting.tolerance, f"is {off:.1e} off what torch computes"
        return {"difference": off} | times(function, own, timer, setting)


def results(function, inputs):
    """Return the output and the gradients of what wants one, for an upstream gradient of known numbers."""
    import torch

    out = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.ones_like(out)
    if out.dim():
        upstream = torch.randn(out.shape, generator=generator).to(out)
    grads = torch.autograd.grad(out, [x for x in inputs if x.requires_grad], upstream)
    return [x.detach().clone() for x in (out, *grads)]


def difference(found, expected):
    """Return the largest difference as a share of the largest number."""
    pairs = zip(found, expected, strict=True)
    return max(((a.double() - b.double()).abs().max() / b.double().abs().max()).item() for a, b in pairs)


def times(function, inputs, timer, setting):
    """Return milliseconds of the forward pass and of both, and the most memory above the inputs."""
    import torch

    wanted = [x for x in inputs if x.requires_grad]
    upstream = torch.ones_like(function(*inputs))

    def both():
        torch.autograd.grad(function(*inputs), wanted, upstream)

    row = {"forward_ms": timer(lambda: function(*inputs)), "both_ms": timer(both)}
    if setting.device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        row["memory_mib"] = (torch.cuda.max_memory_allocated() - held) / 2**20
    return row


def wall(function):
    """Return the milliseconds of one call on the clock."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def on_the_device(function):
    """Return the median milliseconds of many calls on the GPU."""
    from triton.testing import do_bench

    return do_bench(function, return_mode="median")


def write(path, rows, setting):
    """Write the rows with what they were measured on."""
    import torch
    import triton

    about = {"device": "cpu", "torch": torch.__version__, "triton": triton.__version__}
    if setting.device == "cuda":
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def table(rows):
    """Return the rows as lines of Markdown."""
    lines = ["| task | contestant | forward, ms | both, ms | MiB | predicted, ms |", "|---" * 6 + "|"]
    for row in rows:
        if "forward_ms" not in row:
            cells = [row.get("absent") or row["failed"], "", "", ""]
        else:
            memory = f"{row['memory_mib']:.0f}" if "memory_mib" in row else ""
            spans = [row.get(f"predicted_{part}_ms") for part in ("forward", "both")]
            predicted = ", ".join(f"{low:.2f} - {high:.2f}" for low, high in filter(None, spans))
            cells = [f"{row['forward_ms']:.3f}", f"{row['both_ms']:.3f}", memory, predicted]
        lines.append(f"| {row['task']} | {row['contestant']} | {' | '.join(cells)} |")
    return lines


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="run once on the CPU, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    setting, timer = (DRY, wall) if options.dry else (Setting(), on_the_device)
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from gate import roofline

    if not options.dry and not torch.cuda.is_available():
        print("there is no CUDA device here; --dry runs on a CPU", file=sys.stderr)
        return 2
    gpu = roofline.GPUS[1] if options.dry else roofline.gpu_named(torch.cuda.get_device_name())
    rows = measure(setting, timer, gpu)
    write(options.out, rows, setting)
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
