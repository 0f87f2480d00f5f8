import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.config.engine import deepspeed_json

ARGUMENTS = {
    "zero_stage": 2,
    "micro_batch_size": 3,
    "grad_accum_steps": 5,
    "world_size": 7,
    "grad_clip": 1.0,
    "compute": "fp32",
    "bucket_bytes": 64 * 2**20,
    "device": "cpu",
}

arguments = st.fixed_dictionaries(
    {
        "zero_stage": st.integers(0, 3),
        "micro_batch_size": st.integers(1, 512),
        "grad_accum_steps": st.integers(1, 512),
        "world_size": st.integers(1, 4096),
        "grad_clip": st.floats(0, 10),
        "compute": st.sampled_from(["fp32", "bf16"]),
        "bucket_bytes": st.integers(4096, 2**34),
        "device": st.sampled_from(["cpu", "cuda"]),
        "offload": st.sampled_from(["none", "cpu", "nvme"]),
    }
)


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


@given(arguments)
def test_nothing_is_left_to_deepspeed(values):
    document = deepspeed_json(**values)
    assert "auto" not in list(leaves(document))
    assert document == json.loads(json.dumps(document))
    assert document["train_batch_size"] == (
        values["micro_batch_size"] * values["grad_accum_steps"] * values["world_size"]
    )
    zero = document["zero_optimization"]
    width = 4 if values["compute"] == "fp32" else 2
    for name in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
        assert zero[name] % 2 == 0
        assert 0 <= values["bucket_bytes"] - zero[name] * width < 2 * width


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_offload_puts_the_optimizer_into_main_memory_without_a_build(device, pinned):
    assert "offload_optimizer" not in deepspeed_json(**ARGUMENTS)["zero_optimization"]
    document = deepspeed_json(**ARGUMENTS | {"device": device, "offload": "cpu"})
    assert document["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": pinned}
    assert document["zero_force_ds_cpu_optimizer"] is False


def test_only_a_gpu_overlaps_exchange_and_computation():
    assert deepspeed_json(**ARGUMENTS)["zero_optimization"]["overlap_comm"] is False
    assert deepspeed_json(**ARGUMENTS | {"device": "cuda"})["zero_optimization"]["overlap_comm"] is True


ACCEPT = """
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
import deepspeed.runtime.constants, deepspeed.runtime.zero.config, deepspeed.monitor.config, inspect

for document in json.load(sys.stdin):
    config = DeepSpeedConfig(document)
    assert int(config.zero_config.stage) == document["zero_optimization"]["stage"]
    assert config.bfloat16_config.enabled == document["bf16"]["enabled"]
    assert config.gradient_clipping == document["gradient_clipping"]
    assert config.steps_per_print is None
    given = document["zero_optimization"]
    for name, field in type(config.zero_config).model_fields.items():
        key = field.alias or name
        if key in given:
            understood = getattr(config.zero_config, name)
            if hasattr(understood, "model_dump"):
                understood = understood.model_dump()
            assert understood == given[key], key
# DeepSpeed takes an unknown key at the top for a comment: each must be a name in its sources.
known = {value for value in vars(deepspeed.runtime.constants).values() if isinstance(value, str)}
known |= {"zero_optimization", "bf16", "torch_autocast", "flops_profiler", "comms_logger"}
known |= set(deepspeed.monitor.config.DeepSpeedMonitorConfig.model_fields)
assert set(document) <= known, set(document) - known
"""


@pytest.mark.slow
@pytest.mark.dist
def test_deepspeed_accepts_and_understands_every_key():
    documents = [
        deepspeed_json(
            **ARGUMENTS | {"zero_stage": stage, "compute": compute, "world_size": 1, "compiled": stage == 3}
        )
        for stage in range(4)
        for compute in ("fp32", "bf16")
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", ACCEPT],
        input=json.dumps(documents),
        text=True,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_module_imports_no_torch():
    code = "import sys, distllm.config.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
