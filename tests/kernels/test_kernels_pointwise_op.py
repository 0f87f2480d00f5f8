"""The pointwise kernels as torch operators: registration, gradients, compilation, and what they refuse."""

import pytest
import torch

from distllm.kernels.pointwise import op


def draw(*size, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator).to(dtype).requires_grad_(grad)


TARGETS = torch.tensor([3, -100, 0])
TERMS = (-100, 0.1, 0.05, 3.0)
TABLES = draw(3, 4, grad=False), draw(3, 4, grad=False)
OPERATORS = {
    "rms_norm": (op.norm_op, (draw(3, 8), None, draw(8), None, 1e-5, False)),
    "rms_norm with residual": (op.norm_op, (draw(3, 8), draw(3, 8), draw(8), None, 1e-5, False)),
    "layer_norm": (op.norm_op, (draw(3, 8), None, draw(8), draw(8), 1e-5, True)),
    "layer_norm with residual": (op.norm_op, (draw(3, 8), draw(3, 8), draw(8), draw(8), 1e-5, True)),
    "rope": (op.rotary_op, (draw(3, 2, 8), *TABLES, None, 1e-5, False)),
    "qk_norm and rope": (op.rotary_op, (draw(3, 2, 8), *TABLES, draw(8), 1e-5, False)),
    "swiglu": (op.gated_op, (draw(3, 8), draw(3, 8), "silu")),
    "geglu": (op.gated_op, (draw(3, 8), draw(3, 8), "gelu")),
    "cross-entropy": (op.cross_entropy_op, (draw(3, 8), draw(5, 8), TARGETS, *TERMS)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_registration_is_complete(name):
    operator, arguments = OPERATORS[name]
    found = torch.library.opcheck(operator, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4


def as_double(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_finite_differences(name):
    operator, arguments = OPERATORS[name]
    arguments = tuple(as_double(value) for value in arguments)
    differentiable = [i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor) and x.requires_grad]

    def outputs(*tensors):
        given = list(arguments)
        for place, tensor in zip(differentiable, tensors, strict=True):
            given[place] = tensor
        result = operator(*given)
        result = result if isinstance(result, tuple) else (result,)
        return tuple(x for x in result if x.requires_grad and x.numel())

    assert torch.autograd.gradcheck(outputs, [arguments[i] for i in differentiable], fast_mode=True)


def layer(x, residual, weight, cos, sin, head_weight, projection):
    y, total = op.rms_norm(x, weight, 1e-5, residual)
    turned = op.rope(y.view(1, 3, 2, 8), cos, sin, head_weight, 1e-5).flatten(-2)
    activated = op.gated_activation(turned, total, "gelu_tanh")
    return op.linear_cross_entropy(activated[0], projection, TARGETS).sum()


def test_a_compiled_graph_is_whole_and_computes_the_same():
    inputs = [draw(1, 3, 16), draw(1, 3, 16), draw(16), *TABLES, draw(8), draw(5, 16)]
    wanted = [x for x in inputs if x.requires_grad]
    expected = torch.autograd.grad(layer(*inputs), wanted)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*inputs), wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def on_meta(value):
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors_have_the_real_shapes_and_dtypes(name):
    operator, arguments = OPERATORS[name]
    described = []
    for given in (arguments, tuple(on_meta(value) for value in arguments)):
        result = operator(*given)
        result = result if isinstance(result, tuple) else (result,)
        described.append([(x.shape, x.dtype, x.stride()) for x in result])
    assert described[0] == described[1]


def test_an_expanded_upstream_gradient_is_taken():
    x, weight = draw(3, 8), draw(8)
    y, _ = op.rms_norm(x, weight, 1e-5)
    summed = torch.autograd.grad(y.sum(), x)[0]
    y, _ = op.rms_norm(x, weight, 1e-5)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones(3, 8))[0], summed)


x, weight = draw(3, 8, grad=False), draw(8, grad=False)
REFUSED = {
    "rms_norm: x is torch.int32": lambda: op.rms_norm(x.int(), weight, 1e-5),
    "rms_norm: residual is torch.float16, but x": lambda: op.rms_norm(x, weight, 1e-5, x.half()),
    r"rms_norm: residual has the shape \(2, 8\)": lambda: op.rms_norm(x, weight, 1e-5, x[:2]),
    r"rms_norm: weight has the shape \(7,\)": lambda: op.rms_norm(x, weight[:7], 1e-5),
    r"layer_norm: bias has the shape \(7,\)": lambda: op.layer_norm(x, weight, weight[:7], 1e-5),
    "rms_norm: x has 8193 channels": lambda: op.rms_norm(draw(1, 8193), draw(8193), 1e-5),
    "rms_norm: the last axis of x has the stride 2": lambda: op.rms_norm(draw(3, 16)[:, ::2], weight, 1e-5),
    "rope: the head size is 7": lambda: op.rope(draw(3, 2, 7), draw(3, 3), draw(3, 3)),
    r"rope: cos has the shape \(2, 4\)": lambda: op.rope(draw(3, 2, 8), TABLES[0][:2], TABLES[1]),
    r"rope: weight has the shape \(4,\)": lambda: op.rope(draw(3, 2, 8), *TABLES, weight[:4]),
    "gated_activation: activation is 'relu'": lambda: op.gated_activation(x, x, "relu"),
    r"gated_activation: up has the shape \(2, 8\)": lambda: op.gated_activation(x, x[:2]),
    "gated_activation: up is torch.float16": lambda: op.gated_activation(x, x.half()),
    r"linear_cross_entropy: weight has the shape \(5, 7\)": lambda: op.linear_cross_entropy(
        x, draw(5, 7), TARGETS
    ),
    r"linear_cross_entropy: targets has the shape \(2,\)": lambda: op.linear_cross_entropy(
        x, draw(5, 8), TARGETS[:2]
    ),
    r"linear_cross_entropy: targets\[0\] is 3; the vocabulary has 2": lambda: op.linear_cross_entropy(
        x, draw(2, 8), TARGETS
    ),
    "linear_cross_entropy: label_smoothing is 1.0": lambda: op.linear_cross_entropy(
        x, draw(5, 8), TARGETS, label_smoothing=1.0
    ),
    "linear_cross_entropy: z_loss is -1.0": lambda: op.linear_cross_entropy(
        x, draw(5, 8), TARGETS, z_loss=-1.0
    ),
    "linear_cross_entropy: softcap is -1.0": lambda: op.linear_cross_entropy(
        x, draw(5, 8), TARGETS, softcap=-1.0
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
