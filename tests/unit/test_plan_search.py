"""The search, what it may choose from, and the words in which a plan is told."""

import itertools
import json
from dataclasses import replace

import pytest
from planner_tables import machine_of_profile

from distllm.commands.plan import run as plan_command
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.config.resolve import resolve
from distllm.config.schema_hardware import HardwareConfig
from distllm.errors import IntegrityError
from distllm.plan.admission import check_memory, overrides
from distllm.plan.calibration import Calibration, machine_of_calibration, read_calibration, write_calibration
from distllm.plan.estimate import bill, estimate
from distllm.plan.experiment import device_memory, layout_of, space_of
from distllm.plan.fitted import FITTED
from distllm.plan.layout import Layout
from distllm.plan.machine import Machine
from distllm.plan.profile import machine_of_hardware, missing_figures
from distllm.plan.report import describe, make_plan
from distllm.plan.scaling import LARGEST, scale_out
from distllm.plan.search import Space, layouts, search
from distllm.plan.software import software_of
from distllm.plan.work import Work, work_of

WORK = Work(
    hidden=2048, layers=16, heads=16, kv_heads=4, head_dim=128, intermediate=8192,
    mlp_matrices=3, vocab=32000, tied=True,
)  # fmt: skip
EVERYTHING = Space()


def resolved(*words):
    return resolve(compose(["cluster=h100", "train.max_steps=10", *words]), starts_here=False)


RUN = resolved(
    "model=llama-1b", "precision=bf16", "data.seq_len=2048", "train.tokens_per_step=131072",
    "engine.micro_batch_tokens=8192",
)  # fmt: skip

pytestmark = pytest.mark.slow


def test_every_layout_takes_the_same_step():
    found = list(layouts(WORK, 8, 2048, 131072, EVERYTHING))
    assert len(found) == len(set(found))
    for layout in found:
        assert layout.tokens_per_step == 131072
        assert layout.ranks == layout.data * layout.sequence


def test_every_combination_is_there():
    found = set(layouts(WORK, 8, 2048, 131072, EVERYTHING))
    for stage, kept, micro in itertools.product(range(4), ("none", "selective", "full"), (1, 2, 4, 8)):
        wanted = Layout(8, 2048, micro, 8 // micro, zero_stage=stage, checkpointing=kept)
        assert wanted in found, wanted


def test_heads_bound_the_ranks_of_a_sequence():
    degrees = {layout.sequence for layout in layouts(WORK, 8, 2048, 131072, EVERYTHING)}
    assert degrees == {1, 2, 4, 8}  # four key/value heads: eight ranks hold each twice

    def of(**heads):
        return {x.sequence for x in layouts(replace(WORK, **heads), 8, 2048, 131072, EVERYTHING)}

    assert of(heads=12, kv_heads=6) == {1, 2}  # four ranks cannot divide six, nor six four
    assert of(heads=10, kv_heads=1) == {1, 2}


def test_experts_divide_among_ranks_that_share_nothing_else():
    mixture = replace(WORK, experts=8, active_experts=2)
    found = list(layouts(mixture, 8, 2048, 131072, Space(expert=(1, 2, 4, 8, 16))))
    assert {x.expert for x in found} == {1, 2, 4, 8}
    assert {x.expert for x in layouts(WORK, 8, 2048, 131072, Space(expert=(1, 2)))} == {1}
    assert all(x.sequence == 1 and x.offload == "none" for x in found if x.expert > 1)


def test_a_mixture_too_large_for_every_rank_is_planned_with_experts_parted():
    run = resolved(
        "model=mixtral-8x7b", "precision=bf16", "data.seq_len=4096", "train.tokens_per_step=2097152",
        "cluster.nodes=8", "engine.micro_batch_tokens=4096", "engine.expert_ranks=8", "engine=zero2",
        "engine.activation_checkpointing=full",
    )  # fmt: skip
    plan = make_plan(run, machine_of_profile("h100"), FITTED)
    assert plan.asked.layout.expert == 8
    assert "8 ranks the experts" in describe(plan, run)
    assert {x.layout.expert for x in plan.found.best} > {1}
    parted = next(x.layout for x in plan.found.best if x.layout.expert == 8)
    assert "engine.expert_ranks=8" in overrides(replace(parted, expert=1), parted)


def test_offloading_needs_partitioned_gradients():
    stages = {x.zero_stage for x in layouts(WORK, 8, 2048, 131072, EVERYTHING) if x.offload != "none"}
    assert stages == {2, 3}


def test_a_batch_that_no_rank_count_divides_has_no_layout():
    found = layouts(WORK, 8, 2048, 3 * 2048, EVERYTHING)
    assert {layout.sequence for layout in found} == {8}  # one group of all ranks takes any number of rows
    assert list(layouts(WORK, 8, 2048, 3 * 2048, Space(sequence=(1, 2, 4)))) == []
    with pytest.raises(ValueError, match="no layout"):
        search(iter([]), lambda layout: None)


def judge(layout, memory=80e9):
    machine = replace(machine_of_profile("h100"), memory_bytes=memory)
    return estimate(work_of(RUN.shape), layout, RUN.config, machine)


def brute_force(memory):
    every = [judge(layout, memory) for layout in layouts(work_of(RUN.shape), 8, 2048, 131072, EVERYTHING)]
    return every, [one for one in every if one.fits]


@pytest.mark.parametrize("memory", [80e9, 20e9, 8e9])
def test_the_search_finds_what_trying_everything_finds(memory):
    every, feasible = brute_force(memory)
    candidates = layouts(work_of(RUN.shape), 8, 2048, 131072, EVERYTHING)
    found = search(candidates, lambda layout: judge(layout, memory))
    assert found.tried == len(every)
    assert found.best[0].time.total == min(one.time.total for one in feasible)
    assert found.nearest.memory.device == min(one.memory.device for one in every)
    times = [one.time.total for one in found.best]
    assert times == sorted(times)
    kinds = [
        (x.layout.zero_stage, x.layout.checkpointing, x.layout.sequence, x.layout.offload) for x in found.best
    ]
    assert len(kinds) == len(set(kinds))


def test_less_memory_never_makes_a_faster_plan():
    speeds = []
    for memory in (80e9, 40e9, 20e9, 10e9, 6e9):
        _, feasible = brute_force(memory)
        speeds.append(max(one.tokens_per_second for one in feasible))
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] < speeds[0]


