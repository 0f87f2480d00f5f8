"""Print the errors of the kernels, in low precision as a share of eager's, for docs/kernels.md.

Everything is compared with the definition in fp64; eager is the definition run in the same dtype.
Run as ``PYTHONPATH=tests python tests/bench/kernel_accuracy.py``; takes about a minute of CPU.
"""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from interp import attention_cases, pointwise_cases, rounding


def attention_row(case, dtype):
    """Return a row: shares of eager's error, and in fp32 the errors themselves."""
    case = attention_cases.Case(**{**case.__dict__, "dtype": dtype})
    problem = attention_cases.draw(case)
    exact = attention_cases.oracle(case, problem)
    found = attention_cases.errors(attention_cases.ours(case, problem), exact)
    names = ("out", "dq", "dk", "dv")
    if dtype == "float32":
        cells = [f"{found[name]:.0e}" for name in names]
    else:
        eager = attention_cases.oracle(case, problem, getattr(torch, dtype))
        eager = attention_cases.errors(eager, exact)
        cells = [f"{found[name] / eager[name]:.2f}" for name in names]
    return f"| {case} | {' | '.join(cells)} | {found['lse']:.0e} |"


def pointwise_cell(case, dtype):
    """Return the largest share of eager's error over outputs and gradients, and in fp32 the error itself."""
    tensors = pointwise_cases.draw(case, dtype)
    exact = pointwise_cases.evaluate(case, case.exact, tensors, torch.float64)
    found = pointwise_cases.errors(pointwise_cases.evaluate(case, case.ours, tensors, dtype), exact)
    if dtype == torch.float32:
        return f"{max(found):.0e}"
    eager = pointwise_cases.errors(pointwise_cases.evaluate(case, case.exact, tensors, dtype), exact)
    return f"{max(f / e for f, e in zip(found, eager, strict=True) if e):.2f}"


def main():
    """Print the tables."""
    rounding.install()
    print("| attention | out | dq | dk | dv | LSE, absolute |\n|---|---|---|---|---|---|")
    for case in attention_cases.LOW_CASES:
        for dtype in ("bfloat16", "float16", "float32"):
            print(attention_row(case, dtype), flush=True)
    print("\n| other kernels | bf16 | fp16 | fp32, absolute |\n|---|---|---|---|")
    for case in pointwise_cases.CASES:
        cells = [pointwise_cell(case, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
