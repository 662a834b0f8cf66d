"""Where the time of mPLUG's pre-training step goes, by kind of operation; prints JSON.

A step of `mplug_step.py` under torch's profiler, the fast path and the plain one. Kinds:

- products: matrix products, convolutions and attention kernels, which faster arithmetic speeds up;
- copies: tensors that are copied, gathered, joined or filled;
- element_wise: everything else of the forward and backward passes, such as softmax, GELU, dropout;
- update: clipping, AdamW, momentum encoders and queue.

`step_outside_products` is the share of the fast step that is no product, and `limit_over_plain`
what the plain step would be over it if products took no time at all: whatever a precision does to
the products alone, the ratio of the two steps stays below that.

    python -m benchmarks.speed.mplug_profile --rounds 3
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed.mplug_step import CPU, Stepper
from benchmarks.speed.mplug_timing import build_parser, run_facts, start
from triptych.core.processes import keep_freed_memory
from triptych.train.precision import resolve_precision

MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
KERNELS = ("convolution", "scaled_dot_product", "mkldnn")
COPIES = (
    "copy_",
    "cat",
    "stack",
    "clone",
    "contiguous",
    "fill_",
    "zero_",
    "zeros",
    "empty",
    "index",
    "gather",
    "scatter",
    "embedding",
    "repeat",
)
UPDATE = "update"
KINDS = ("products", "copies", "element_wise", UPDATE)


class ProfiledStepper(Stepper):
    """Marks what comes after the backward pass."""

    def finish_step(self) -> torch.Tensor:
        """Do what the trainer does, under a name that the profile shows."""
        with record_function(UPDATE):
            return super().finish_step()


def kind_of(name: str) -> str:
    """Return the kind of an operation that is no part of the update.

    Args:
        name: Such as "aten::addmm".
    """
    operation = name.removeprefix("aten::").lstrip("_")
    if operation in MATRIX_PRODUCTS or any(part in operation for part in KERNELS):
        return "products"
    if any(operation.startswith(copy) for copy in COPIES):
        return "copies"
    return "element_wise"


def is_update(event: Any) -> bool:
    """Return whether an event is the update or happens inside it."""
    while event is not None:
        if event.name == UPDATE:
            return True
        event = event.cpu_parent
    return False


def seconds_by_kind(run: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a run by kind, from torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events():
        kind = UPDATE if is_update(event) else kind_of(event.name)
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def summarise(seconds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the figures of the rounds of both paths."""
    outside = [1 - fast["products"] / sum(fast.values()) for fast in seconds["fast"]]
    limits = [
        sum(plain.values()) / (sum(fast.values()) - fast["products"])
        for fast, plain in zip(seconds["fast"], seconds["plain"], strict=True)
    ]
    return {
        "step_outside_products": round(statistics.median(outside), 3),
        "limit_over_plain": round(statistics.median(limits), 2),
        "seconds": {
            name: {kind: round(statistics.median(r[kind] for r in rounds), 2) for kind in KINDS}
            for name, rounds in seconds.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=3)
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument(
        "--precision", choices=("auto", "fp32"), default="fp32", help="auto: our default here"
    )
    options = start(parser, arguments)
    if options.clock != "wall":
        parser.error("--clock: the profiler has a clock of its own, which is the wall's")
    keep_freed_memory()
    stepper = ProfiledStepper(options.micro_batch, options.accumulate)
    precision = resolve_precision(options.precision, CPU)
    seconds: dict[str, list[dict[str, float]]] = {"fast": [], "plain": []}
    for name in (*seconds, *seconds):  # the first two steps take their memory from the system
        stepper.step(name, precision)
    for _ in range(options.rounds):
        for name, rounds in seconds.items():
            rounds.append(seconds_by_kind(partial(stepper.step, name, precision)))
    facts = {"precision": precision, "micro_batch": options.micro_batch}
    facts |= {"accumulate": options.accumulate, "distill": True}
    print(json.dumps(summarise(seconds) | facts | run_facts(options)))


if __name__ == "__main__":
    main()
