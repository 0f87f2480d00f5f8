"""The machine that a plan is made for: an accelerator, its links, and how many share a node."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Latencies of the ring algorithm's simple protocol in NCCL's own cost model (src/graph/tuning.cc).
NCCL_BASE_SECONDS, NCCL_NVLINK_SECONDS, NCCL_NETWORK_SECONDS = 8.4e-6, 3.4e-6, 14e-6

# bf16 tensor cores over fp32 arithmetic: 312 / 19.5 on an A100, 989 / 67 on an H100.
_FP32_SHARE = 16
# FlashAttention-2 on long rows over an H100's peak: 335 / 989 (Dao 2023, figure 7).
_ATTENTION_SHARE = 0.339


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware as its makers and others' measurements describe it.

    Attributes:
        name: as it is shown.
        gemm_flops: best FLOP/s of a matrix product in the format of the computation, measured.
        peak_flops: of its data sheet; utilisations are shares of it.
        memory_bytes: of one device.
        memory_bandwidth: bytes/s of one device's memory.
        local_bandwidth: bytes/s a rank sends to its neighbour inside a node.
        network_bandwidth: bytes/s a rank sends to another node.
        per_node: ranks of a node.
        fp32_flops: peak of products in fp32 without tensor cores; 0 means a sixteenth of ``peak_flops``.
        host_bandwidth: bytes/s between a device and its share of host memory.
        host_memory_bytes: a device's share of host memory; None where it is not known.
        host_memory_bandwidth: bytes/s of host memory for one rank's share of a node.
        disk_bandwidth: bytes/s of local disks for one rank's share of a node.
        base_seconds, local_seconds, network_seconds: latency of a collective, of a step inside a
            node and of a step between nodes.
        launch_seconds: what launching a kernel takes an eager program; 0: the measured speeds have it.
        update_bandwidth: bytes/s of the optimizer; 0 means that of other element-wise operations.
        hides_traffic: the speed of products was measured with the traffic of their operands.
        link_efficiency: bandwidth of a large collective over that of the link, as nccl-tests measure it.
        stream_efficiency: memory bandwidth of a pass over large arrays, over the rated one.
        attention_flops: FLOP/s of fused attention alone, both passes, on long causal rows with heads of 128;
            0 means the share of the peak that FlashAttention-2 has on an H100.
        attention_half_length: row length at which fused attention has half the speed of long rows.
        attention_half_width: head width at which it has half the speed of wide heads.
    """

    name: str
    gemm_flops: float
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    local_bandwidth: float
    network_bandwidth: float
    per_node: int = 8
    fp32_flops: float = 0.0
    host_bandwidth: float = 25e9
    host_memory_bytes: float | None = None
    host_memory_bandwidth: float = 50e9
    disk_bandwidth: float = 3e9
    base_seconds: float = NCCL_BASE_SECONDS
    local_seconds: float = NCCL_NVLINK_SECONDS
    network_seconds: float = NCCL_NETWORK_SECONDS
    launch_seconds: float = 0.0
    update_bandwidth: float = 0.0
    hides_traffic: bool = False
    link_efficiency: float = 0.85
    stream_efficiency: float = 0.9
    attention_flops: float = 0.0
    attention_half_length: float = 540.0
    attention_half_width: float = 23.4

    @property
    def stream_bandwidth(self) -> float:
        """Bytes/s of passes over large arrays."""
        return self.stream_efficiency * self.memory_bandwidth

    @property
    def long_attention_flops(self) -> float:
        """FLOP/s of fused attention on long causal rows with heads of 128."""
        return self.attention_flops or _ATTENTION_SHARE * self.peak_flops

    def in_fp32(self) -> Machine:
        """Return the same machine computing in fp32, for which torch uses no tensor cores by default."""
        return self.throttled((self.fp32_flops or self.peak_flops / _FP32_SHARE) / self.peak_flops)

    def throttled(self, share: float) -> Machine:
        """Return the same machine with its arithmetic at ``share`` of its speed."""
        attention = self.long_attention_flops * share
        return replace(self, gemm_flops=self.gemm_flops * share, attention_flops=attention)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The share of what hardware can do that training reaches.

    Attributes:
        gemm: arithmetic of matrix products over the best product measured on the device.
        operands: bandwidth at which operands and results of products seem to move, over the rated one: the
            part that a kernel does not hide behind its arithmetic.
        overlap: share of the exchanges with other data-parallel ranks that hides behind work.
    """

    gemm: float
    operands: float
    overlap: float
