"""What `kernel_speed` measures: each task's inputs, who computes it, and what ours should take.

Shapes: B rows, T positions, H heads, D head width, N positions, C channels, I MLP width, V vocabulary.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from gate import roofline
from torch.nn.attention import SDPBackend, sdpa_kernel

from distllm.config.attention import BACKENDS
from distllm.kernels import reference
from distllm.kernels.attention import launch
from distllm.kernels.attention.op import attention
from distllm.kernels.pointwise import op
from distllm.ops.backend import machine_of

EPS = 1e-5
LIGER = "pip install --no-deps -r tests/bench/peers/liger-kernel.lock"


class AbsentError(Exception):
    """This machine cannot run a contestant."""


@dataclass(frozen=True)
class Task:
    """One comparison.

    ``contestants`` build a function of the inputs, or a context that gives one; the first is the definition.
    """

    name: str
    inputs: Callable
    contestants: dict[str, Callable]
    predicted: Callable = field(default=lambda gpu: {})
    flops: float = 0.0


def tasks(setting):
    """Yield what is measured."""
    for head_dim in setting.head_dims:
        yield attention_task(setting, head_dim)
    yield norm_task(setting)
    yield layer_norm_task(setting)
    yield rope_task(setting)
    yield from (gated_task(setting, name) for name in ("silu", "gelu_tanh"))
    yield cross_entropy_task(setting)


def tensors(setting, *sizes, grads=None):
    """Return random tensors, all of which want a gradient unless ``grads`` says which."""
    made = []
    for place, size in enumerate(sizes):
        x = torch.randn(size, device=setting.device, dtype=getattr(torch, setting.dtype))
        made.append(x.requires_grad_(grads is None or place in grads))
    return made


def compiled(setting, function):
    return lambda: torch.compile(function, backend=setting.compiler, fullgraph=True)


def liger(setting):
    """Return Liger's functions; Triton's interpreter does not run them."""
    needs_a_gpu(setting, None)
    try:
        from liger_kernel.transformers import functional
    except ImportError as error:
        raise AbsentError(f"liger-kernel is not installed: {LIGER}") from error
    return functional


def attention_task(setting, head_dim):
    size = (setting.batch, setting.length, setting.heads, head_dim)
    shape = (setting.length, setting.heads, setting.batch)

    def predicted(gpu):
        times = roofline.attention_times(gpu, head_dim, *shape)
        spans = [[getattr(time, bound) for bound in ("overlapped", "serial")] for time in times.values()]
        return spans_of([spans[0]], spans)

    def ours(q, k, v):
        return attention(q, k, v)[0]

    contestants = {
        "sdpa": lambda: by_sdpa(None),
        "distllm": lambda: ours,
        "distllm, by pointers": lambda: by_pointers(ours),
        "FlashAttention-2": lambda: by_sdpa(SDPBackend.FLASH_ATTENTION),
        "cuDNN": lambda: by_sdpa(needs_a_gpu(setting, SDPBackend.CUDNN_ATTENTION)),
        "FlashAttention-3": lambda: activated(setting, "fa3", "FA3"),
        "FlashAttention-4": lambda: activated(setting, "fa4", "FA4"),
        "flex_attention, compiled": lambda: by_flex(setting, size),
    }
    flops = roofline.useful_flops(head_dim, *shape)
    name = f"attention, causal, {head_dim}"
    return Task(name, lambda: tensors(setting, size, size, size), contestants, predicted, flops)


def by_sdpa(backend):
    def function(q, k, v):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        if backend is None:
            return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)

    return function


@contextmanager
def by_pointers(function):
    """Run ours as where no descriptors of tiles fit."""
    stock = launch.choose_tile
    launch.choose_tile = lambda kernel, q: replace(stock(kernel, q), streams=False)
    try:
        yield function
    finally:
        launch.choose_tile = stock


def needs_a_gpu(setting, value):
    if setting.device != "cuda":
        raise AbsentError("needs a GPU")
    return value


@contextmanager
def activated(setting, backend, implementation):
    """Run FlashAttention of a later generation, through torch, until the backward pass is done."""
    needs_a_gpu(setting, None)
    machine = machine_of(torch.device("cuda"))
    why = BACKENDS[backend].absent(machine, "cuda")
    if why is not None:
        raise AbsentError(why)
    torch.nn.attention.activate_flash_attention_impl(implementation)
    try:
        yield by_sdpa(SDPBackend.FLASH_ATTENTION)
    finally:
        torch.nn.attention.restore_flash_attention_impl()


def by_flex(setting, size):
    needs_a_gpu(setting, None)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = size[1]
    blocks = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=setting.device)
    flex = torch.compile(flex_attention)

    def function(q, k, v):
        return flex(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)

    return function


def norm_task(setting):
    def plain(x, residual, weight):
        return reference.rms_norm(x + residual, weight, EPS)

    def fused(x, residual, weight):
        return F.rms_norm(x + residual, weight.shape, weight, EPS)

    size, width = (setting.rows, setting.channels), setting.channels
    return Task(
        "RMSNorm after a sum",
        lambda: tensors(setting, size, size, (width,)),
        {
            "torch": lambda: fused,
            "distllm": lambda: lambda x, residual, weight: op.rms_norm(x, weight, EPS, residual)[0],
            "torch.compile": compiled(setting, plain),
            "Liger": lambda: _liger_norm(liger(setting)),
        },
        pointwise("norms 4096", "norm_forward_kernel", "norm_backward_kernel"),
    )


def _liger_norm(functions):
    return lambda x, residual, weight: functions.liger_fused_add_rms_norm(
        x, residual, weight, EPS, in_place=False
    )[0]


def layer_norm_task(setting):
    def plain(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, EPS)

    size, width = (setting.rows, setting.channels), (setting.channels,)
    return Task(
        "LayerNorm",
        lambda: tensors(setting, size, width, width),
        {
            "torch": lambda: plain,
            "distllm": lambda: lambda x, weight, bias: op.layer_norm(x, weight, bias, EPS)[0],
            "torch.compile": compiled(setting, plain),
            "Liger": lambda: _liger_layer_norm(liger(setting)),
        },
    )


def _liger_layer_norm(functions):
    return lambda x, weight, bias: functions.liger_layer_norm(x, weight, bias, EPS)


def rope_task(setting):
    heads, width = setting.turned_heads, 128

    def plain(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def inputs():
        (x,) = tensors(setting, (setting.rows, heads, width))
        angle = torch.rand(setting.rows, width // 2, device=setting.device) * math.tau
        return [x, angle.cos().to(x.dtype), angle.sin().to(x.dtype)]

    def by_liger(functions):
        def function(x, cos, sin):
            whole = [torch.cat([part, part], dim=-1)[None] for part in (cos, sin)]
            turned, _ = functions.liger_rope(
                x.transpose(0, 1)[None].clone(), x[None, :, :1].transpose(1, 2), *whole
            )
            return turned[0].transpose(0, 1)

        return function

    return Task(
        "RoPE",
        inputs,
        {
            "torch": lambda: plain,
            "distllm": lambda: op.rope,
            "torch.compile": compiled(setting, plain),
            "Liger": lambda: by_liger(liger(setting)),
        },
        pointwise("rope 128", "rotary_kernel", "rotary_kernel"),
    )


def gated_task(setting, activation):
    functions = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    theirs = {"silu": "liger_swiglu", "gelu_tanh": "liger_geglu"}[activation]

    def plain(gate, up):
        return functions[activation](gate) * up

    size = (setting.rows, setting.inner)
    return Task(
        {"silu": "SwiGLU", "gelu_tanh": "GEGLU"}[activation],
        lambda: tensors(setting, size, size),
        {
            "torch": lambda: plain,
            "distllm": lambda: lambda gate, up: op.gated_activation(gate, up, activation),
            "torch.compile": compiled(setting, plain),
            "Liger": lambda: getattr(liger(setting), theirs),
        },
        pointwise("gated 11008", "gated_forward_kernel", "gated_backward_kernel"),
    )


def cross_entropy_task(setting):
    rows, width, vocabulary = setting.rows, setting.channels, setting.vocabulary
    targets = torch.randint(0, vocabulary, (rows,), device=setting.device)
    chunks = torch.nn.modules.loss.LinearCrossEntropyOptions()

    def plain(hidden, weight):
        return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum") / rows

    def inputs():
        hidden, weight = tensors(setting, (rows, width), (vocabulary, width))
        return [hidden, (weight.detach() * width**-0.5).requires_grad_()]

    def by_liger(functions):
        return lambda hidden, weight: functions.liger_fused_linear_cross_entropy(hidden, weight, targets)

    def predicted(gpu):
        kernels = pointwise(
            "cross-entropy 32768", "cross_entropy_forward_kernel", "cross_entropy_backward_kernel"
        )(gpu)
        product = 1e3 * 2.0 * rows * width * vocabulary / gpu.matmul
        # the backward pass computes the logits again, then the gradients of both factors
        products = {"predicted_forward_ms": product, "predicted_both_ms": 4 * product}
        return {key: [bound + products[key] for bound in span] for key, span in kernels.items()}

    return Task(
        "linear cross-entropy",
        inputs,
        {
            "torch": lambda: plain,
            "distllm": lambda: lambda x, w: op.linear_cross_entropy(x, w, targets).sum() / rows,
            "torch, in chunks": lambda: (
                lambda hidden, weight: F.linear_cross_entropy(hidden, weight, targets, options=chunks)
            ),
            "torch.compile": compiled(setting, plain),
            "Liger": lambda: by_liger(liger(setting)),
        },
        predicted,
    )


def pointwise(case, *kernels):
    """Return the prediction of a forward and a backward kernel; of a kernel's variants the hungriest."""

    def predicted(gpu):
        spans = []
        for kernel in kernels:
            rows = [row for row in roofline.load_table() if row.case == f"{case} bf16"]
            fits = [
                row.measured for row in rows if (row.measured.kernel, row.measured.arch) == (kernel, gpu.arch)
            ]
            most = max(fits, key=lambda measured: measured.registers)
            time = roofline.predict(roofline.pointwise_work(f"{case} bf16", kernel), most, gpu)
            spans.append([time.overlapped, time.serial])
        return spans_of(spans[:1], spans)

    return predicted


def spans_of(forward, both):
    """Return milliseconds from seconds: the sums of the lower and of the upper bounds."""
    sums = {"forward": forward, "both": both}
    return {
        f"predicted_{name}_ms": [1e3 * sum(span[bound] for span in spans) for bound in (0, 1)]
        for name, spans in sums.items()
    }
