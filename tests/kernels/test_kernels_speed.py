"""The benchmark for a machine with a GPU runs whole on this one, at sizes that measure nothing."""

import json

import pytest
from bench import kernel_speed
from gate import roofline


@pytest.fixture(scope="module")
def rows():
    return kernel_speed.measure(
        kernel_speed.DRY, lambda function: function() is None or 1.0, roofline.GPUS[1]
    )


def test_everybody_computes_the_same_and_has_a_row(rows):
    ours = [row for row in rows if row["contestant"].startswith("distllm")]
    tasks = {row["task"] for row in rows}
    assert len(tasks) == len({row["task"] for row in ours}) == 7
    assert all(row["difference"] <= 1e-4 and row["both_ms"] == 1.0 for row in ours)
    absent = {(row["contestant"], row["absent"]) for row in rows if "absent" in row}
    needs_a_gpu = {"Liger", "cuDNN", "FlashAttention-3", "FlashAttention-4", "flex_attention, compiled"}
    assert {name for name, why in absent if why == "needs a GPU"} == needs_a_gpu
    assert not [row for row in rows if "failed" in row]
    assert {row["contestant"] for row in rows} >= {
        "sdpa",
        "torch",
        "FlashAttention-2",
        "torch.compile",
        "Liger",
    }


def test_predictions_stand_beside_what_was_measured(rows):
    predicted = {row["task"] for row in rows if "predicted_both_ms" in row}
    assert len(predicted) == 6  # the roofline has no LayerNorm of its own
    for row in rows:
        if row["task"] in predicted and row["contestant"].startswith("distllm"):
            (forward, _), (both, slowest) = row["predicted_forward_ms"], row["predicted_both_ms"]
            assert 0 < forward < both <= slowest


def test_rows_are_written_and_printed(rows, tmp_path):
    kernel_speed.write(tmp_path / "speed.json", rows, kernel_speed.DRY)
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["device"] == "cpu"
    assert written["rows"] == rows
    assert len(kernel_speed.table(rows)) == 2 + len(rows)


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch):
    from bench import kernel_tasks

    off = kernel_tasks.Task(
        "a sum", lambda: kernel_tasks.tensors(kernel_speed.DRY, (3,)),
        {"torch": lambda: lambda x: x * 2, "Liger": lambda: lambda x: x * 3,
         "distllm": lambda: lambda x: x * 2.1},
    )  # fmt: skip
    monkeypatch.setattr(kernel_tasks, "tasks", lambda _setting: [off])
    with pytest.raises(AssertionError, match="off what torch computes"):
        kernel_speed.measure(kernel_speed.DRY, lambda function: 1.0)
    monkeypatch.delitem(off.contestants, "distllm")
    rows = kernel_speed.measure(kernel_speed.DRY, lambda function: 1.0)
    assert "forward_ms" in rows[0]
    assert "is 5.0e-01 off" in rows[1]["failed"]
