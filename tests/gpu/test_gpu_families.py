"""Every family on a GPU computes what it computes on the CPU, where it is tested against definitions."""

import pytest

pytestmark = pytest.mark.gpu

VOCAB, LENGTH, SOURCE = 64, 40, 24
BLOCKS = {
    "llama with windows": ("decoder", {"sliding_window": 6, "window_pattern": "LG"}),
    "gpt2": (
        "decoder",
        {
            "norm": "layer",
            "norm_bias": True,
            "positions": "learned",
            "activation": "gelu_tanh",
            "gated": False,
            "attention_bias": True,
        },
    ),
    "gemma": ("decoder", {"attention_softcap": 2.0, "logit_softcap": 3.0, "sliding_window": 9}),
    "alibi": ("decoder", {"positions": "alibi"}),
    "olmo2": ("decoder", {"qk_norm": "all", "norm_place": "output"}),
    "bert": (
        "encoder",
        {
            "norm": "layer",
            "norm_bias": True,
            "norm_place": "post",
            "embed_norm": True,
            "positions": "learned",
            "gated": False,
            "activation": "gelu",
            "token_types": 2,
        },
    ),
    "modernbert": ("encoder", {"norm": "layer", "embed_norm": True, "sliding_window": 5}),
    "t5": (
        "encoder_decoder",
        {"positions": "relative", "attention_scale": 1.0, "gated": False, "activation": "relu"},
    ),
    "transformer": (
        "encoder_decoder",
        {"norm": "layer", "norm_place": "post", "positions": "sinusoidal", "gated": False},
    ),
}


def build(family, options):
    from distllm.config.schema import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.models.init import build_model

    sizes = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "init_std": 0.1,
    }
    return build_model(settle_shape(ModelConfig(family=family, **sizes, **options), VOCAB, LENGTH), seed=0)


def side(borders, length, seed):
    import torch

    tokens = torch.randint(VOCAB, (len(borders), length), generator=torch.Generator().manual_seed(seed))
    opens = torch.zeros(len(borders), length, dtype=torch.int64)
    for row, places in enumerate(borders):
        opens[row, list(places)] = 1
    places = torch.arange(length).expand_as(opens)
    return tokens, places - torch.where(opens.bool(), places, 0).cummax(1).values, opens.cumsum(1)


def batch(family):
    target = side([(5, 19), (30,)], LENGTH, 0)
    return (*side([(7, 12), (4,)], SOURCE, 1), *target) if family == "encoder_decoder" else target


@pytest.mark.parametrize(("family", "options"), BLOCKS.values(), ids=BLOCKS.keys())
def test_loss_and_gradients_are_those_of_the_cpu(family, options):
    import torch

    targets = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    here, there = build(family, options), build(family, options).cuda()
    expected = here(*batch(family), targets)
    found = there(*(x.cuda() for x in batch(family)), targets.cuda())
    expected.backward()
    found.backward()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=0)
    for (name, mine), should in zip(there.named_parameters(), here.parameters(), strict=True):
        scale = should.grad.abs().max()
        assert ((mine.grad.cpu() - should.grad).abs().max() / scale) < 1e-3, name


@pytest.mark.parametrize(("family", "options"), BLOCKS.values(), ids=BLOCKS.keys())
def test_documents_do_not_see_each_other(family, options):
    import torch

    model = build(family, options).cuda()
    inputs = [x.cuda() for x in batch(family)]
    with torch.no_grad():
        before = model(*inputs)
        for tokens, _, segments in (inputs[:3], inputs[-3:]):
            tokens[segments == 1] = (tokens[segments == 1] + 1) % VOCAB
        after = model(*inputs)
    changed = inputs[-1] == 1
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])
