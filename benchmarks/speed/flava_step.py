"""A training step on pairs at FLAVA's released size, against transformers; prints JSON.

A step is forward pass (all losses of pairs, the codes of the image tokenizer included), backward
pass, clipping and a fused AdamW. Both sides hold the same weights and see the same eight pairs with
captions of 10 to 20 words, which transformers pads to 77 tokens as its processor does. They step in
turn in one process, in fp32 or in bf16 autocast; a figure is the median over rounds of the ratio
of two neighbouring steps, theirs over ours. Their losses are compared first. A processor without
instructions for bf16 would emulate it, many times slower, which says nothing about either side:
there, steps in bf16 are not measured.

`--memory ours` or `--memory transformers` makes two steps of one side in this process, forward and
backward pass alone, and gives the peak of its resident memory; without a side, both run in
processes of their own, and the figure is `memory_over_transformers`. `--gradients` gives
`grad_norm_step0`: the global norm of the first gradient of random weights.

    python -m benchmarks.speed.flava_step --rounds 3
    python -m benchmarks.speed.flava_step --precision bf16
    python -m benchmarks.speed.flava_step --memory
    python -m benchmarks.speed.flava_step --gradients
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.flava_batch import PairedBatch, make_batch
from benchmarks.speed.mplug_timing import CLOCKS, median_ms, ratio_range, speedup
from triptych.core.machine import cpu_has_bf16
from triptych.models.flava.convert import config_for, config_from_folder, import_state_dict
from triptych.models.flava.family import flava_full
from triptych.models.flava.model import FLAVA
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

BATCH_SIZE = 8
SIDES = ("ours", "transformers")
LARGEST_LOSS_GAP = {"fp32": 1e-4, "bf16": 2e-2}
"""Of the summed loss of about 22, relative; the rest is rounding."""


def released() -> nn.Module:
    """Build FlavaForPreTraining at its released size; what it starts at zero is drawn too."""
    from transformers import FlavaConfig, FlavaForPreTraining

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = FlavaForPreTraining(FlavaConfig())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name.split(".")[-1] or "position_embeddings" in name:
                parameter.normal_(std=0.02)
    return model


def same_weights(theirs: nn.Module) -> FLAVA:
    """Build ours with the weights of theirs."""
    state = theirs.state_dict()
    plain = theirs.config.to_dict()  # type: ignore[operator, union-attr]
    model = FLAVA(config_for(state, config_from_folder(plain, flava_full())))
    assert import_state_dict(state, model).is_complete
    return model


class Side:
    """One implementation: its loss on the batch, and its optimizer."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.model, self.loss = model.train(), loss
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def gradients(self, precision: str) -> float:
        """Compute loss and gradients."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = self.loss()
        loss.backward()
        return float(loss.detach())

    def step(self, precision: str) -> None:
        """Do one optimizer step."""
        self.gradients(precision)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def build_sides(names: tuple[str, ...], batch: PairedBatch) -> dict[str, Side]:
    """Build the named sides on the same weights."""
    theirs = released()
    sides: dict[str, Side] = {}
    if "ours" in names:
        model = same_weights(theirs)
        task = FLAVAPretraining(model, FLAVAPretrainingConfig())
        sides["ours"] = Side(
            model, lambda: torch.stack(list(task.losses(batch.ours).values())).sum()
        )
    if "transformers" in names:
        sides["transformers"] = Side(
            theirs, lambda: theirs(**copy.deepcopy(batch.theirs), return_loss=True).loss
        )
    return sides


def check_same(sides: dict[str, Side], precision: str) -> None:
    """Fail unless both sides have the same loss."""
    losses = {}
    for name, side in sides.items():
        losses[name] = side.gradients(precision)
        side.optimizer.zero_grad(set_to_none=True)
    gap = abs(losses["ours"] / losses["transformers"] - 1)
    assert gap < LARGEST_LOSS_GAP[precision], (precision, losses)


def measure_steps(rounds: int, clock: str, precision: str) -> dict[str, Any]:
    """Return the ratio of steps, and milliseconds."""
    sides = build_sides(SIDES, make_batch(BATCH_SIZE))
    check_same(sides, precision)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = SIDES if number % 2 else SIDES[::-1]
        for name in order:
            start = CLOCKS[clock]()
            sides[name].step(precision)
            taken[name].append(CLOCKS[clock]() - start)
    return {
        f"step_{precision}_over_transformers": speedup(taken, "transformers", "ours"),
        "range": ratio_range(taken, "transformers", "ours"),
        "median_ms": median_ms(taken),
        "rounds": rounds,
        "clock": clock,
        "num_threads": torch.get_num_threads(),
    }


def peak_gib(name: str, precision: str) -> float:
    """Return the peak of this process's resident memory after two steps of one side."""
    side = build_sides((name,), make_batch(BATCH_SIZE))[name]
    for _ in range(2):
        side.step(precision)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_memory(num_threads: int, precision: str) -> dict[str, Any]:
    """Return the ratio of peaks, each side in a process of its own."""
    peaks: dict[str, float] = {}
    for name in SIDES:
        command = [sys.executable, "-m", "benchmarks.speed.flava_step", "--memory", name]
        command += ["--precision", precision, "--num-threads", str(num_threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])["peak_gib"]
    return {
        "memory_over_transformers": round(peaks["ours"] / peaks["transformers"], 3),
        "peak_gib": peaks,
        "precision": precision,
        "protocol": "Peak resident memory of a process that makes two steps: forward "
        "and backward pass, clipping, AdamW; weights, its moments, Python and torch count on both.",
    }


def measure_gradients() -> dict[str, Any]:
    """Return the global norm of the first gradient of random weights."""
    torch.manual_seed(0)
    model = FLAVA(flava_full())
    task = FLAVAPretraining(model, FLAVAPretrainingConfig())
    losses = task.losses(make_batch(BATCH_SIZE).ours)
    torch.stack(list(losses.values())).sum().backward()
    norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    total = sum(value**2 for value in norms.values()) ** 0.5
    longest = sorted(norms.items(), key=lambda pair: -pair[1])[:5]
    return {
        "grad_norm_step0": round(total, 2),
        "longest": {name: round(value, 2) for name, value in longest},
        "losses": {name: round(float(loss.detach()), 4) for name, loss in losses.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="paired steps; their median counts")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of torch; all")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory", nargs="?", const="both", choices=(*SIDES, "both"))
    parser.add_argument("--gradients", action="store_true")
    options = parser.parse_args()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if options.gradients:
        found = measure_gradients()
    elif options.memory in SIDES:
        found = {"peak_gib": round(peak_gib(options.memory, options.precision), 3)}
    elif options.memory == "both":
        found = measure_memory(torch.get_num_threads(), options.precision)
    elif options.precision == "bf16" and not cpu_has_bf16():
        found = {"not_measured": "this processor has no instructions for bf16"}
    else:
        found = measure_steps(options.rounds, options.clock, options.precision)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
