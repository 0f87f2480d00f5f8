"""Published peak speeds of accelerators.

All figures are dense: vendors also print the double, for matrices with half their entries zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device's name as its driver reports it (a part of it), and its dense bf16 FLOP/s."""

    name: str
    bf16_flops: float
    source: str


# More particular names come first: "H100 PCIe" before "H100".
ACCELERATORS = (
    Accelerator(
        "B200", 2250e12, "NVIDIA Blackwell Architecture Technical Brief, HGX B200: 4.5 PFLOPS sparse"
    ),
    Accelerator("H200", 989.4e12, "NVIDIA H200 Tensor Core GPU datasheet: 1979 TFLOPS sparse"),
    Accelerator("H100 PCIe", 756e12, "NVIDIA H100 Tensor Core GPU datasheet, PCIe: 1513 TFLOPS sparse"),
    Accelerator("H100", 989.4e12, "NVIDIA H100 Tensor Core GPU datasheet, SXM: 1979 TFLOPS sparse"),
    Accelerator("A100", 312e12, "NVIDIA A100 Tensor Core GPU datasheet: 312 TFLOPS dense"),
)


def find_accelerator(device_name: str) -> Accelerator | None:
    """Return the entry whose name is part of ``device_name``, such as "NVIDIA H100 80GB HBM3"."""
    return next((entry for entry in ACCELERATORS if entry.name.lower() in device_name.lower()), None)