def test_what_limits_a_layout_is_named():
    fits = judge(Layout(8, 2048, 8, 1, zero_stage=1))
    assert fits.limited_by == "matrix products"
    too_large = judge(Layout(8, 2048, 8, 1), memory=1e9)
    assert too_large.limited_by.startswith("memory, most of it ")
    far = judge(Layout(4096, 2048, 1, 1, zero_stage=3))
    assert far.limited_by == "exchanges between ranks"


def test_the_layout_of_a_run_is_what_it_resolves_to():
    layout = layout_of(RUN)
    assert (layout.ranks, layout.micro_batch, layout.accumulation) == (8, 4, 2)
    assert layout.tokens_per_step == RUN.config.train.tokens_per_step
    assert layout.zero_stage == 2


def test_the_plain_engine_partitions_nothing():
    assert space_of(resolved("engine=local").config).zero_stages == (0,)
    assert space_of(RUN.config).zero_stages == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("words", "optimizer", "gradients"),
    [
        (["precision=fp32", "engine=zero0"], 8, 4),
        (["precision=fp32", "engine=zero2"], 12, 4),
        (["precision=bf16", "engine=zero1"], 12, 2),
    ],
)
def test_bytes_per_parameter_are_those_of_the_engine(words, optimizer, gradients):
    run = resolved(*words)
    software = software_of(run.config, layout_of(run))
    assert software.optimizer_bytes == optimizer
    assert software.grad_bytes == gradients
    assert software.weight_bytes == (4 if "fp32" in words[0] else 2)
    assert software.accumulated_bytes == 0


def test_wide_accumulation_is_counted_where_the_engine_does_it():
    run = resolved("precision=bf16", "engine=zero2")
    assert software_of(run.config, layout_of(run)).accumulated_bytes == 4
    assert run.deepspeed["data_types"]["grad_accum_dtype"] == "fp32"


