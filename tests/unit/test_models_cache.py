"""What a cache keeps of each row, and what it refuses."""

import pytest
import torch

from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.models.cache import KVCache, LayerCache
from distllm.models.init import build_model

CPU = torch.device("cpu")
SHAPE = settle_shape(ModelConfig(hidden_size=16, num_layers=3, num_heads=4, num_kv_heads=2), 60, 10)


def entries(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, length, 2, 4, generator=generator) for _ in range(2)]


def test_positions_are_appended_and_all_are_returned():
    cache = LayerCache(SHAPE, 2, 6, CPU, torch.float32)
    first, second = entries(4, 0), entries(2, 1)
    assert all(map(torch.equal, cache.extend(*first), first))
    for kept, old, new in zip(cache.extend(*second), first, second, strict=True):
        assert torch.equal(kept, torch.cat([old, new], 1))
    with pytest.raises(ValueError, match="7 positions exceed the cache's 6"):
        cache.extend(*entries(1, 2))


def test_rows_are_copied_whole():
    cache = LayerCache(SHAPE, 2, 6, CPU, torch.float32)
    first, second = entries(4, 0), entries(1, 1)
    cache.extend(*first)
    cache.reorder(torch.tensor([1, 1]))
    for kept, old, new in zip(cache.extend(*second), first, second, strict=True):
        assert torch.equal(kept[:, :4], old[[1, 1]])
        assert torch.equal(kept[:, 4:], new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_has_its_own(dtype):
    starts = torch.tensor([0, 3])
    cache = KVCache(SHAPE, 2, 6, CPU, dtype, starts)
    assert len(cache.layers) == 3
    keys, _ = cache.layers[0].extend(*(x.to(dtype) for x in entries(2, 0)))
    assert keys.dtype == dtype
    assert cache.starts_B is starts
    assert cache.length == 2
    untouched, _ = cache.layers[1].extend(*(x.to(dtype) for x in entries(1, 1)))
    assert untouched.shape == (2, 1, 2, 4)


def test_a_source_is_read_once():
    config = ModelConfig(
        family="encoder_decoder",
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        positions="relative",
        attention_scale=1.0,
    )
    model = build_model(settle_shape(config, 60, 10), seed=0)
    reads = []
    model.encoder.register_forward_hook(lambda *_: reads.append(1))
    ids = torch.randint(60, (2, 10), generator=torch.Generator().manual_seed(0))
    place = torch.arange(10).expand(2, 10)
    cache = KVCache(model.shape, 2, 10, CPU, torch.float32)
    with torch.no_grad():
        for step in range(3):
            here = slice(step, step + 1)
            model(ids, place, None, ids[:, here], place[:, here], cache=cache)
    assert len(reads) == 1
    assert all(layer.source is not None for layer in cache.layers)
