"""Memory, exchanges, time and goodput by hand."""

import math
from dataclasses import replace

import pytest

from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.plan.comms import Group, exchange_seconds, gather_seconds, gathered_bytes, reduce_seconds
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.exchanges import sent_bytes
from distllm.plan.fitted import FITTED
from distllm.plan.flops import flops_per_token, matmul_params
from distllm.plan.goodput import expected_goodput, young_daly
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.memory import peak_memory, saved_per_token
from distllm.plan.speed import step_time
from distllm.plan.stages import stages_of
from distllm.plan.work import Work, work_of

WORK = Work(
    hidden=1024, layers=8, heads=8, kv_heads=4, head_dim=128, intermediate=4096,
    mlp_matrices=3, vocab=32000, tied=False,
)  # fmt: skip
MACHINE = Machine("x", 800e12, 1000e12, 80e9, 3e12, 400e9, 50e9)
LAYOUT = Layout(ranks=8, seq_len=2048, micro_batch=2, accumulation=4)
SOFTWARE = Software()


FAMILIES = [
    {},
    {"tie_embeddings": False},
    {"family": "encoder"},
    {"family": "encoder", "gated": False, "norm": "layer", "positions": "learned", "mlp_bias": True},
    {"family": "encoder_decoder", "num_encoder_layers": 5},
    {"family": "encoder_decoder", "gated": False, "positions": "relative"},
    {"num_experts": 8, "experts_per_token": 2},
]


@pytest.mark.parametrize("options", FAMILIES)
def test_work_counts_the_parameters_and_flops_of_every_family(options):
    shape = settle_shape(
        ModelConfig(hidden_size=96, num_layers=3, num_heads=6, num_kv_heads=2, **options), 500, 64
    )
    work = work_of(shape)
    assert (work.experts, work.active_experts) == ((8, 2) if "num_experts" in options else (1, 1))
    assert work.params == shape.num_params
    assert work.multiplied_params == matmul_params(shape)
    assert CONVENTIONS["causal"](work, 64) == pytest.approx(flops_per_token(shape, 64))
    assert abs(work.extra_params) < 0.4 * work.params


def test_attention_that_sees_everything_costs_more():
    both = [
        step_time(replace(WORK, causal_attentions=a, full_attentions=b), LAYOUT, SOFTWARE, MACHINE, FITTED)
        for a, b in ((1, 0), (0, 1), (1, 1))
    ]
    causal, full, cross = (time.attention for time in both)
    assert full == pytest.approx(2 * causal)
    assert cross == pytest.approx(3 * causal)
    assert both[2].gemm > both[1].gemm == both[0].gemm


