"""What must hold for every plan: more work never takes less, and nothing is better than possible."""

import math
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from distllm.plan.comms import Group, exchange_seconds, gather_seconds, gathered_bytes
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.exchanges import sent_bytes
from distllm.plan.fitted import FITTED
from distllm.plan.goodput import expected_goodput, young_daly
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.memory import peak_memory
from distllm.plan.search import Space, layouts
from distllm.plan.speed import step_time
from distllm.plan.work import Work

MACHINE = Machine("x", 800e12, 1000e12, 80e9, 3e12, 400e9, 50e9)


@st.composite
def works(draw):
    heads, experts = draw(st.sampled_from([4, 8, 16, 32])), draw(st.sampled_from([1, 1, 8, 64]))
    return Work(
        hidden=heads * 64,
        layers=draw(st.integers(1, 64)),
        heads=heads,
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=64,
        intermediate=draw(st.integers(1, 64)) * 256,
        mlp_matrices=draw(st.sampled_from([2, 3])),
        vocab=draw(st.integers(1, 400)) * 320,
        tied=draw(st.booleans()),
        experts=experts,
        active_experts=min(2, experts),
        full_attentions=draw(st.sampled_from([0.0, 1.0])),
    )


@st.composite
def layout_values(draw):
    return Layout(
        ranks=draw(st.sampled_from([1, 2, 8, 64, 512])),
        seq_len=draw(st.sampled_from([256, 2048, 16384])),
        micro_batch=draw(st.integers(1, 16)),
        accumulation=draw(st.integers(1, 8)),
        zero_stage=draw(st.integers(0, 3)),
        checkpointing=draw(st.sampled_from(["none", "selective", "full"])),
    )


@st.composite
def softwares(draw):
    return Software(
        logits_tokens=draw(st.sampled_from([0, 512])),
        bucket_params=draw(st.sampled_from([0, 10**6])),
        adding_bytes=draw(st.sampled_from([0, 10])),
        compiled=draw(st.booleans()),
        accumulated_bytes=draw(st.sampled_from([0, 4])),
    )


def device(work, layout, software):
    return peak_memory(work, layout, software).device


def seconds(work, layout, software):
    return step_time(work, layout, software, MACHINE, FITTED).total


def at_least(limit):
    """Work done while all wait for exchanges costs nothing: equal then, but for rounding."""
    return limit * (1 - 1e-12)


@given(works(), layout_values(), softwares())
def test_more_layers_and_longer_batches_cost_more(work, layout, software):
    deeper = replace(work, layers=work.layers + 1)
    fuller = replace(layout, micro_batch=layout.micro_batch + 1)
    assert device(deeper, layout, software) > device(work, layout, software)
    assert seconds(deeper, layout, software) > seconds(work, layout, software)
    assert device(work, fuller, software) > device(work, layout, software)
    longer = replace(layout, seq_len=2 * layout.seq_len)
    assert device(work, longer, software) > device(work, layout, software)
    assert seconds(work, longer, software) >= at_least(seconds(work, layout, software))
    wordier = replace(work, vocab=2 * work.vocab)
    assert device(wordier, layout, software) > device(work, layout, software)
    assert seconds(work, fuller, software) >= at_least(seconds(work, layout, software))


@example(  # nothing but exchanges to wait for
    Work(256, 1, heads=4, kv_heads=1, head_dim=64, intermediate=256, mlp_matrices=2, vocab=320, tied=False),
    Layout(64, 256, micro_batch=1, accumulation=1, zero_stage=3),
    Software(),
)
@given(works(), layout_values(), softwares())
def test_checkpointing_trades_memory_for_time(work, layout, software):
    none, full = replace(layout, checkpointing="none"), replace(layout, checkpointing="full")
    if work.layers > 1:
        assert device(work, full, software) < device(work, none, software)
    assert seconds(work, full, software) >= at_least(seconds(work, none, software))


@given(works(), layout_values(), softwares())
def test_no_stage_needs_more_optimizer_memory_than_the_one_before(work, layout, software):
    stages = [peak_memory(work, replace(layout, zero_stage=stage), software) for stage in range(4)]
    optimizer = [memory.optimizer for memory in stages]
    assert optimizer == sorted(optimizer, reverse=True)
    assert min(memory.device for memory in stages) > 0
    assert all(size >= 0 for memory in stages for size in memory.parts().values())


@given(works(), layout_values(), softwares(), st.sampled_from([0.01, 1.0]))
def test_what_is_divided_or_offloaded_leaves_no_more_on_the_device(work, layout, software, share):
    part = replace(work, trainable_share=share)

    def by(**changes):
        return peak_memory(part, replace(layout, **changes), software)

    whole, optimizer, gradients = (by(zero_stage=stage).device for stage in range(3))
    assert whole >= optimizer
    if layout.replicas > 1:  # alone, stage 2 still copies gradients
        assert optimizer >= gradients
    # whole blocks are gathered, and their gradients wait to be divided
    gathered = 3 * work.block_params * software.weight_bytes
    assert by(zero_stage=3).device <= gradients + gathered
    for stage in (2, 3):
        here, away = by(zero_stage=stage), by(zero_stage=stage, offload="optimizer")
        assert away.optimizer == 0 < away.host
        block = work.block_params * share * software.grad_bytes
        assert away.device <= here.device - here.optimizer + block


