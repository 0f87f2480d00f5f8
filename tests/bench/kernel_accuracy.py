"""Print the errors of the kernels in low precision as a share of eager's, for docs/kernels.md.

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


def main():
    rounding.install()
    print("| attention | out | dq | dk | dv | LSE, absolute |\n|---|---|---|---|---|---|")
    for case in attention_cases.LOW_CASES:
        for dtype in ("bfloat16", "float16"):
            case = attention_cases.Case(**{**case.__dict__, "dtype": dtype})
            problem = attention_cases.draw(case)
            exact = attention_cases.oracle(case, problem)
            found = attention_cases.errors(attention_cases.ours(case, problem), exact)
            eager = attention_cases.oracle(case, problem, getattr(torch, dtype))
            eager = attention_cases.errors(eager, exact)
            ratios = [f"{found[name] / eager[name]:.2f}" for name in ("out", "dq", "dk", "dv")]
            print(f"| {case} | {' | '.join(ratios)} | {found['lse']:.0e} |", flush=True)
    print("\n| other kernels, bf16 | largest ratio over outputs and gradients |\n|---|---|")
    for case in pointwise_cases.CASES:
        tensors = pointwise_cases.draw(case, torch.bfloat16)
        runs = [(case.exact, torch.float64), (case.ours, torch.bfloat16), (case.exact, torch.bfloat16)]
        exact, *low = [pointwise_cases.evaluate(case, function, tensors, dtype) for function, dtype in runs]
        found, eager = (pointwise_cases.errors(result, exact) for result in low)
        ratio = max(f / e for f, e in zip(found, eager, strict=True) if e)
        print(f"| {case} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
