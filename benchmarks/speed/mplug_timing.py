"""Time several ways of doing the same work, in turn, in one process."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from triptych.core.machine import describe_machine

Seconds = dict[str, list[float]]
BF16_FLAGS = {"amx": "amx_bf16", "avx512": "avx512_bf16"}
"""Instructions for bf16, the fastest first, by the processor's name for them."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_in_turn(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = True,
) -> Seconds:
    """Run each variant once a round, each round in another order, after one run that is not timed.

    Args:
        variants: What to run, by name.
        rounds: Runs of each that count.
        clock: Gives seconds.
        warm: Whether there is a run that is not timed; the caller may have made one.
    """
    names = list(variants)
    for name in names if warm else ():
        variants[name]()
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        for name in turn:
            start = clock()
            variants[name]()
            seconds[name].append(clock() - start)
    return seconds


def speedup(seconds: Seconds, slow: str, fast: str) -> float:
    """Return the median over rounds of the ratio of two runs of the same round."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


def ratio_range(seconds: Seconds, slow: str, fast: str) -> list[float]:
    """Return the lowest and the highest of these ratios."""
    ratios = [one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)]
    return [round(min(ratios), 3), round(max(ratios), 3)]


def median_ms(seconds: Seconds) -> dict[str, float]:
    """Return the median time of each variant in milliseconds."""
    return {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()}


def build_parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what all parts of the benchmark have."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="paired runs; medians count")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of torch; all cores")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of this process, for a look on a busy machine with one thread",
    )
    parser.add_argument(
        "--needs",
        choices=("bf16", *BF16_FLAGS),
        help="what this processor must have for bf16, and nothing better; without it, the figures "
        "are told as not measured",
    )
    return parser


def start(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and set the threads and the seed.

    Raises:
        SystemExit: The processor lacks what the options need, which was printed as JSON.
    """
    options = parser.parse_args(arguments)
    if reason := lacks(options.needs, describe_machine()["bf16"]):
        print(json.dumps({"not_measured": reason}))
        raise SystemExit(0)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    torch.manual_seed(0)
    return options


def lacks(needs: str | None, bf16: str) -> str | None:
    """Return why a processor cannot give a figure; None if it can.

    Args:
        needs: Of the options.
        bf16: The processor's instructions for it, in words.
    """
    best = next((name for name, flag in BF16_FLAGS.items() if flag in bf16), None)
    if needs is None or best == needs or (needs == "bf16" and best is not None):
        return None
    return f"needs a processor whose best instructions for bf16 are {needs}; here: {bf16}"


def run_facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader of the numbers must know of the run."""
    return {
        "rounds": options.rounds,
        "num_threads": torch.get_num_threads(),
        "clock": options.clock,
    }
