"""GPUs and their links, by public data sheets: what `triptych/train/estimate.py` reckons with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.core.errors import ConfigError, nearest
from triptych.train.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A GPU and what connects it to others, by public data sheets.

    Attributes:
        name: Such as "H100-80GB".
        memory_bytes: Of one GPU.
        peak_flops: Operations a second in 16 bits, without sparsity.
        peak_flops_fp32: The same in fp32.
        node_link: Bytes a second that one GPU sends to others of its machine.
        link: Bytes a second that one GPU sends to other machines.
        gpus_per_node: GPUs of a machine.
        source: Where the numbers come from.
    """

    name: str
    memory_bytes: float
    peak_flops: float
    peak_flops_fp32: float
    node_link: float
    link: float
    gpus_per_node: int = 8
    source: str = "given"

    def peak(self, precision: Precision) -> float:
        """Return the operations a second of a precision."""
        return self.peak_flops_fp32 if precision == "fp32" else self.peak_flops


HARDWARE: Mapping[str, Hardware] = {
    "a100": Hardware(
        name="A100-80GB",
        memory_bytes=80e9,
        peak_flops=312e12,
        peak_flops_fp32=19.5e12,
        node_link=300e9,
        link=25e9,
        source="NVIDIA A100 data sheet (SXM: 312 TFLOPS in bf16, NVLink 600 GB/s in both "
        "directions); DGX A100 data sheet (one 200 Gb/s adapter a GPU)",
    ),
    "h100": Hardware(
        name="H100-80GB",
        memory_bytes=80e9,
        peak_flops=989e12,
        peak_flops_fp32=67e12,
        node_link=450e9,
        link=50e9,
        source="NVIDIA H100 data sheet (SXM: 1,979 TFLOPS in bf16 with sparsity, half of it "
        "without; NVLink 900 GB/s in both directions); DGX H100 data sheet (400 Gb/s a GPU)",
    ),
    "h200": Hardware(
        name="H200",
        memory_bytes=141e9,
        peak_flops=989e12,
        peak_flops_fp32=67e12,
        node_link=450e9,
        link=50e9,
        source="NVIDIA H200 data sheet (SXM: 141 GB; operations and NVLink as H100's); DGX H200 "
        "data sheet (400 Gb/s a GPU)",
    ),
}
"""By the short name that the command line takes."""


def find_hardware(name: str) -> Hardware:
    """Return a preset by its short or its full name, in any case.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    wanted = name.lower()
    for short, hardware in HARDWARE.items():
        if wanted in (short, hardware.name.lower()):
            return hardware
    raise ConfigError(
        f"unknown hardware {name!r}{nearest(wanted, HARDWARE)} (known: {', '.join(HARDWARE)})"
    )
