"""Tiny training jobs that the engine and checkpoint tests share, run once a session per world size.

The model has odd sizes, a tied embedding and parameters with and without decay, so that partitions
are padded, straddle parameters, and hold a parameter that two modules use.
"""

import atexit
import functools
import hashlib
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ranks import run_ranks

FP32 = [("local", 0, "fp32"), *(("deepspeed", stage, "fp32") for stage in range(4))]
BF16 = [("deepspeed", stage, "bf16") for stage in range(4)]
STEPS, HALF, VOCAB = 10, 3, 65
OFFLOADED = [
    ("deepspeed", 1, "fp32", "cpu"), ("deepspeed", 2, "fp32", "nvme"), ("deepspeed", 3, "fp32", "nvme"),
    ("deepspeed", 2, "bf16", "cpu"),
]  # fmt: skip


def case_name(engine, stage, compute, offload="none"):
    name = engine if engine == "local" else f"zero{stage}-{compute}"
    return name if offload == "none" else f"{name}-{offload}"


def make_model(width=33):
    import torch
    from torch import nn
    from torch.nn.functional import linear

    class TinyLM(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, width)
            self.body = nn.Sequential(
                nn.Linear(width, 47), nn.GELU(), nn.Linear(47, width, bias=False), nn.LayerNorm(width)
            )

        def forward(self, tokens_BT):
            return linear(self.body(self.embed(tokens_BT)), self.embed.weight).float()

    torch.manual_seed(0)
    return TinyLM()


def make_optimizer(model):
    import torch

    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)


def make_engine(
    topology, engine, stage, compute, offload="none", grad_clip=0.5, timeout=60, model=None, samples=8
):
    from distllm.config.engine import deepspeed_json
    from distllm.dist.build import build_engine

    settings = deepspeed_json(
        zero_stage=stage,
        micro_batch_size=samples // 2 // topology.world_size,
        grad_accum_steps=2,
        world_size=topology.world_size,
        grad_clip=grad_clip,
        compute=compute,
        bucket_bytes=4096,
        device="cpu",
        offload=offload,
    )
    return build_engine(
        engine,
        model or make_model(),
        make_optimizer,
        settings=settings,
        topology=topology,
        timeout_seconds=timeout,
        offload_dir=Path(tempfile.mkdtemp(prefix="offload-")) if offload == "nvme" else None,
    )


def train_step(engine, topology, step, poison=False, accept=math.isfinite, count=8):
    """Take one step on the ``count`` samples of ``step``; return the mean loss over ranks and the result."""
    import torch
    from torch.nn.functional import cross_entropy

    from distllm.dist.collectives import sum_over_ranks

    samples = torch.randint(0, VOCAB, (count, 17), generator=torch.Generator().manual_seed(step))
    mine = samples[topology.rank :: topology.world_size]
    weight, total = count * 16, 0.0
    for number, batch in enumerate(mine.chunk(2)):
        logits = engine.model(batch[:, :-1])
        loss = cross_entropy(logits.reshape(-1, VOCAB), batch[:, 1:].reshape(-1), reduction="sum")
        total += loss.item()
        if poison and number == 0 and topology.rank == topology.world_size - 1:
            loss = loss * float("nan")
        engine.backward(loss / weight)
    result = engine.step(lr=0.01 / (1 + step), accept=accept)
    return sum_over_ranks([total], topology)[0] / weight, result


def train(engine, topology, first, last):
    return [train_step(engine, topology, step)[0] for step in range(first, last)]


def digest(engine):
    """A digest of every bit of weights and moments."""
    content = hashlib.blake2b()
    for name, tensor in engine.state():
        content.update(name.encode())
        # Sums over ranks turn -0.0 into 0.0.
        content.update((tensor + 0.0).numpy().tobytes())
    return content.hexdigest()


def _evaluate(engine):
    import torch

    engine.model.eval()
    with torch.no_grad():
        engine.model(torch.zeros((1, 3), dtype=torch.int64))
    engine.model.train()


def _curve(topology, case):
    engine = make_engine(topology, *case)
    losses, norms = [], []
    for step in range(STEPS):
        if case[0] == "deepspeed":
            _evaluate(engine)
        loss, result = train_step(engine, topology, step)
        losses.append(loss)
        norms.append(result.grad_norm)
        assert not result.skipped
    assert engine.optimizer_steps == STEPS
    files = Path("/proc/self/maps").read_text().count("distllm-offload-")
    return {"losses": losses, "norms": norms, "files": files}


