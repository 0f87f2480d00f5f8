"""The coordinate check of muP: how far activations move in the first steps of training, by width."""

import torch

BASE, STEPS, RATE = 64, 4, 1e-2


def movements(width, mup, steps=STEPS, lr=RATE, base=BASE, **more):
    """Train a decoder of ``width``; return the mean change of its activations after each step, by name.

    The change since the first forward pass is what training does; initial values would hide it.
    """
    from distllm.config.schema_model import ModelConfig, MupConfig
    from distllm.config.schema_optim import OptimConfig
    from distllm.config.shape import settle_shape
    from distllm.models.init import build_model
    from distllm.optim.optimizers import build_optimizer

    config = ModelConfig(
        hidden_size=width, num_layers=2, num_heads=width // 16, init_std=0.1, tie_embeddings=False,
        mup=MupConfig(base_width=base if mup else None), **more,
    )  # fmt: skip
    shape = settle_shape(config, 128, 32)
    model = build_model(shape, seed=0)
    optimizer = build_optimizer(model, OptimConfig(lr=lr, weight_decay=0.0), shape.mup)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    layers = model.decoder.layers
    watched = {"block 1": layers[0], "attention 2": layers[1].self_attn, "block 2": layers[1]}
    tokens = torch.randint(128, (8, 33), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(32).expand(8, -1)

    def look():
        seen = {}
        hooks = [
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
            for name, module in watched.items()
        ]
        with torch.no_grad():
            seen["logits"] = model(tokens[:, :-1], positions)
        for hook in hooks:
            hook.remove()
        return seen

    first, found = look(), {}
    for _ in range(steps):
        model(tokens[:, :-1], positions, None, tokens[:, 1:]).div(tokens[:, 1:].numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, value in look().items():
            found.setdefault(name, []).append(float((value - first[name]).abs().mean()))
    return found
