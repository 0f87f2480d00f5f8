"""From derived quantities to DeepSpeed's configuration: complete, explicit, and without "auto".

DeepSpeed replaces missing keys by defaults made for large GPUs (buckets of 500 million elements), and takes
a stray "auto" for a value. So every key that matters for memory, communication or output is set here, and
the document is saved in the run directory. The local engine reads the same document.
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
        world_size: number of ranks. For DeepSpeed all of them are data-parallel, also those that share rows.
        grad_clip: largest global gradient norm; 0 turns clipping off.
        compute: format of weights and activations in forward and backward.
        bucket_bytes: size of the buffers in which gradients and weights are communicated.
        device: kind of device of each rank; only a GPU overlaps communication and computation.
        compiled: each block is one compiled graph. Stage 3 then gathers the weights of a whole block
            before the graph runs, because hooks inside it cannot be compiled.
        offload: where fp32 weights and moments live and are updated: on the device, or in main memory. For
            nvme, files replace that memory after DeepSpeed has allocated it (`distllm.dist.mapped`).
        hpz_ranks: neighbouring ranks that together hold another copy of stage 3's weights; 1: none.
    """
    # DeepSpeed counts elements, and wants an even number of them.
    bucket_numel = max(2, bucket_bytes // _BYTES_PER_ELEMENT[compute] // 2 * 2)
    on_gpu = device == "cuda"
    return {
        "train_batch_size": micro_batch_size * grad_accum_steps * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": grad_clip,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": compute,
        **_precision_json(zero_stage, compute),
        # torch's fused AdamW is as fast on a CPU, and DeepSpeed's would have to be compiled for minutes.
        "zero_force_ds_cpu_optimizer": False,
        # DeepSpeed has a list of optimizers that can update a part of a weight; distllm checks this itself.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            **_zero_json(zero_stage, bucket_numel, overlap=on_gpu, leaves=[_BLOCK] if compiled else []),
            "zero_hpz_partition_size": hpz_ranks,
            **({} if offload == "none" else {"offload_optimizer": {"device": "cpu", "pin_memory": on_gpu}}),
        },
        **_quiet_json(),
    }


def _precision_json(zero_stage: int, compute: str) -> dict[str, Any]:
    return {
        # fp32 wherever DeepSpeed's optimizer of that stage can accumulate in it
        "data_types": {"grad_accum_dtype": compute if zero_stage < 2 else "fp32"},
        "bf16": {
            "enabled": compute == "bf16",
            "check_grad_overflow": True,
            "immediate_grad_update": False,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": dict(_NOTHING),
        "torch_autocast": dict(_NOTHING),
    }


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
        # Without this key DeepSpeed looks for classes of transformers; an empty list would make it warn.
        **({"leaf_module": {"classes": leaves, "names": [], "name_suffixes": []}} if leaves else {}),
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "stage3_gather_16bit_weights_on_model_save": False,
        "log_trace_cache_warnings": False,
    }


def _quiet_json() -> dict[str, Any]:
    """Turn off DeepSpeed's own measuring and printing: distllm does both."""
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
