"""Ranks that hold different experts: the losses, norms and weights of one rank that has them all."""

from dataclasses import replace

import pytest
import tiny
from engine_jobs import make_optimizer
from ranks import run_ranks

RANKS, SHARING, ROWS, LENGTH, VOCAB, EXPERTS = 6, 2, 12, 12, 64, 4
TOLERANCE = 2e-6
CASES = [("local", 0, "none"), ("deepspeed", 0, "full"), ("deepspeed", 1, "none"), ("deepspeed", 2, "selective"), ("deepspeed", 3, "none")]


def model_of(checkpointing="none"):
    from distllm.config.schema_model import ModelConfig
    from distllm.config.shape import settle_shape
    from distllm.models.init import build_model
    from distllm.models.recompute import recompute_blocks

    # Three ranks hold the same two experts, of 22 and 32 rows each: shares are padded. A wide first deviation,
    # so that routers are decided.
    model = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=4, intermediate_size=11, num_experts=EXPERTS, experts_per_token=2,
        init_std=0.2, balance_loss=0.1,
    )  # fmt: skip
    built = build_model(settle_shape(model, VOCAB, LENGTH), seed=0)
    recompute_blocks(built, checkpointing)
    return built


def rows_of(step, rank, ranks):
    """Return the rank's micro-batches, of one row each; of one rank all those of the others."""
    import torch

    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    batches = tokens.chunk(ROWS)
    return [(rows[:, :-1], torch.arange(LENGTH)[None], None, rows[:, 1:].clone()) for rows in batches[rank::ranks]]


def engine_of(topology, name, stage, checkpointing, compute="fp32"):
    from distllm.config.engine import deepspeed_json
    from distllm.dist.build import build_engine
    from distllm.dist.experts import ExpertGroup
    from distllm.models.moe import part_experts

    model = model_of(checkpointing)
    experts = part_experts(model, ExpertGroup(topology, 60.0)) if topology.expert_ranks > 1 else None
    settings = deepspeed_json(
        zero_stage=stage, micro_batch_size=1, grad_accum_steps=ROWS // topology.world_size, world_size=topology.world_size,
        grad_clip=0.5, compute=compute, bucket_bytes=4096, device="cpu",
    )  # fmt: skip
    return build_engine(
        name, model, make_optimizer, settings=settings, topology=topology, timeout_seconds=60, experts=experts
    )


def step_of(engine, topology, step, accept=lambda norm: norm < 1e9):
    """Take one step on the rows of ``step``; return its mean loss, the norm, and whether it was skipped."""
    from distllm.dist.collectives import sum_over_ranks

    total, weight = 0.0, ROWS * LENGTH
    for batch in rows_of(step, topology.rank, topology.world_size):
        loss = engine.model(*batch)
        total += loss.item()
        engine.backward(loss / weight)
    result = engine.step(1e-2, accept)
    return [sum_over_ranks([total], topology)[0] / weight, result.grad_norm, result.skipped]


def content(engine):
    return {name: tensor.clone() for name, tensor in engine.state()}


