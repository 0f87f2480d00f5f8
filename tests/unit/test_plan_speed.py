"""What work waits for (launches, exchanges, other stages), and what the software of a rank holds."""

import json
from dataclasses import replace

import pytest
from planner_tables import machine_of_profile

from distllm.commands.plan import run as plan_command
from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.config.schema_model import ModelConfig
from distllm.config.shape import settle_shape
from distllm.plan.calibration import Calibration, write_calibration
from distllm.plan.experiment import layout_of
from distllm.plan.fitted import FITTED
from distllm.plan.launches import forward_kernels, host_seconds
from distllm.plan.layout import Layout, Software
from distllm.plan.memory import peak_memory, saved_per_token
from distllm.plan.software import software_of
from distllm.plan.speed import step_time
from distllm.plan.work import Work, work_of

H100 = machine_of_profile("h100")
TINY = Work(
    hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, intermediate=768,
    mlp_matrices=3, vocab=4096, tied=True,
)  # fmt: skip
CHUNKS = software_of(compose(["cluster=h100"]), Layout(1, 512, 1, 1))
ONE = Layout(ranks=1, seq_len=512, micro_batch=1, accumulation=1)


def kernels_of(work):
    """Return what ``work`` returns, and how many of its operations are kernels on a GPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    others = {
        "t", "view", "_unsafe_view", "split", "split_with_sizes", "slice", "detach", "expand",
        "scalar_tensor", "promote_types",
    }  # fmt: skip

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.kernels = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            self.kernels += name not in others and "empty" not in name
            return operation(*args, **(kwargs or {}))

    with Count() as count:
        result = work()
    return result, count.kernels


def kernels_of_block(**options):
    """Return the work of a block, and its kernels forward and backward."""
    torch = pytest.importorskip("torch")

    from distllm.models.layers import Block, Context
    from distllm.ops.attention import plan_attention
    from distllm.ops.rope import rotation

    shape = settle_shape(ModelConfig(hidden_size=64, num_layers=1, num_heads=4, **options), 64, 16)
    block = Block(shape, 0, 1, causal=True, cross=False)
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
        weight.grad = torch.zeros_like(weight)
    x_BTC = torch.randn(2, 16, 64, requires_grad=True)
    turns = None
    if shape.positions == "rope":
        positions = torch.arange(16).expand(2, 16)
        turns = rotation(positions, shape.head_dim, shape.rope_theta, torch.float32)
    context = Context(plan_attention(torch.zeros(2, 16, dtype=torch.long), torch.device("cpu")), turns)
    y_BTC, forward = kernels_of(lambda: block(x_BTC, context))
    grad = torch.randn_like(y_BTC)
    return work_of(shape), forward, kernels_of(lambda: y_BTC.backward(grad))[1]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("positions", "passes"), [("rope", 9), ("learned", 0)])
def test_kernels_are_those_that_a_block_launches(gated, positions, passes):
    # LayerNorm: RMSNorm is one kernel on a GPU only
    work, forward, backward = kernels_of_block(norm="layer", gated=gated, positions=positions)
    software = Software(rotation_passes=passes)
    assert forward_kernels(work, software) == forward
    assert 2 * forward == pytest.approx(backward, rel=0.3)
    assert forward_kernels(work, replace(software, compiled=True)) < forward


def test_each_chunk_of_the_loss_is_launched():
    torch = pytest.importorskip("torch")
    from distllm.ops.cross_entropy import CHUNK_TOKENS, linear_cross_entropy

    def kernels(chunks):
        count = chunks * CHUNK_TOKENS
        hidden_NC, weight_VC = (
            torch.randn(count, 8, requires_grad=True),
            torch.randn(16, 8, requires_grad=True),
        )
        targets_N = torch.zeros(count, dtype=torch.long)
        return kernels_of(lambda: linear_cross_entropy(hidden_NC, weight_VC, targets_N).backward())[1]

    more = replace(ONE, seq_len=2 * CHUNK_TOKENS)
    one, two = (
        host_seconds(TINY, layout, CHUNKS, H100) for layout in (replace(ONE, seq_len=CHUNK_TOKENS), more)
    )
    assert kernels(2) - kernels(1) == round((two - one) / H100.launch_seconds)


def test_small_models_wait_for_launches_and_larger_micro_batches_less_so():
    def time(**changes):
        return step_time(TINY, replace(ONE, **changes), Software(), H100, FITTED)

    one = time()
    assert one.limit == "kernel launches"
    assert one.launching > 0.8 * one.total
    once, often = time(micro_batch=8), time(accumulation=8)
    assert once.total < often.total / 4
    assert once.limit == "kernel launches"
    patient = time(micro_batch=1024)
    assert patient.launching == 0
    assert patient.limit != "kernel launches"
    fused = step_time(TINY, ONE, Software(compiled=True), H100, FITTED)
    assert fused.launching < one.launching
    again = time(checkpointing="full"), time(checkpointing="selective")
    assert again[0].launching > again[1].launching > one.launching
    measured = replace(H100, launch_seconds=0.0)  # as on this machine's CPUs
    assert step_time(TINY, ONE, Software(), measured, FITTED).launching == 0


def test_every_pass_and_exchange_is_launched():
    def host(layout=ONE, **habits):
        return host_seconds(TINY, layout, Software(**habits), H100)

    block = H100.launch_seconds * TINY.layers * forward_kernels(TINY, Software())
    assert host(forward_passes=2) - host() == pytest.approx(block)
    assert host(reference_bytes=2) - host() == pytest.approx(block)
    assert host(logits_tokens=64) > host(logits_tokens=512) == host()
    assert host(replace(ONE, sequence=2, ranks=2)) > host()
    assert host(replace(ONE, pipeline=2, ranks=2)) < host()


def test_the_plan_of_a_small_model_says_what_limits_it(tmp_path, capsys):
    words = ["model=llama-tiny", "precision=bf16", "train.max_steps=10", "train.tokens_per_step=131072"]
    assert plan_command(["cluster=h100", "engine.micro_batch_tokens=512", *words]) == 0
    out = capsys.readouterr().out
    assert "limited by kernel launches" in out
    assert "  launches " in out
    assert plan_command(["cluster=h100", "engine.micro_batch_tokens=512", "--json", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    best, asked = plan["found"]["best"][0], plan["asked"]
    assert best["layout"]["micro_batch"] > 8 * asked["layout"]["micro_batch"]
    assert best["tokens_per_second"] > 8 * asked["tokens_per_second"]
    # what was measured of CPUs has the time of launches in it
    write_calibration(tmp_path, Calibration(1, 2, 80e9, 28e9, 9e9, 30e9, 4e8, 1e-3))
    assert plan_command(["model=llama-tiny", "train.max_steps=10", f"runs_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "launches" not in out


def test_work_is_slower_beside_an_exchange():
    large = replace(TINY, hidden=4096, heads=32, head_dim=128, intermediate=16384)
    layout = Layout(ranks=64, seq_len=4096, micro_batch=2, accumulation=2, zero_stage=1, tensor=8)

    def time(**habits):
        return step_time(large, layout, Software(**habits), H100, FITTED)

    hides = time(overlaps_data=True, tensor_exposed=0.0)
    assert hides.tensor_exchange == 0
    whole = time(overlaps_data=True)
    assert hides.slowed - whole.slowed == pytest.approx(whole.tensor_exchange * 0.189 / 1.189, rel=0.05)
    assert whole.slowed == pytest.approx(whole.hidden * 0.189 / 1.189)
    assert whole.hidden > time().hidden
    assert hides.total < whole.total < time().total  # hiding still wins


def test_a_pipelines_longest_stage_waits_for_each_other_stage_once():
    work = replace(TINY, layers=6, tied=False)
    layout = Layout(ranks=4, seq_len=512, micro_batch=64, accumulation=8, pipeline=4)
    found = step_time(work, layout, Software(), H100, FITTED)
    micro = (found.total - found.bubble - found.uneven - found.update) / 8
    longest = micro + found.uneven / 8
    # every stage computes the first micro-batch in turn, then the longest all others
    assert found.total - found.update == pytest.approx(4 * micro + 7 * longest)
    chunks = step_time(work, replace(layout, virtual_stages=2), Software(), H100, FITTED)
    assert chunks.bubble == pytest.approx(found.bubble / 2)


def test_every_exchange_of_a_pipeline_counts():
    work, layout = replace(TINY, layers=8), Layout(16, 512, 8, 8, pipeline=2)

    def time(model=work, parts=layout, **habits):
        return step_time(model, parts, Software(**habits), H100, FITTED)

    # an embedding at both ends is summed between them
    untied = time(replace(work, tied=False))
    assert time().exposed + time().hidden > untied.exposed + untied.hidden
    assert time(stage_messages=4).stage_exchange > 0 == time().stage_exchange
    # chunks of an interleaved pipeline send more, and hide it, which slows them
    chunks = replace(layout, virtual_stages=4)
    assert time(parts=chunks).slowed > time().slowed
    assert time(parts=chunks).stage_exchange == 0


@pytest.mark.slow
def test_what_deepspeed_moves_between_passes_is_counted_on_gpus():
    def software(cluster, stage, accumulation=1):
        config = compose([f"cluster={cluster}", "precision=bf16"])
        return software_of(config, Layout(8, 512, 1, accumulation, zero_stage=stage))

    whole = [software("h100", stage) for stage in range(4)]
    assert [one.adding_bytes for one in whole] == [0, 0, 12, 16]
    assert [one.clipping_bytes for one in whole] == [12, 12, 0, 0]
    assert [one.update_bytes for one in whole] == [28, 54, 54, 54]
    assert software("h100", 1, accumulation=2).adding_bytes == 6
    assert all(one.sums_whole for one in whole)
    here = [software("local", stage) for stage in range(4)]
    assert {one.update_bytes for one in here} == {28}  # more is in what was measured


def test_without_partitioning_deepspeed_sums_gradients_after_backward():
    config = compose(["cluster=h100", "precision=bf16"])
    layout = Layout(ranks=8, seq_len=2048, micro_batch=8, accumulation=1)
    after = software_of(config, layout)
    behind = replace(after, flattened_sums=0)
    assert step_time(TINY, layout, after, H100, FITTED).hidden == 0
    assert step_time(TINY, layout, behind, H100, FITTED).hidden > 0
    assert peak_memory(TINY, layout, after).buffers > peak_memory(TINY, layout, behind).buffers


def test_a_block_keeps_for_backward_what_autograd_keeps():
    """Two blocks more keep twice what the planner counts for one, where torch does not fuse norms."""
    import torch

    from distllm.models.init import build_model

    def kept(num_layers):
        options = {"hidden_size": 192, "num_layers": num_layers, "num_heads": 8, "num_kv_heads": 2}
        shape = settle_shape(ModelConfig(**options), vocab_size=64, seq_len=64)
        model, tokens = build_model(shape, seed=0), torch.zeros(2, 64, dtype=torch.long)
        positions, saved = torch.arange(64).repeat(2, 1), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            model(tokens, positions, torch.zeros_like(positions), tokens)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        return sum(size for at, size in storages.items() if at not in weights), work_of(shape)

    (three, work), (five, _) = kept(3), kept(5)
    counted = saved_per_token(work, Software(norm_saved=3), "none") * 2 * 64 * 4
    assert (five - three) / 2 == pytest.approx(counted, rel=0.01)


def test_a_cpu_process_holds_what_it_imports():
    def held(*words):
        run = resolve(compose(["train.max_steps=1", *words]), starts_here=False)
        return software_of(run.config, layout_of(run)).base_bytes

    local, whole, parted = held("engine=local"), held("engine=zero0"), held("engine=zero1")
    assert 200e6 < local < whole < parted == held("engine=zero3")
