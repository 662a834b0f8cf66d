"""torch's SDPA against matmul and softmax on this CPU: what `nn/attention.py` decides by.

Prints JSON: a row for each dtype and shape with the speed-up of SDPA (above 1: SDPA is faster) in
the forward pass alone and in forward and backward pass, and the number of keys from which SDPA
wins in fp32. Both kernels are `triptych.nn.attention.attend` with its rule forced one way; bf16
runs under autocast, as in training. Variants alternate in one process; a ratio is the median over
rounds of the ratio of two neighbouring runs. Each run repeats the call until it takes a while.

    python -m benchmarks.speed.attention
    python -m benchmarks.speed.attention --dropout 0.1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from triptych.nn import attention

HEADS, HEAD_WIDTH = 12, 64
SHAPES = ((17, 17), (30, 30), (65, 65), (128, 128), (197, 197), (257, 257), (577, 577),
          (1025, 1025), (30, 257), (30, 577))  # fmt: skip
"""(queries, keys): images of 64 to 512 px in patches of 16, captions, captions on images."""

BATCH = 4
RUN_S = 0.02
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def call(tensors: list[Tensor], *, sdpa: bool, backward: bool, dropout: float) -> None:
    """Attend once with one of the kernels."""
    rule = attention.use_sdpa
    attention.use_sdpa = lambda *_: sdpa
    query, key, value, bias = tensors
    try:
        with (
            torch.set_grad_enabled(backward),
            torch.autocast("cpu", enabled=query.dtype == torch.bfloat16),
        ):
            out = attention.attend(query, key, value, bias, dropout)
    finally:
        attention.use_sdpa = rule
    if backward:
        torch.autograd.grad(out, [query, key, value], torch.ones_like(out))


def seconds(repeats: int, tensors: list[Tensor], **how: Any) -> float:
    """Return the seconds of one call, from `repeats` of them."""
    start = time.perf_counter()
    for _ in range(repeats):
        call(tensors, **how)
    return (time.perf_counter() - start) / repeats


def make_tensors(shape: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Return random queries, keys, values and the bias of a mask that hides the last tenth."""
    queries, keys = shape
    tensors = [
        torch.randn(BATCH, HEADS, n, HEAD_WIDTH).to(dtype).requires_grad_()
        for n in (queries, keys, keys)
    ]
    mask = torch.arange(keys).expand(BATCH, keys) < keys - keys // 10
    return [*tensors, attention.key_bias(mask, dtype)]


def ratio(tensors: list[Tensor], *, rounds: int, **how: Any) -> tuple[float, float]:
    """Return how many times as fast SDPA is, and the milliseconds of matmul and softmax."""
    call(tensors, sdpa=True, **how)
    call(tensors, sdpa=False, **how)
    repeats = max(1, round(RUN_S / seconds(2, tensors, sdpa=False, **how)))
    ratios, plain = [], []
    for number in range(rounds):
        taken = {
            sdpa: seconds(repeats, tensors, sdpa=sdpa, **how)
            for sdpa in ((True, False) if number % 2 else (False, True))
        }
        ratios.append(taken[False] / taken[True])
        plain.append(1000 * taken[False])
    return round(statistics.median(ratios), 2), round(statistics.median(plain), 3)


def measure(name: str, shape: tuple[int, int], *, rounds: int, dropout: float) -> dict[str, Any]:
    """Return one row of the table."""
    tensors = make_tensors(shape, DTYPES[name])
    forward, forward_ms = ratio(tensors, rounds=rounds, backward=False, dropout=0.0)
    both, both_ms = ratio(tensors, rounds=rounds, backward=True, dropout=dropout)
    return {
        "dtype": name,
        "queries": shape[0],
        "keys": shape[1],
        "sdpa_speedup_forward": forward,
        "sdpa_speedup_forward_backward": both,
        "matmul_softmax_forward_ms": forward_ms,
        "matmul_softmax_forward_backward_ms": both_ms,
        "rule_takes_sdpa": attention.use_sdpa(tensors[0], tensors[1]),
    }


def first_win(rows: list[dict[str, Any]], column: str) -> int | None:
    """Return the fewest keys from which fp32 self-attention is faster with SDPA throughout."""
    found = None
    squares = [r for r in rows if r["dtype"] == "fp32" and r["queries"] == r["keys"]]
    for row in sorted(squares, key=lambda r: -r["keys"]):
        if row[column] < 1:
            break
        found = row["keys"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="paired runs; their median counts")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of torch; all")
    parser.add_argument("--dropout", type=float, default=0.0, help="in forward and backward pass")
    arguments = parser.parse_args()
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(0)
    rows = [
        measure(name, shape, rounds=arguments.rounds, dropout=arguments.dropout)
        for name in DTYPES
        for shape in SHAPES
    ]
    print(
        json.dumps(
            {
                "threshold_in_use": attention.SDPA_MIN_KEYS_CPU_FP32,
                "fp32_sdpa_wins_from_keys": {
                    "forward": first_win(rows, "sdpa_speedup_forward"),
                    "forward_backward": first_win(rows, "sdpa_speedup_forward_backward"),
                },
                "num_threads": torch.get_num_threads(),
                "rounds": arguments.rounds,
                "dropout": arguments.dropout,
                "batch_size": BATCH,
                "heads": HEADS,
                "head_width": HEAD_WIDTH,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
