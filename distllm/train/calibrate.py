"""Measuring this machine's CPUs for the planner, with the code that trains.

All ranks measure at the same time, so that shared caches and memory count. Arithmetic is timed in CPU
seconds, which do not grow when other programs use the cores; collectives in wall-clock seconds, the best of
several.

Shapes: B rows, T positions, C channels, N = B * T tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed
import torch.nn.functional as F

from distllm.cluster.local import run_ranks
from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.dist.collectives import barrier, sum_over_ranks
from distllm.dist.topology import Topology, destroy_process_group, init_process_group
from distllm.errors import LaunchError
from distllm.models.layers import Block, Context
from distllm.ops.attention import Pattern, attend, plan_attention
from distllm.ops.rope import rotation
from distllm.plan.blocks import element_traffic
from distllm.plan.calibration import FILE, Calibration, write_calibration
from distllm.plan.layout import Software
from distllm.plan.work import work_of

_COMMAND = ("-m", "distllm.train.calibrate")
_ROWS, _LENGTH, _WIDTH, _HEADS = 2, 512, 256, 8
_REPEATS = 5
_LARGE, _SMALL = 1 << 22, 1 << 8
_TIMEOUT = 600


def calibrate(threads: int, ranks: int, runs_dir: Path) -> Path:
    """Measure ``ranks`` ranks of ``threads`` threads at once; return the file with the result.

    Raises:
        LaunchError: a rank failed.
    """
    code = run_ranks([*_COMMAND, str(threads), str(runs_dir)], num_ranks=ranks, threads_per_rank=threads)
    if code:
        raise LaunchError(
            f"measuring ended with code {code}",
            where="distllm plan --calibrate",
            remedy="see the output above",
        )
    return runs_dir / FILE


def measure(threads: int, topology: Topology) -> Calibration:
    """Measure this rank among the others. Collective; every rank returns the mean of all."""
    torch.set_num_threads(threads)
    tokens = _ROWS * _LENGTH
    gemm = _gemm_flops(tokens)
    attention = _attention_flops(tokens)
    reduce_bandwidth, reduce_seconds = _all_reduce_cost(topology)
    own = (gemm, attention, _bandwidth(tokens, gemm, attention), _update_bandwidth())
    # per CPU second, of which a rank has as many in a second as threads
    mean = [threads * total / topology.world_size for total in sum_over_ranks(own, topology)]
    return Calibration(
        threads=threads,
        ranks=topology.world_size,
        gemm_flops=mean[0],
        attention_flops=mean[1],
        memory_bandwidth=mean[2],
        update_bandwidth=mean[3],
        reduce_bandwidth=reduce_bandwidth,
        reduce_seconds=reduce_seconds,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the least CPU seconds of ``work`` over several calls, of all threads together."""
    work()
    found = []
    for _ in range(_REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def _gemm_flops(tokens: int) -> float:
    """The products of a block, forward and backward, in FLOPs per CPU second."""
    widths = [(_WIDTH, 3 * _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 6 * _WIDTH), (3 * _WIDTH, _WIDTH)]
    weights = [torch.randn(outer, inner, requires_grad=True) for inner, outer in widths]
    inputs = [torch.randn(tokens, inner, requires_grad=True) for inner, _ in widths]
    grads = [torch.randn(tokens, outer) for _, outer in widths]

    def work() -> None:
        for x_NC, weight, grad in zip(inputs, weights, grads, strict=True):
            torch.autograd.grad(F.linear(x_NC, weight), (x_NC, weight), grad)

    return 6.0 * tokens * sum(inner * outer for inner, outer in widths) / _seconds(work)


def _attention_flops(tokens: int) -> float:
    """Causal attention, forward and backward, by the count of `distllm.plan.blocks`."""
    size = (_ROWS, _LENGTH, _HEADS, _WIDTH // _HEADS)
    q, k, v = (torch.randn(size, requires_grad=True) for _ in range(3))
    grad = torch.randn(size)
    plan = plan_attention(_one_document(), torch.device("cpu"))
    pattern = Pattern(causal=True)
    seconds = _seconds(lambda: torch.autograd.grad(attend(q, k, v, plan, pattern), (q, k, v), grad))
    return 3.5 * 4 * tokens * (_LENGTH / 2) * _WIDTH / seconds


def _bandwidth(tokens: int, gemm: float, attention: float) -> float:
    """The rest of a block, without matrix products and attention, in planner bytes per second."""
    shape = settle_shape(
        ModelConfig(hidden_size=_WIDTH, num_layers=1, num_heads=_HEADS, intermediate_size=3 * _WIDTH),
        _WIDTH,
        _LENGTH,
    )
    block = Block(shape, 0, 1, causal=True, cross=False)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    x_BTC = torch.randn(_ROWS, _LENGTH, _WIDTH, requires_grad=True)
    positions = torch.arange(_LENGTH).expand(_ROWS, _LENGTH)
    turns = rotation(positions, shape.head_dim, shape.rope_theta, torch.float32)
    context = Context(plan_attention(_one_document(), torch.device("cpu")), turns)
    wanted = (x_BTC, *block.parameters())
    grad = torch.randn_like(x_BTC)
    seconds = _seconds(lambda: torch.autograd.grad(block(x_BTC, context), wanted, grad))
    work = work_of(shape)
    products = 6.0 * tokens * (work.attention_params + work.mlp_params) / gemm
    attended = 3.5 * 4 * tokens * (_LENGTH / 2) * _WIDTH / attention
    rest = max(seconds - products - attended, 0.05 * seconds)
    return 2.5 * element_traffic(work, Software(element_bytes=4)) * tokens / rest


def _update_bandwidth() -> float:
    """The fused optimizer, in the planner's bytes per CPU second."""
    weight = torch.nn.Parameter(torch.randn(_LARGE))
    weight.grad = torch.randn(_LARGE)
    optimizer = torch.optim.AdamW([weight], fused=True)
    return Software().update_bytes * _LARGE / _seconds(optimizer.step)


def _all_reduce_cost(topology: Topology) -> tuple[float, float]:
    """Return the bandwidth of a link and the latency of half an all-reduce, as the planner counts them."""
    if topology.world_size == 1:
        return 1e12, 0.0
    seconds = {}
    for size in (_SMALL, _LARGE):
        buffer, found = torch.zeros(size), []
        for _ in range(_REPEATS):
            barrier(topology)
            start = time.perf_counter()
            torch.distributed.all_reduce(buffer)
            found.append(time.perf_counter() - start)
        seconds[size] = min(found)
    moved = 2 * 4 * _LARGE * (topology.world_size - 1) / topology.world_size
    bandwidth = moved / max(seconds[_LARGE] - seconds[_SMALL], 1e-6)
    mean = sum_over_ranks([bandwidth, seconds[_SMALL] / 2], topology)
    return mean[0] / topology.world_size, mean[1] / topology.world_size


def _one_document() -> torch.Tensor:
    return torch.zeros(_ROWS, _LENGTH, dtype=torch.int64)


def main(threads: int, runs_dir: Path) -> None:
    """Run one measuring rank; rank 0 writes the file."""
    topology = Topology.from_environment()
    init_process_group(topology, _TIMEOUT)
    try:
        found = measure(threads, topology)
        if topology.is_main:
            write_calibration(runs_dir, found)
    finally:
        destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
