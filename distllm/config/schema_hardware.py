"""What the planner knows of a cluster: the figures that a profile in ``conf/cluster`` states."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class HardwareConfig:
    """One accelerator, its links, its price and how often a node fails. Null: not known."""

    accelerator: str | None = option(None, "name of the device, as its maker calls it")
    memory_gb: float | None = option(None, "memory of one device, in 10**9 bytes", minimum=0.1)
    peak_tflops: float | None = option(None, "dense bf16 peak that its maker prints", minimum=0.001)
    gemm_tflops: float | None = option(None, "best bf16 matrix product that was measured", minimum=0.001)
    attention_tflops: float | None = option(
        None,
        "fused attention of long causal rows, both passes (null: 0.34 of the peak)",
        minimum=0.001,
    )
    fp32_tflops: float | None = option(
        None, "peak of products in fp32, without TF32 (null: a sixteenth of the bf16 peak)", minimum=0.001
    )
    memory_gb_per_s: float | None = option(None, "bandwidth of the device's memory", minimum=0.1)
    link_gb_per_s: float | None = option(
        None, "what one device sends to its neighbours inside a node", minimum=0.01
    )
    network_gb_per_s: float | None = option(None, "what one device sends to other nodes", minimum=0.001)
    host_gb_per_s: float = option(25.0, "between one device and host memory", minimum=0.1)
    host_memory_gb_per_s: float = option(50.0, "one device's share of host memory bandwidth", minimum=0.1)
    host_memory_gb: float | None = option(
        None, "one device's share of host memory (null: offloading is not checked against it)", minimum=0.1
    )
    disk_gb_per_s: float = option(1.0, "one device's share of a node's local disks", minimum=0.01)
    store_gb_per_s: float = option(10.0, "what all nodes together write to a checkpoint", minimum=0.01)
    launch_us: float = option(
        10.0, "microseconds of the host for each kernel that an eager program launches", minimum=0.0
    )
    devices_per_node: int = option(8, "accelerators in one node", minimum=1)
    price_per_hour: float | None = option(
        None, "price of one device for an hour, in the user's currency", minimum=0.0
    )
    power_watts: float | None = option(None, "drawn by one device and its share of the node", minimum=0.0)
    node_mttf_hours: float = option(
        22000.0, "mean time between failures of one node that end a job", minimum=1.0
    )
    restart_seconds: float = option(300.0, "from a failure to the next step", minimum=1.0)
    reserve: float = option(
        0.08, "share of a device's memory that a plan leaves free", minimum=0.0, maximum=0.9
    )
