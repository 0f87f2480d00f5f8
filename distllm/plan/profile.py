"""From a cluster profile to the machine that a plan is made for."""

from __future__ import annotations

from collections.abc import Mapping

from distllm.config.schema import Config
from distllm.config.schema_hardware import HardwareConfig
from distllm.plan.machine import Machine

_NEEDED = ("memory_gb", "peak_tflops", "gemm_tflops", "memory_gb_per_s", "link_gb_per_s", "network_gb_per_s")


def missing_figures(hardware: HardwareConfig) -> list[str]:
    """Return the keys without which nothing can be planned and that are not set."""
    return [name for name in _NEEDED if getattr(hardware, name) is None]


def machine_of_config(config: Config) -> Machine:
    """Return the machine of a cluster that lacks nothing, in the format that ``config`` computes in."""
    machine = machine_of_hardware(config.cluster.hardware)
    plain = config.cluster.device == "cuda" and config.precision.compute == "fp32"
    return machine.in_fp32() if plain else machine


def machine_of_hardware(hardware: HardwareConfig) -> Machine:
    """Return the machine of a profile that lacks nothing (`missing_figures`)."""
    figures: Mapping[str, float] = {name: getattr(hardware, name) for name in _NEEDED}
    return Machine(
        name=hardware.accelerator or "unnamed",
        gemm_flops=figures["gemm_tflops"] * 1e12,
        peak_flops=figures["peak_tflops"] * 1e12,
        memory_bytes=figures["memory_gb"] * 1e9,
        memory_bandwidth=figures["memory_gb_per_s"] * 1e9,
        local_bandwidth=figures["link_gb_per_s"] * 1e9,
        network_bandwidth=figures["network_gb_per_s"] * 1e9,
        per_node=hardware.devices_per_node,
        fp32_flops=(hardware.fp32_tflops or 0.0) * 1e12,
        host_memory_bytes=hardware.host_memory_gb * 1e9 if hardware.host_memory_gb is not None else None,
        host_bandwidth=hardware.host_gb_per_s * 1e9,
        host_memory_bandwidth=hardware.host_memory_gb_per_s * 1e9,
        disk_bandwidth=hardware.disk_gb_per_s * 1e9,
        launch_seconds=hardware.launch_us * 1e-6,
        attention_flops=(hardware.attention_tflops or 0.0) * 1e12,
    )
