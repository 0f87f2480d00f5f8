"""Efficiencies fitted on one published table (llm-foundry on H100), and on nothing else."""

from __future__ import annotations

from distllm.plan.machine import Efficiency

# `python tests/bench/planner_residuals.py fit` finds these again; a test holds them to it.
FITTED = Efficiency(gemm=1.0, operands=0.340, overlap=0.279)