def test_attention_has_the_speed_that_its_authors_measured():
    """Dao 2023, figure 7, causal, H100: TFLOP/s forward and backward by head width and length of row."""
    lengths = (512, 1024, 2048, 4096, 8192, 16384)
    published = {64: (141, 192, 232, 257, 273, 284), 128: (163, 221, 265, 294, 308, 328)}
    machine = replace(MACHINE, attention_flops=335e12)
    for head_dim, speeds in published.items():
        work = replace(WORK, heads=1024 // head_dim, head_dim=head_dim)
        for length, speed in zip(lengths, speeds, strict=True):
            layout = replace(LAYOUT, seq_len=length, micro_batch=1, accumulation=1)
            flops = 3.5 * 4 * length * length / 2 * 1024 * WORK.layers
            seconds = step_time(work, layout, SOFTWARE, machine, FITTED).attention
            assert flops / seconds == pytest.approx(speed * 1e12, rel=0.03), (head_dim, length)
    # of a device without a figure: the share of the peak that it is on an H100
    unknown = step_time(WORK, LAYOUT, SOFTWARE, replace(MACHINE, peak_flops=989e12), FITTED)
    known = step_time(WORK, LAYOUT, SOFTWARE, machine, FITTED)
    assert unknown.attention == pytest.approx(known.attention, rel=1e-3)
    slow = step_time(WORK, LAYOUT, SOFTWARE, machine.throttled(0.5), FITTED)
    assert slow.attention == pytest.approx(2 * known.attention)


def test_keeping_half_of_the_products_takes_less_memory_and_more_time():
    layout = replace(LAYOUT, checkpointing="selective")
    half = replace(SOFTWARE, keeps_half=True)
    all_kept, half_kept = (
        step_time(WORK, layout, software, MACHINE, FITTED) for software in (SOFTWARE, half)
    )
    full = step_time(WORK, replace(LAYOUT, checkpointing="full"), SOFTWARE, MACHINE, FITTED)
    assert all_kept.recompute < half_kept.recompute < full.recompute
    assert saved_per_token(WORK, half, "full") < saved_per_token(WORK, half, "selective")
    assert saved_per_token(WORK, half, "selective") < saved_per_token(WORK, SOFTWARE, "selective")


def test_more_passes_take_more_time_until_they_are_fused():
    def times(**changes):
        return step_time(WORK, LAYOUT, replace(SOFTWARE, **changes), MACHINE, FITTED)

    plain = times()
    assert times(norm_passes=18).elementwise > plain.elementwise < times(rotation_passes=10).elementwise
    fused = times(compiled=True)
    assert times(compiled=True, norm_passes=18, rotation_passes=10) == fused
    assert fused.elementwise < plain.elementwise
    assert times(logits_traffic=60).head > plain.head > times(logits_traffic=8).head


def test_the_causal_convention_is_the_one_training_reports():
    shape = settle_shape(ModelConfig(), 8192, 512)
    assert CONVENTIONS["causal"](work_of(shape), 512) == pytest.approx(flops_per_token(shape, 512))


def test_weights_that_are_frozen_cost_no_gradients():
    shape = settle_shape(ModelConfig(), 4096, 512)
    share = 0.01
    part = work_of(shape, round(share * shape.num_params))
    flops = flops_per_token(shape, 512, part.trainable_share)
    assert CONVENTIONS["causal"](part, 512) == pytest.approx(flops, rel=1e-9)
    layout = Layout(16, 512, 8, 2, zero_stage=1)
    whole = step_time(work_of(shape), layout, Software(), MACHINE, FITTED)
    some = step_time(part, layout, Software(), MACHINE, FITTED)
    assert some.gemm == pytest.approx((2 + part.trainable_share) / 3 * whole.gemm)
    assert some.update == pytest.approx(part.trainable_share * whole.update)
    assert some.exposed + some.hidden < whole.exposed + whole.hidden


def test_conventions_differ_by_embedding_and_by_half_of_attention():
    square, causal = CONVENTIONS["full_square"](WORK, 2048), CONVENTIONS["causal"](WORK, 2048)
    attention = 12 * 8 * 1024 * 2048
    assert square - causal == pytest.approx(attention / 2, rel=1e-3)
    assert CONVENTIONS["all_params"](WORK, 2048) - square == pytest.approx(
        6 * (WORK.params - WORK.multiplied_params)
    )


def test_partitioning_divides_what_its_stage_partitions():
    def parts(stage):
        return peak_memory(WORK, replace(LAYOUT, zero_stage=stage), SOFTWARE)

    whole = parts(0)
    assert whole.weights == WORK.params * 2
    assert whole.gradients == WORK.params * 2
    assert whole.optimizer == WORK.params * 12
    assert parts(1).optimizer == pytest.approx(whole.optimizer / 8)
    assert parts(1).gradients == whole.gradients
    assert parts(2).gradients == pytest.approx(whole.gradients / 8)
    assert parts(2).weights == whole.weights
    assert parts(3).weights == pytest.approx(whole.weights / 8 + 2 * WORK.block_params * 2)


def test_the_reference_of_preferences_is_whole_on_every_rank_and_costs_a_forward_pass():
    compared = replace(SOFTWARE, reference_bytes=2)
    for stage in (0, 3):
        layout = replace(LAYOUT, zero_stage=stage)
        alone, both = (peak_memory(WORK, layout, software) for software in (SOFTWARE, compared))
        assert both.reference == both.device - alone.device == WORK.params * 2
    alone, both = (step_time(WORK, LAYOUT, software, MACHINE, FITTED) for software in (SOFTWARE, compared))
    forward = (alone.gemm + alone.head) / 3 + alone.attention / 3.5 + alone.elementwise / 2.5
    assert both.reference == pytest.approx(both.total - alone.total) == pytest.approx(forward)


def test_what_is_frozen_has_neither_gradients_nor_moments():
    frozen = replace(WORK, trainable_share=0.01)
    whole, small = peak_memory(WORK, LAYOUT, SOFTWARE), peak_memory(frozen, LAYOUT, SOFTWARE)
    assert small.weights == whole.weights
    assert small.gradients == pytest.approx(whole.gradients / 100)
    assert small.optimizer == pytest.approx(whole.optimizer / 100)
    shape = settle_shape(ModelConfig(), 512, 64)
    assert work_of(shape, shape.num_params // 2).trainable_share == pytest.approx(0.5)
    saved = flops_per_token(shape, 64) - flops_per_token(shape, 64, 0.0)
    assert saved == pytest.approx(2 * matmul_params(shape))


def test_offloading_moves_bytes_to_the_host():
    here = peak_memory(WORK, replace(LAYOUT, zero_stage=2), SOFTWARE)
    moved = peak_memory(WORK, replace(LAYOUT, zero_stage=2, offload="optimizer"), SOFTWARE)
    assert moved.optimizer == 0
    assert moved.host == pytest.approx(here.optimizer + here.gradients)
    assert moved.device < here.device
    away, mapped = (
        peak_memory(WORK, replace(LAYOUT, zero_stage=2, offload=offload), SOFTWARE)
        for offload in ("disk", "mapped")
    )
    assert (away.device, away.host, away.disk) == (moved.device, here.gradients, here.optimizer)
    assert (mapped.device, mapped.host, mapped.disk) == (here.device - here.optimizer, 0, here.optimizer)
    slow = replace(MACHINE, disk_bandwidth=1e9)
    updates = [
        step_time(WORK, replace(LAYOUT, zero_stage=2, offload=offload), SOFTWARE, slow, FITTED).update
        for offload in ("none", "optimizer", "mapped", "disk")
    ]
    assert updates == sorted(updates)


def test_checkpointing_keeps_less():
    none, selective, full = (saved_per_token(WORK, SOFTWARE, kind) for kind in ("none", "selective", "full"))
    assert full == WORK.hidden
    assert full < selective < none
    layouts = [replace(LAYOUT, checkpointing=kind) for kind in ("none", "full")]
    activations = [peak_memory(WORK, layout, SOFTWARE).activations for layout in layouts]
    # a block is recomputed: its own activations are there once
    transient = WORK.hidden + 3 * WORK.intermediate
    tokens = 2 * 2048 * 2
    assert activations[0] == (8 * none + transient) * tokens
    assert activations[1] == (8 * full + none + transient) * tokens


def test_chunks_bound_the_logits():
    whole = peak_memory(WORK, LAYOUT, SOFTWARE).logits
    chunked = peak_memory(WORK, LAYOUT, replace(SOFTWARE, logits_tokens=512)).logits
    assert whole == 4096 * 32000 * 10
    assert chunked == 512 * 32000 * 10 + 4096 * 1024 * 2 + 32000 * 1024 * 4


def test_a_pipelines_first_stage_holds_as_many_activations_as_one_rank_would():
    narrow, layout = replace(WORK, vocab=64), replace(LAYOUT, pipeline=4, accumulation=8)
    whole = peak_memory(narrow, LAYOUT, SOFTWARE).activations
    assert peak_memory(narrow, layout, SOFTWARE).activations == pytest.approx(whole)


def test_rings_move_all_but_the_own_part_over_the_slower_link():
    near = Group.strided(8, 1, MACHINE)
    far = Group.strided(64, 1, MACHINE)
    assert (near.nodes, far.nodes) == (1, 8)
    assert gathered_bytes(8e9, near) == 7e9
    seconds = gather_seconds(8e9, near, MACHINE)
    assert seconds == pytest.approx(7e9 / 400e9 / 0.85 + 8.4e-6 + 7 * 3.4e-6)
    slow = gather_seconds(8e9, far, MACHINE)
    assert slow == pytest.approx(8e9 * 63 / 64 / 400e9 / 0.85 + 8.4e-6 + 56 * 3.4e-6 + 7 * 14e-6)
    assert reduce_seconds(8e9, near, MACHINE) == 2 * seconds
    assert gather_seconds(8e9, Group(1, 1), MACHINE) == exchange_seconds(8e9, Group(1, 1), MACHINE) == 0
    assert exchange_seconds(1e9, far, MACHINE) > exchange_seconds(1e9, near, MACHINE)


def seconds(**changes):
    return step_time(WORK, replace(LAYOUT, **changes), SOFTWARE, MACHINE, FITTED)


def test_a_tree_sums_small_arrays_over_many_nodes_faster_than_a_ring():
    far = Group(64, 1)
    assert reduce_seconds(1e6, far, MACHINE) < 2 * gather_seconds(1e6, far, MACHINE)
    # and moves large ones more slowly
    assert reduce_seconds(1e12, far, MACHINE) == 2 * gather_seconds(1e12, far, MACHINE)


def test_each_bucket_pays_the_latency_of_an_exchange():
    whole, buckets = Software(), Software(bucket_params=10**6)
    for stage in (0, 1, 2):
        layout = Layout(64, 512, 1, 1, zero_stage=stage)
        one, many = (step_time(WORK, layout, habit, MACHINE, FITTED) for habit in (whole, buckets))
        assert many.exposed + many.hidden > one.exposed + one.hidden


def test_micro_batches_are_added_at_the_speed_of_memory():
    layout = Layout(1, 512, 1, 4)
    plain, added = (
        step_time(WORK, layout, Software(adding_bytes=size), MACHINE, FITTED).elementwise for size in (0, 10)
    )
    bandwidth = MACHINE.stream_efficiency * MACHINE.memory_bandwidth
    assert added - plain == pytest.approx(4 * 10 * WORK.params / bandwidth)


def test_no_step_is_faster_than_its_arithmetic():
    flops = CONVENTIONS["causal"](WORK, 2048) * LAYOUT.tokens_per_step
    assert seconds().total > flops / (8 * 1000e12)


def test_recomputation_costs_a_forward_pass_or_less():
    plain, selective, full = (seconds(checkpointing=kind) for kind in ("none", "selective", "full"))
    assert plain.recompute == 0 < selective.recompute < full.recompute
    assert full.recompute < (plain.gemm + plain.attention + plain.elementwise) / 2
    assert full.limit


def test_exchanges_grow_with_the_stage_and_with_more_nodes():
    reduced = [seconds(zero_stage=stage) for stage in (0, 1, 2, 3)]
    moved = [time.exposed + time.hidden for time in reduced]
    assert moved[0] == pytest.approx(moved[1], rel=0.01)  # an all-reduce is both halves
    assert moved[1] < moved[2] < moved[3]
    near, far = seconds(zero_stage=3), seconds(zero_stage=3, ranks=512)
    assert far.exposed > near.exposed
    assert far.gemm == near.gemm


def test_one_more_copy_in_each_node_lets_backward_gather_inside_it():
    everywhere, near = seconds(zero_stage=3, ranks=512), seconds(zero_stage=3, ranks=512, hpz=8)
    assert near.exposed < everywhere.exposed
    wide = peak_memory(WORK, replace(LAYOUT, zero_stage=3, ranks=512), SOFTWARE)
    hierarchical = peak_memory(WORK, replace(LAYOUT, zero_stage=3, ranks=512, hpz=8), SOFTWARE)
    assert hierarchical.weights == wide.weights + WORK.params / 8 * 2


def test_one_rank_exchanges_nothing():
    assert seconds(ranks=1).exposed == 0
    assert not any(sent_bytes(WORK, replace(LAYOUT, ranks=1), SOFTWARE, MACHINE).values())


@pytest.mark.parametrize(
    ("stage", "times", "whole"),
    [(0, 2, False), (1, 2, False), (2, 2, False), (3, 3, False), (1, 3, True), (2, 3, True), (3, 3, True)],
)
def test_a_rank_sends_what_zero_says_it_does(stage, times, whole):
    """Rajbhandari et al. 2020, section 7: 2 psi up to stage 2, and 3 psi at stage 3; whatever the links.

    DeepSpeed sums whole gradients at stages 1 and 2 too: one psi more.
    """
    layout = replace(LAYOUT, zero_stage=stage, ranks=64, accumulation=1)
    software = replace(SOFTWARE, weight_bytes=2, reduced_bytes=2, gathers=2, sums_whole=whole)
    for machine in (MACHINE, replace(MACHINE, per_node=1, local_bandwidth=1e9)):
        sent = sent_bytes(WORK, layout, software, machine)
        assert sum(sent.values()) == pytest.approx(times * 2 * WORK.params * 63 / 64)


def test_expert_parallelism_divides_experts_and_costs_exchanges():
    """What a rank keeps of experts is its share of them; the rest of the model is partitioned as before."""
    work = replace(WORK, experts=8, active_experts=2)
    layout = replace(LAYOUT, zero_stage=2)
    whole, parted = (peak_memory(work, replace(layout, expert=ranks), SOFTWARE) for ranks in (1, 4))
    experts = work.layers * work.expert_params
    assert whole.weights - parted.weights == pytest.approx(0.75 * experts * SOFTWARE.weight_bytes)
    assert parted.optimizer == pytest.approx(whole.optimizer)
    assert parted.activations == whole.activations
    times = [step_time(work, replace(layout, expert=ranks), SOFTWARE, MACHINE, FITTED) for ranks in (1, 2, 4)]
    # the same arithmetic, but each expert's products have more rows
    assert times[0].gemm > times[1].gemm > times[2].gemm > 0.7 * times[0].gemm
    assert times[0].expert_exchange == 0 < times[1].expert_exchange < times[2].expert_exchange
    again = replace(layout, expert=4, checkpointing="full")
    kept, recomputed = times[2], step_time(work, again, SOFTWARE, MACHINE, FITTED)
    assert recomputed.expert_exchange == pytest.approx(1.5 * kept.expert_exchange)


def test_sequence_parallelism_divides_activations_and_costs_exchanges():
    alone, shared = (
        replace(LAYOUT, accumulation=1),
        replace(LAYOUT, sequence=4, micro_batch=8, accumulation=1),
    )
    assert shared.tokens_per_step == alone.tokens_per_step
    assert step_time(WORK, shared, SOFTWARE, MACHINE, FITTED).sequence_exchange > 0
    one = peak_memory(WORK, replace(LAYOUT, sequence=4), SOFTWARE)
    assert one.activations == pytest.approx(peak_memory(WORK, LAYOUT, SOFTWARE).activations / 4)


def test_stages_have_whole_blocks_and_the_longest_sets_the_pace():
    """nanotron's cut of 28 blocks and an output projection worth 3.6 of them; Megatron's equal counts."""
    model = replace(
        WORK,
        hidden=3072,
        layers=28,
        heads=32,
        kv_heads=32,
        head_dim=96,
        intermediate=8192,
        vocab=131072,
        tied=True,
    )
    layout = replace(LAYOUT, pipeline=2)
    weighed = [stage.blocks for stage in stages_of(model, layout, replace(SOFTWARE, weighs_stages=True))]
    assert weighed == [16, 12]
    assert [stage.blocks for stage in stages_of(model, replace(layout, pipeline=3), SOFTWARE)] == [10, 9, 9]
    even = [(stage.blocks, stage.first, stage.last) for stage in stages_of(model, layout, SOFTWARE)]
    assert even == [(14, True, False), (14, False, True)]
    cut, equal = (
        step_time(model, layout, replace(SOFTWARE, weighs_stages=weighs), MACHINE, FITTED)
        for weighs in (True, False)
    )
    assert 0 < cut.uneven < equal.uneven  # what weighing is for
    assert step_time(model, LAYOUT, SOFTWARE, MACHINE, FITTED).uneven == 0


def test_the_bubble_shrinks_with_micro_batches():
    few, many = (seconds(pipeline=4, accumulation=count) for count in (4, 32))
    assert few.bubble / few.total > 3 * many.bubble / many.total


@pytest.mark.parametrize(
    ("save", "mttf_hours", "minutes"), [(40, 168, 116), (60, 7.9, 31), (60, 3.1, 19), (30, 14 / 60, 3.7)]
)
def test_young_and_dalys_interval(save, mttf_hours, minutes):
    assert young_daly(save, mttf_hours * 3600) / 60 == pytest.approx(minutes, rel=0.03)


def test_goodput_is_the_published_estimate():
    """Kokolis et al. 2024: 1 024 GPUs, 60 s to save, 5 min to restart."""
    found = expected_goodput(
        nodes=128, node_mttf_seconds=128 * 7.9 * 3600, save_seconds=60, restart_seconds=300, busy_seconds=1e7
    )
    assert found.mttf_seconds == pytest.approx(7.9 * 3600)
    assert found.fraction == pytest.approx(0.924, abs=0.005)
    hopeless = expected_goodput(
        nodes=10**6, node_mttf_seconds=3600e3, save_seconds=60, restart_seconds=300, busy_seconds=1e7
    )
    assert 0 < hopeless.fraction < 1e-10
    assert math.isfinite(hopeless.failures)
