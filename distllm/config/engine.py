"""From settled quantities to the DeepSpeed document: whole, explicit, and without "auto".

DeepSpeed fills what a document leaves out with defaults made for large GPUs (buckets of 500 million
elements), and takes a stray "auto" for a value. So every key that matters for memory, communication
or output is written here, and the document is saved in the run directory. The local engine reads
the same document.
"""

from __future__ import annotations

from typing import Any, Literal

_BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2}
_NOTHING = {"enabled": False}
_BLOCK = "distllm.models.layers.Block"


def deepspeed_json(
    *,
    zero_stage: int,
    micro_batch_size: int,
    grad_accum_steps: int,
    world_size: int,
    grad_clip: float,
    compute: Literal["fp32", "bf16"],
    bucket_bytes: int,
    device: Literal["cpu", "cuda"],
    compiled: bool = False,
    offload: Literal["none", "cpu", "nvme"] = "none",
    hpz_ranks: int = 1,
) -> dict[str, Any]:
    """Return the document that configures DeepSpeed.

    Args:
        zero_stage: 0 to 3.
        micro_batch_size: sequences in one forward pass of one rank.
        grad_accum_steps: forward passes per rank and optimizer step.
        world_size: ranks. To DeepSpeed all are data-parallel, also those that share rows.
        grad_clip: largest global gradient norm; 0 turns clipping off.
        compute: format of weights and activations in forward and backward.
        bucket_bytes: size of the buffers in which gradients and weights are exchanged.
        device: kind of device each rank owns; only a GPU overlaps exchange and computation.
        compiled: each block is one compiled graph. Stage 3 then gathers the weights of a whole block
            before the graph runs, because hooks inside it cannot be compiled.
        hpz_ranks: neighbouring ranks that hold one more whole copy of stage 3's weights; 1: none.
        offload: where fp32 weights and moments live and are updated: on the device, or in main memory,
            which files replace once DeepSpeed has made them (`distllm.dist.mapped`).
    """
    # DeepSpeed counts elements, and wants an even number of them.
    bucket_numel = max(2, bucket_bytes // _BYTES_PER_ELEMENT[compute] // 2 * 2)
    return {
        "train_batch_size": micro_batch_size * grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": grad_clip,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": compute,
        "data_types": {"grad_accum_dtype": _grad_accum_dtype(zero_stage, compute)},
        "bf16": {
            "enabled": compute == "bf16",
            "check_grad_overflow": True,
            "immediate_grad_update": False,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        # torch's fused AdamW updates as fast on a CPU and needs no build of minutes.
        "zero_force_ds_cpu_optimizer": False,
        # DeepSpeed knows by name which rules may update a part of a weight; distllm's checks refuse the rest.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_json(
            zero_stage, bucket_numel, overlap=device == "cuda", leaves=[_BLOCK] if compiled else []
        )
        | {"zero_hpz_partition_size": hpz_ranks}
        | (
            {"offload_optimizer": {"device": "cpu", "pin_memory": device == "cuda"}}
            if offload != "none"
            else {}
        ),
        **_quiet_json(),
    }


def _grad_accum_dtype(zero_stage: int, compute: str) -> str:
    """Accumulate in fp32 wherever DeepSpeed's optimizer of that stage can."""
    return compute if zero_stage < 2 else "fp32"


def _zero_json(zero_stage: int, bucket_numel: int, *, overlap: bool, leaves: list[str]) -> dict[str, Any]:
    return {
        "stage": zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": overlap,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket_numel,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket_numel,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "ignore_unused_parameters": True,
        "elastic_checkpoint": False,
        "sub_group_size": 10**9,
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
        "stage3_prefetch_bucket_size": bucket_numel,
        "stage3_param_persistence_threshold": 10**5,
        "stage3_model_persistence_threshold": 10**9,
        "stage3_max_live_parameters": 10**9,
        "stage3_max_reuse_distance": 10**9,
        "stage3_module_granularity_threshold": 0,
        # Left out, DeepSpeed looks for classes of transformers; an empty list would make it warn.
        **({"leaf_module": {"classes": leaves, "names": [], "name_suffixes": []}} if leaves else {}),
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "stage3_gather_16bit_weights_on_model_save": False,
        "log_trace_cache_warnings": False,
    }


def _quiet_json() -> dict[str, Any]:
    """Leave measuring and printing to distllm."""
    return {
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "log_level": "warning",
        "flops_profiler": dict(_NOTHING),
        "comms_logger": dict(_NOTHING),
        "tensorboard": dict(_NOTHING),
        "wandb": dict(_NOTHING),
        "csv_monitor": dict(_NOTHING),
    }