@given(works(), softwares(), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_more_devices_for_the_same_step_are_slower_only_for_their_exchanges(work, software, stage, micro):
    """The global batch stays: twice the ranks have half of the accumulation."""
    small = Layout(8, 4096, micro, 64, zero_stage=stage)
    while small.accumulation > 1:
        large = replace(small, ranks=2 * small.ranks, accumulation=small.accumulation // 2)
        assert large.tokens_per_step == small.tokens_per_step
        before, after = (step_time(work, one, software, MACHINE, FITTED) for one in (small, large))
        assert after.total - after.exposed < before.total - before.exposed
        if after.total > before.total:
            assert after.exposed > before.exposed
        assert device(work, large, software) <= device(work, small, software)
        small = large


@given(works(), layout_values(), softwares())
def test_only_what_has_others_sends(work, layout, software):
    sent = sum(sent_bytes(work, layout, software, MACHINE).values())
    assert (sent > 0) == (layout.ranks > 1)
    if layout.ranks == 1:
        assert step_time(work, layout, software, MACHINE, FITTED).exposed == 0


@given(works(), layout_values(), softwares(), st.floats(0.001, 0.99))
def test_what_learns_less_takes_neither_more_time_nor_more_memory(work, layout, software, share):
    part = replace(work, trainable_share=share)
    assert device(part, layout, software) <= device(work, layout, software)
    assert seconds(part, layout, software) <= seconds(work, layout, software) * (1 + 1e-12)


@given(works(), layout_values(), softwares(), st.floats(1, 4))
def test_faster_links_and_memory_never_make_a_step_slower(work, layout, software, factor):
    better = replace(
        MACHINE,
        memory_bandwidth=factor * MACHINE.memory_bandwidth,
        local_bandwidth=factor * MACHINE.local_bandwidth,
        network_bandwidth=factor * MACHINE.network_bandwidth,
    )
    found = step_time(work, layout, software, better, FITTED).total
    assert found <= seconds(work, layout, software) * (1 + 1e-12)


@given(works(), layout_values(), softwares())
def test_no_plan_beats_the_peak(work, layout, software):
    flops = CONVENTIONS["causal"](work, layout.seq_len) * layout.tokens_per_step
    time = step_time(work, layout, software, MACHINE, FITTED)
    # what positions see beyond the causal half is not in the count
    assert flops / (time.total * layout.ranks * MACHINE.peak_flops) < 1
    assert math.isfinite(time.total)
    assert time.exposed >= 0
    assert time.hidden >= 0


@given(works(), layout_values(), softwares(), st.integers(1, 6))
def test_more_nodes_never_make_a_step_of_the_same_batch_a_rank_faster(work, layout, software, doublings):
    wider = replace(layout, ranks=layout.ranks * 2**doublings)
    assert seconds(work, wider, software) >= seconds(work, layout, software) * 0.999 or layout.zero_stage > 0
    near = step_time(work, layout, software, MACHINE, FITTED)
    far = step_time(work, wider, software, MACHINE, FITTED)
    assert far.exposed + far.hidden >= near.exposed + near.hidden
    assert far.gemm == near.gemm


@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8]), st.floats(1, 1e12))
def test_collectives_take_at_least_their_bytes(size, per_node, total):
    group = Group(size, min(size, per_node))
    assert 0 <= gathered_bytes(total, group) < total
    assert gather_seconds(total, group, MACHINE) >= gathered_bytes(total, group) / MACHINE.local_bandwidth * (
        group.per_node > 1
    )
    assert gather_seconds(2 * total, group, MACHINE) >= gather_seconds(total, group, MACHINE)
    assert exchange_seconds(total, group, MACHINE) >= 0


@given(st.integers(1, 20000), st.floats(0.1, 1000), st.floats(1, 1000), st.floats(1e3, 1e8))
def test_goodput_is_a_share_and_falls_with_nodes(nodes, save, restart, busy):
    def of(count):
        return expected_goodput(
            nodes=count, node_mttf_seconds=1e7, save_seconds=save, restart_seconds=restart, busy_seconds=busy
        )

    found = of(nodes)
    assert 0 <= found.fraction <= 1
    assert found.failures > 0
    assert of(nodes + 1).fraction <= found.fraction + 1e-9


@given(st.floats(1, 600), st.floats(600, 1e7), st.floats(0.3, 3))
def test_no_other_interval_loses_less(save, mttf, factor):
    def lost(interval):
        return save / interval + interval / (2 * mttf)

    best = young_daly(save, mttf)
    assert lost(best) <= lost(best * factor) * (1 + 1e-9)


@settings(max_examples=30)
@given(works(), st.sampled_from([1, 2, 8]), st.integers(1, 6))
def test_every_candidate_takes_the_step_that_was_asked_for(work, ranks, samples):
    tokens = ranks * samples * 256
    for layout in layouts(work, ranks, 256, tokens, Space(sequence=(1,))):
        assert layout.tokens_per_step == tokens
        assert layout.micro_batch * layout.accumulation == samples