def test_the_bill_follows_from_the_step():
    chosen = judge(layout_of(RUN))
    cost = bill(RUN.config, work_of(RUN.shape), chosen, 10**12)
    assert cost.steps == -(-(10**12) // 131072)
    assert cost.busy_seconds == pytest.approx(cost.steps * chosen.time.total)
    assert cost.wall_seconds == pytest.approx(cost.busy_seconds / cost.goodput.fraction)
    assert cost.gpu_hours == pytest.approx(8 * cost.wall_seconds / 3600)
    assert cost.energy_kwh == pytest.approx(cost.gpu_hours * 1.275)


def test_a_price_that_is_not_known_is_not_made_up():
    run = resolved("cluster.hardware.price_per_hour=null", "cluster.hardware.power_watts=null")
    cost = bill(run.config, work_of(run.shape), judge(layout_of(run)), 10**9)
    assert cost.price is None
    assert cost.energy_kwh is None
    text = describe(make_plan(run, machine_of_profile("h100"), FITTED), run)
    assert "price" not in text
    assert "energy" not in text


def test_a_plan_in_words_adds_up():
    plan = make_plan(RUN, machine_of_profile("h100"), FITTED)
    text = describe(plan, RUN)
    assert "1 as configured" not in text
    assert f"{plan.asked.mfu:.1%}" in text
    assert "causal convention" in text
    assert "precision=bf16" not in text
    lines = text.splitlines()
    start = lines.index("seconds of a step") + 1
    parts = list(itertools.takewhile(lambda line: "in all" not in line, lines[start:]))
    total = lines[start + len(parts)].split()[2]
    assert sum(float(line.split()[-1]) for line in parts) == pytest.approx(float(total), abs=5e-4)


def test_overrides_turn_the_run_into_the_layout():
    layout = layout_of(RUN)
    other = replace(layout, zero_stage=3, checkpointing="full", micro_batch=8, accumulation=1)
    words = overrides(layout, other)
    again = resolved(
        "model=llama-1b", "precision=bf16", "data.seq_len=2048", "train.tokens_per_step=131072",
        "engine.micro_batch_tokens=8192", *words,
    )  # fmt: skip
    assert layout_of(again) == other
    assert overrides(layout, layout) == []


def test_what_leaves_its_files_leaves_their_directory():
    asked = replace(layout_of(RUN), zero_stage=2, offload="disk")
    assert overrides(asked, replace(asked, offload="optimizer")) == [
        "engine.offload=cpu", "engine.offload_dir=null",
    ]  # fmt: skip
    assert overrides(replace(asked, offload="none"), asked) == ["engine.offload=nvme"]


@pytest.mark.parametrize("name", ["h100", "h200", "a100", "b200"])
def test_profiles_state_what_a_plan_needs(name):
    machine = machine_of_profile(name)
    assert machine.gemm_flops < machine.peak_flops
    assert machine.network_bandwidth < machine.local_bandwidth < machine.memory_bandwidth
    config = compose([f"cluster={name}", "train.max_steps=1"])
    assert missing_figures(config.cluster.hardware) == []
    assert machine_of_hardware(config.cluster.hardware) == machine
    assert config.cluster.hardware.price_per_hour is not None


def test_a_bare_profile_says_what_it_lacks():
    lacking = missing_figures(HardwareConfig(memory_gb=80))
    assert "memory_gb" not in lacking
    assert set(lacking) == {
        "peak_tflops",
        "gemm_tflops",
        "memory_gb_per_s",
        "link_gb_per_s",
        "network_gb_per_s",
    }


def test_a_device_has_the_memory_of_its_profile(monkeypatch):
    assert device_memory(RUN) == 85e9
    assert software_of(RUN.config, layout_of(RUN)).base_bytes == 0
    here = resolve(compose(["train.max_steps=1", "cluster.procs_per_node=2"]), starts_here=False)
    monkeypatch.setattr("distllm.plan.experiment.total_memory", lambda: 20e9)
    assert device_memory(here) == 10e9


def test_scaling_keeps_a_ranks_batch():
    rows = scale_out(RUN.config, work_of(RUN.shape), RUN, machine_of_profile("h100"))
    assert rows[-1].ranks == LARGEST
    exposed = [row.exposed for row in rows]
    assert exposed == sorted(exposed)
    for row in rows:
        assert row.mttf_hours == pytest.approx(3690 / (row.ranks / 8))
        assert row.interval_minutes < 60 * row.mttf_hours
    assert rows[-1].goodput < rows[0].goodput


CPU = Calibration(
    threads=1,
    ranks=2,
    gemm_flops=80e9,
    attention_flops=20e9,
    memory_bandwidth=9e9,
    update_bandwidth=30e9,
    reduce_bandwidth=4e8,
    reduce_seconds=1e-3,
)


def test_a_calibration_survives_its_file(tmp_path):
    path = write_calibration(tmp_path / "runs", CPU)
    assert read_calibration(tmp_path / "runs") == CPU
    assert read_calibration(tmp_path) is None
    path.write_text(json.dumps({"threads": 1}))
    with pytest.raises(IntegrityError, match="no calibration"):
        read_calibration(tmp_path / "runs")


def test_a_measured_machine_takes_the_time_that_was_measured():
    run = resolve(
        compose(
            ["train.max_steps=1", "engine=local", "cluster.threads_per_rank=1", "data.mask_documents=false"]
        ),
        starts_here=False,
    )
    machine, work = machine_of_calibration(CPU, run), work_of(run.shape)
    one = estimate(work, layout_of(run), run.config, machine, efficiency=CPU.efficiency)
    tokens = run.config.train.tokens_per_step
    blocks = work.layers * (work.attention_params + work.mlp_params)
    assert one.time.gemm == pytest.approx(6 * blocks * tokens / 80e9)
    attended = 4 * tokens * (run.config.data.seq_len / 2) * work.heads * work.head_dim * work.layers
    assert one.time.attention == pytest.approx(3.5 * attended / 20e9)
    assert one.time.exposed == 0
    assert one.time.update == pytest.approx(28 * work.params / 30e9)


def test_twice_the_threads_are_twice_as_fast():
    slow = resolve(compose(["train.max_steps=1", "cluster.threads_per_rank=1"]), starts_here=False)
    fast = resolve(compose(["train.max_steps=1", "cluster.threads_per_rank=2"]), starts_here=False)
    assert machine_of_calibration(CPU, fast).gemm_flops == 2 * machine_of_calibration(CPU, slow).gemm_flops


def test_throttling_slows_only_arithmetic():
    machine = Machine("x", 800e12, 1000e12, 80e9, 3e12, 400e9, 50e9)
    slow = machine.throttled(0.5)
    assert slow.gemm_flops == 400e12
    assert slow.long_attention_flops == machine.long_attention_flops / 2
    assert replace(slow, gemm_flops=800e12, attention_flops=0.0) == machine


def test_in_fp32_a_device_has_no_tensor_cores(capsys):
    machine = machine_of_profile("h100")
    slow = machine.in_fp32()
    assert slow.gemm_flops == pytest.approx(machine.gemm_flops * 67 / 989.4)
    assert (slow.peak_flops, slow.memory_bandwidth) == (machine.peak_flops, machine.memory_bandwidth)
    unknown = replace(machine, fp32_flops=0.0).in_fp32()
    assert unknown.gemm_flops == pytest.approx(machine.gemm_flops / 16)
    speeds = []
    for precision in ("bf16", "fp32"):
        words = ["cluster=h100", "train.max_steps=10", f"precision={precision}", "--json"]
        assert plan_command([*words, "model=llama-125m", "train.tokens_per_step=131072"]) == 0
        speeds.append(json.loads(capsys.readouterr().out)["asked"]["tokens_per_second"])
    assert speeds[0] > 4 * speeds[1]
    assert plan_command(["cluster=h100", "train.max_steps=10", "precision=fp32"]) == 0
    assert "without tensor cores: precision=bf16 is many times faster" in capsys.readouterr().out


def test_offloading_needs_host_memory():
    words = ("model=llama-1b", "precision=bf16", "engine=zero2", "engine.offload=cpu")
    run = resolved(*words)
    machine = machine_of_hardware(run.config.cluster.hardware)
    assert make_plan(run, machine, FITTED).asked.fits
    small = make_plan(run, replace(machine, host_memory_bytes=1e9), FITTED)
    assert not small.asked.fits
    assert small.asked.limited_by == "host memory"
    text = describe(small, run)
    assert "host memory          2.3 GiB   of 953.7 MiB: does NOT fit" in text
    assert "in all" in text.partition("does NOT fit")[0]
    assert all(one.layout.offload == "none" for one in small.found.best)
    problems = Problems()
    check_memory(resolved(*words, "cluster.hardware.host_memory_gb=1"), problems)
    [problem] = problems.found
    assert "of host memory a rank, and each has 953.7 MiB" in problem.cause
    assert problem.remedy == "nearest settings that fit: engine.offload=none"
    unknown = Problems()
    check_memory(resolved(*words, "cluster.hardware.host_memory_gb=null"), unknown)
    assert unknown.found == []


def test_a_contrastive_step_embeds_all_its_pairs_first():
    run = resolved("task=contrastive", "model=bert-base", "precision=bf16", "engine=zero3")
    other = resolved("task=masked_lm", "model=bert-base", "precision=bf16", "engine=zero3")
    first, plain = (
        estimate(work_of(one.shape), layout_of(one), one.config, machine_of_profile("h100")).time
        for one in (run, other)
    )
    assert plain.recompute == 0
    assert first.recompute == pytest.approx((first.gemm + first.attention + first.elementwise) / 3, rel=0.15)
    assert first.exposed + first.hidden > plain.exposed + plain.hidden  # weights are gathered once more


def test_others_count_the_same_run_otherwise():
    plan = make_plan(RUN, machine_of_profile("h100"), FITTED)
    assert set(plan.other_mfu) == {"full_square", "all_params"}
    assert plan.other_mfu["all_params"] >= plan.other_mfu["full_square"] > plan.asked.mfu
    text = describe(plan, RUN)
    assert f"in others' conventions full_square {plan.other_mfu['full_square']:.1%}" in text