def furthest(found, expected):
    """Return the largest relative distance of a tensor from the one expected."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)) for name in expected)


def owned(engine, topology):
    """Whether tensors that are brought to one rank each, in turn, are those that every rank can have."""
    from itertools import count

    from distllm.dist.collectives import sum_over_ranks

    turn, whole = count(), content(engine)
    mine = dict(engine.state(lambda shape: next(turn) % topology.world_size))
    same = all(tensor.equal(whole[name]) for name, tensor in mine.items())
    counted, equal = sum_over_ranks([len(mine), same], topology)
    return [counted == len(whole), equal == topology.world_size]


def train(topology, case):
    """Take three steps, the second refused; return the engine and the curve."""
    engine = engine_of(topology, *case)
    curve = [step_of(engine, topology, 0), step_of(engine, topology, 1, lambda norm: False), step_of(engine, topology, 2)]
    return engine, curve


def everything(topology):
    from distllm.dist.topology import Topology

    alone, expected = train(Topology.single(), CASES[0])
    whole = content(alone)
    results = {"alone": expected}
    parted = replace(topology, expert_ranks=SHARING)
    for case in CASES:
        engine, curve = train(parted, case)
        held = sum(weight.numel() for weight in engine._weights.values())
        names = [name for name, _ in engine.state()]
        results[str(case)] = {
            "curve": curve,
            "state": furthest(content(engine), whole),
            "held": held * SHARING,
            "owned": owned(engine, parted),
            "kinds": [name.split("/")[0] for name in names] == sorted(name.split("/")[0] for name in names),
            "replicas": sum(weight.numel() for weight in engine.replicas()),
        }
    # What one rank has learnt goes on among ranks with experts of their own.
    going_on = engine_of(replace(topology, expert_ranks=SHARING), "deepspeed", 2, "none")
    going_on.load_state(whole.__getitem__, alone.optimizer_steps)
    results["loaded"] = furthest(content(going_on), whole)
    results["after"] = [step_of(going_on, topology, 3), step_of(alone, Topology.single(), 3)]
    poisoned = engine_of(replace(topology, expert_ranks=SHARING), "deepspeed", 2, "none", "bf16")
    before = content(poisoned)
    for weight in poisoned._weights.values():
        weight.register_hook(lambda grad: grad * float("nan"))
    results["poisoned"] = [str(step_of(poisoned, topology, 0)[1:]), furthest(content(poisoned), before)]
    results["experts"] = sum(tensor.numel() for name, tensor in whole.items() if "_proj" in name and "mlp" in name) / 3
    return results


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_with_experts_of_their_own_train_as_one_rank_with_all():
    found = run_ranks(everything, RANKS, timeout=280)[0]
    expected = found["alone"]
    assert expected[0][1] > 0.5, "gradients are clipped"
    assert [skipped for *_, skipped in expected] == [False, True, False]
    for case in CASES:
        one = found[str(case)]
        for (loss, norm, skipped), (loss_expected, norm_expected, skipped_expected) in zip(one["curve"], expected, strict=True):
            assert loss == pytest.approx(loss_expected, rel=TOLERANCE), case
            assert norm == pytest.approx(norm_expected, rel=1e-5), case
            assert skipped == skipped_expected, case
        assert one["state"] < 1e-4, case
        assert one["held"] == found["experts"], "a rank holds its own experts and no others"
        assert one["owned"] == [True, True], case
        assert one["kinds"], "weights come before moments"
        assert (one["replicas"] == 0) == (case[1] == 3)
    assert found["loaded"] == 0.0
    (loss, norm, _), (loss_expected, norm_expected, _) = found["after"]
    assert (loss, norm) == (pytest.approx(loss_expected, rel=TOLERANCE), pytest.approx(norm_expected, rel=1e-5))
    assert found["poisoned"] in (["[nan, True]", 0.0], ["[inf, True]", 0.0])


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_with_parted_experts_goes_on_with_whole_ones(tmp_path):
    """One rank takes every micro-batch of one row: those of two ranks, in whose balance each counts alone."""
    root, told = tiny.prepare(tmp_path), []
    keys = (
        "model.num_experts=4", "train.tokens_per_step=128", "train.max_steps=4", "engine.micro_batch_tokens=32",
        "cluster.threads_per_rank=1", "eval.every_steps=2",
    )  # fmt: skip
    parted = ("engine=zero2", "engine.expert_ranks=2", "train.stop_at_step=2")
    alone = ("engine=local", "cluster.procs_per_node=1")
    for name, *more in (("changed", *parted), ("changed", *alone), ("whole", *alone)):
        done = tiny.distllm("train", *tiny.overrides(root, f"name={name}", *keys, *more))
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert "resuming from step 2" in told[1]
    changed, whole = tiny.steps(root, "changed"), tiny.steps(root, "whole")
    for step in (1, 2, 3, 4):
        assert changed[step]["batch_digest"] == whole[step]["batch_digest"]
        for key in ("loss", "grad_norm"):
            assert changed[step][key] == pytest.approx(whole[step][key], rel=1e-5), (step, key)
