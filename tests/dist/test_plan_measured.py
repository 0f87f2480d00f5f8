"""The planner's memory against real runs of every ZeRO stage, and what recomputation changes."""

import pytest
from tiny import distllm, overrides, prepare, steps

from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.plan.estimate import software_of
from distllm.plan.experiment import base_bytes, layout_of
from distllm.plan.memory import peak_memory
from distllm.plan.work import work_of

CASES = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "full")]


def words(root, stage, kept):
    return overrides(
        root,
        "model.hidden_size=384", "model.num_layers=10", "model.num_heads=6", "model.num_kv_heads=6",
        "data.seq_len=512", "train.tokens_per_step=4096", "engine.micro_batch_tokens=1024", "train.max_steps=2",
        "cluster.threads_per_rank=1", "engine.bucket_bytes=32MiB", "eval.every_steps=0",
        "checkpoint.every_steps=100", f"engine.zero_stage={stage}", f"engine.activation_checkpointing={kept}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The step records of a run of each case."""
    root = tmp_path_factory.mktemp("planned")
    prepare(root)
    return root, {case: run(root, case) for case in CASES}


def run(root, case):
    name = "-".join(map(str, case))
    done = distllm("train", *words(root, *case), f"name={name}", timeout=280)
    assert done.returncode == 0, done.stderr
    return steps(root, name)


def peak(records):
    """Rank 0 notes the resident memory after a step; freed memory is kept, so that is the peak."""
    return max(record["memory_bytes"] for record in records.values())


def predicted(root, case):
    run = resolve(compose(words(root, *case)), starts_here=False)
    layout = layout_of(run)
    software = software_of(run.config, layout, base_bytes=base_bytes(run.config))
    return peak_memory(work_of(run.shape), layout, software).device


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
def test_memory_is_near_the_prediction(measured):
    root, records = measured

    def error(case, found):
        return predicted(root, case) / peak(found) - 1

    errors = {case: error(case, found) for case, found in records.items()}
    # equal runs of ZeRO-3 held 1.58 to 1.84 GB where 1.69 is predicted; other stages repeat themselves
    assert all(abs(missed) < 0.10 for missed in errors.values()), errors


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
def test_recomputation_changes_no_loss_and_saves_memory(measured):
    _, records = measured

    def of(case, key):
        return [record[key] for _, record in sorted(records[case].items())]

    assert of((2, "full"), "loss") == of((2, "none"), "loss")
    assert of((2, "full"), "grad_norm") == of((2, "none"), "grad_norm")
    assert peak(records[2, "full"]) < 0.8 * peak(records[2, "none"])
    for stage in (1, 2, 3):
        assert of((stage, "none"), "loss") == pytest.approx(of((0, "none"), "loss"), rel=1e-5)
