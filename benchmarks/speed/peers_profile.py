"""What a run's time goes to: operations of its products, and seconds by kind of operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.mplug_profile import KINDS, UPDATE, kind_of


def product_flops(run: Callable[[], object]) -> int:
    """Return the floating-point operations of all matrix products of a run.

    Products with weights that oneDNN has laid out (`nn/prepacked.py`) are counted too.
    """
    packed = {torch.ops.mkldnn._linear_pointwise: _packed_linear_flops}
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=packed) as found,
    ):
        run()
    return int(found.get_total_flops())


def _packed_linear_flops(
    x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object
) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


def seconds_by_kind(run: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a run by the kinds of `mplug_profile.py`, the update's among them."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = {kind: 0.0 for kind in KINDS if kind != UPDATE}
    for event in profiler.events() or ():
        seconds[kind_of(event.name)] += event.self_cpu_time_total / 1e6
    return seconds
