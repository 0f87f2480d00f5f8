"""The planner's memory against real runs of every ZeRO stage, and what recomputation changes."""

import json
import random

import pytest
from tiny import WORDS, distllm, overrides, prepare, steps

from distllm.config.compose import compose
from distllm.config.resolve import resolve
from distllm.data.tokenizer import Tokenizer
from distllm.plan.experiment import layout_of
from distllm.plan.memory import peak_memory
from distllm.plan.software import software_of
from distllm.plan.work import work_of

CASES = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (3, "selective"), (2, "full")]


def words(root, stage, kept, *more):
    return overrides(
        root,
        "model.hidden_size=384", "model.num_layers=10", "model.num_heads=6", "model.num_kv_heads=6",
        "data.seq_len=512", "train.tokens_per_step=4096", "engine.micro_batch_tokens=1024", "train.max_steps=2",
        "cluster.threads_per_rank=1", "engine.bucket_bytes=32MiB", "eval.every_steps=0",
        "checkpoint.every_steps=100", f"engine.zero_stage={stage}", f"engine.activation_checkpointing={kept}",
        *more,
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
    """Rank 0 notes what it holds after a step; freed memory is kept, so that is the peak."""
    return max(record["memory_bytes"] for record in records.values())


def predicted(asked):
    run = resolve(compose(asked), starts_here=False)
    layout = layout_of(run)
    return peak_memory(work_of(run.shape), layout, software_of(run.config, layout))


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
def test_memory_is_near_the_prediction(measured):
    root, records = measured

    def error(case, found):
        return predicted(words(root, *case)).device / peak(found) - 1

    errors = {case: error(case, found) for case, found in records.items()}
    # equal runs of ZeRO-3 held 1.58 to 1.84 GB where 1.69 is predicted; other stages repeat themselves
    print({case: (round(peak(found) / 2**20), f"{errors[case]:+.1%}") for case, found in records.items()})
    assert all(abs(missed) < 0.10 for missed in errors.values()), errors


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
def test_memory_of_preferences_counts_the_reference_and_whole_logits(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    prepare(tmp_path)
    folder, generator = tmp_path / "begun", random.Random(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 384}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=12)).save_pretrained(folder)
    Tokenizer.load(tmp_path / "data").save(folder)

    def some(count):
        return " ".join(generator.choices(WORDS, k=count))

    records = [{"prompt": some(40), "chosen": some(40), "rejected": some(40)} for _ in range(200)]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = words(
        tmp_path, 2, "none", "name=dpo", "task=dpo", "data=preferences", "data.too_long=drop",
        f"data.paths=[{tmp_path}/preferences.jsonl]", f"data.out={tmp_path}/preferred", "clean.min_chars=1",
        f"tokenizer.path={folder}", "model=hf", f"model.init_from={folder}", "engine.bucket_bytes=1MiB",
        "train.tokens_per_step=1024", "engine.micro_batch_tokens=512",
    )  # fmt: skip
    asked = [word for word in asked if not word.startswith(("model.hidden", "model.num", "tokenizer.vocab"))]
    for verb in ("prepare", "train"):
        done = distllm(verb, *asked, timeout=280)
        assert done.returncode == 0, done.stderr
    need, held = predicted(asked), peak(steps(tmp_path, "dpo"))
    assert abs(need.device / held - 1) < 0.10, (need, held)
    assert (need.device - need.reference) / held - 1 < -0.05  # without it the plan would be too small


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
    assert of((3, "selective"), "loss") == of((3, "none"), "loss")
    assert of((3, "selective"), "grad_norm") == of((3, "none"), "grad_norm")
    for stage in (1, 2, 3):
        assert of((stage, "none"), "loss") == pytest.approx(of((0, "none"), "loss"), rel=1e-5)