def _skip(topology, case):
    engine = make_engine(topology, *case)
    train(engine, topology, 0, 2)
    before, steps_before = digest(engine), engine.optimizer_steps
    _, poisoned = train_step(engine, topology, 2, poison=True)
    after, steps_after = digest(engine), engine.optimizer_steps
    loss, healthy = train_step(engine, topology, 3)
    return {
        "untouched": before == after and steps_before == steps_after == 2,
        "poisoned": [poisoned.skipped, str(poisoned.grad_norm)],
        "healthy": [healthy.skipped, healthy.grad_norm],
        "loss": loss,
        "moved": digest(engine) != after,
    }


def _refuse(topology, case):
    engine = make_engine(topology, *case)
    train(engine, topology, 0, 2)
    before, asked = digest(engine), []
    _, refused = train_step(engine, topology, 2, accept=lambda norm: asked.append(norm) is not None)
    after = digest(engine)
    _, accepted = train_step(engine, topology, 2, accept=lambda norm: asked.append(norm) is None)
    return {
        "untouched": before == after and engine.optimizer_steps == 3,
        "skipped": [refused.skipped, accepted.skipped],
        "norms": [refused.grad_norm, accepted.grad_norm],
        "asked": asked,
        "moved": digest(engine) != after,
        "replicas": sum(weight.numel() for weight in engine.replicas()),
        "weights": sum(weight.numel() for name, weight in engine.state() if name.startswith("model/")),
    }


def _save(topology, case, directory):
    from distllm.checkpoint.retention import Retention
    from distllm.checkpoint.save import Saver

    straight = make_engine(topology, *case)
    losses = train(straight, topology, 0, 2 * HALF)
    saved = make_engine(topology, *case)
    _, skipped = train_step(saved, topology, 99, poison=True)
    assert skipped.skipped
    train(saved, topology, 0, HALF)
    saver = Saver(Path(directory) / case_name(*case), topology, Retention(2), background=True)
    train_state = {"step": HALF + 1, "pi": 3.141592653589793, "unknown": float("nan")}
    at_save = digest(saved)
    saver.save(HALF + 1, saved, train_state, {"config": "abc"})
    train(saved, topology, HALF, HALF + 1)  # while the snapshot is being written
    saver.settle()
    return {"losses": losses[HALF:], "digest": digest(straight), "at_save": at_save}


def first_job(topology, directory):
    """Train every case straight, with a poisoned step, and with a checkpoint half way."""
    with _Captured() as output:
        results = {
            case_name(*case): {
                "curve": _curve(topology, case),
                "skip": _skip(topology, case),
                "refuse": _refuse(topology, case),
                "save": _save(topology, case, directory),
            }
            for case in FP32 + BF16 + OFFLOADED
        }
    return {"cases": results, "output": output()}


def resume_job(topology, plans):
    """For every (directory, case): load what was saved there into that case and train the rest."""
    from distllm.checkpoint.load import find_checkpoint, load_checkpoint

    results = []
    for directory, case in plans:
        found = find_checkpoint(Path(directory), topology)
        engine = make_engine(topology, *case)
        state = load_checkpoint(found, engine)
        loaded = digest(engine)
        losses = train(engine, topology, HALF, 2 * HALF)
        results.append({"state": state, "loaded": loaded, "losses": losses, "digest": digest(engine)})
    return results


class _Captured:
    """Collect everything the process writes to its standard streams, also from C++."""

    def __enter__(self):
        self._file = tempfile.TemporaryFile()
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        return self._text

    def __exit__(self, *exc):
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._saved[0], 1)
        os.dup2(self._saved[1], 2)

    def _text(self):
        self._file.seek(0)
        return self._file.read().decode(errors="replace")


@functools.cache
def trained(world_size):
    """Results of `first_job` on every rank, and the directory of its checkpoints."""
    directory = tempfile.mkdtemp(prefix=f"engine-jobs-{world_size}-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return run_ranks(first_job, world_size, directory, timeout=240, fresh=True), Path(directory)
