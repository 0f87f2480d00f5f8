"""Which launch parameters a device gets, and that every configuration has some."""

import pytest
import torch

from distllm.kernels.attention.tiles import HEAD_DIMS, Tile, padded, splits_key_grads, tile
from distllm.kernels.device import ARCHITECTURES, INTERPRETER, architecture, compiling_for, row_of_capability


@pytest.mark.parametrize(
    ("capability", "row"),
    [
        ((8, 0), 80),
        ((8, 6), 120),
        ((8, 9), 120),
        ((9, 0), 90),
        ((10, 0), 100),
        ((10, 3), 100),
        ((12, 0), 120),
    ],
)
def test_a_capability_has_the_row_whose_memory_it_has(capability, row):
    assert row_of_capability(capability) == row


@pytest.mark.parametrize("capability", [(7, 5), (7, 0), (11, 0), (13, 0)])
def test_an_unknown_device_is_refused_by_its_capability(capability):
    with pytest.raises(ValueError, match=rf"compute capability {capability[0]}\.{capability[1]}"):
        row_of_capability(capability)


def test_the_gate_can_name_another_device():
    cpu = torch.device("cpu")
    assert architecture(cpu) == INTERPRETER
    with compiling_for(90):
        assert architecture(cpu) == 90
    assert architecture(cpu) == INTERPRETER


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_configuration_has_a_tile(arch, dtype):
    for head_dim in HEAD_DIMS:
        for kernel in ("forward", "key_grads", "query_grads", "value_grads"):
            found = tile(kernel, arch, head_dim, dtype)
            assert isinstance(found, Tile)
            assert found.queries % 16 == found.keys % 16 == 0


def test_tiles_are_streamed_where_there_is_a_tensor_memory_accelerator():
    for arch in ARCHITECTURES:
        streams = tile("forward", arch, 128, torch.bfloat16).streams
        assert streams == (arch in (90, 100))
        assert not tile("forward", arch, 128, torch.float32).streams
        assert not tile("key_grads", arch, 128, torch.bfloat16).streams


def test_widths_are_padded_to_powers_of_two_and_wide_heads_split_their_gradients():
    assert [padded(head_dim) for head_dim in HEAD_DIMS] == [64, 128, 128, 256, 256]
    assert [splits_key_grads(head_dim) for head_dim in HEAD_DIMS] == [False, False, False, True, True]
