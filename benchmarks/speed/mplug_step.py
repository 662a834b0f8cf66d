"""mPLUG's pre-training step at base size, the fast path over one pass an objective; prints JSON.

A step is what the trainer does: forward and backward pass over the micro-batches, clipping, AdamW,
the momentum encoders and the queue. `benchmarks/speed/mplug_plain.py` is the plain path;
the losses of both are compared first. `step_fast_over_plain` has both in the precision of
`--precision`; `step_default_over_plain_fp32` is our default precision, bf16 where the machine
computes it faster, over the plain path in fp32. All run on the same weights and batches, in turn; a
figure is the median over rounds of the ratio of two steps of the same round.

    python -m benchmarks.speed.mplug_step --rounds 3
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.speed.mplug_batch import make_batch
from benchmarks.speed.mplug_plain import plain_losses
from benchmarks.speed.mplug_timing import (
    CLOCKS,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from triptych.core.processes import keep_freed_memory
from triptych.core.rng import seed_step
from triptych.distributed.engine import Engine
from triptych.models.mplug.family import MPLUG_FAMILY, mplug_base_patch16_256
from triptych.models.mplug.model import MPLUG
from triptych.objectives.feature_queue import FeatureQueue
from triptych.recipes.mplug import pretrain
from triptych.tasks.pretraining.mplug import OBJECTIVES, MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast, resolve_precision
from triptych.train.schedule import apply_schedule
from triptych.train.step import backward_micro_batch, clip_gradients

CPU = torch.device("cpu")
LARGEST_LOSS_GAP = 0.02
"""Of bf16 from fp32, as a share of the loss; the same precision must agree to a tenth of it."""


class PlainTask(MPLUGPretraining):
    """The task, computing its losses the plain way."""

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return what the fast path returns."""
        return plain_losses(self, batch, active=active)


class Stepper:
    """Does training steps in any of the variants, on one set of weights."""

    def __init__(self, micro_batch_size: int, accumulate: int, *, distill: bool = True) -> None:
        run = pretrain("base")
        assert isinstance(run.task, MPLUGPretrainingConfig)
        config = replace(run.task, alpha_ramp_steps=0)
        if not distill:
            config = replace(config, distill_mlm=False, distill_prefix_lm=False)
        self.model = MPLUG(mplug_base_patch16_256())
        self.fast = MPLUGPretraining(self.model, config)
        self.plain = PlainTask.__new__(PlainTask)
        self.plain.__dict__ = self.fast.__dict__
        queue = self.fast.modules["queue"]
        assert isinstance(queue, FeatureQueue)
        features = torch.nn.functional.normalize(torch.randn(2, queue.size, 256), dim=-1)
        queue.push(features[0], features[1], torch.full((queue.size, 2), -1))
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            make_batch(micro_batch_size, self.model.image_size, generator)
            for _ in range(accumulate)
        ]
        groups = group_parameters(
            self.fast.modules.named_parameters(), run.optim, MPLUG_FAMILY.is_vision_parameter
        )
        self.parameters = [p for group in groups for _, p in group.parameters]
        self.optimizer = build_optimizer(groups, run.optim)
        apply_schedule(self.optimizer, 0, run.optim, run.train.max_steps)

    def task(self, name: str) -> MPLUGPretraining:
        """Return the task that computes its losses the fast or the plain way."""
        return self.fast if name == "fast" else self.plain

    def step(self, name: str, precision: str) -> None:
        """Do one optimizer step."""
        task, weights = self.task(name), dict.fromkeys(OBJECTIVES, 1.0)
        task.modules.train()
        for batch in self.batches:
            backward_micro_batch(
                Engine(task),
                batch,
                weights,
                share=1 / len(self.batches),
                context=autocast(CPU, precision),
            )
        norm = self.finish_step()
        assert torch.isfinite(norm), f"{name} in {precision}: the gradient is not finite"

    def finish_step(self) -> Tensor:
        """Do what comes after the backward pass; return the norm of the gradient."""
        reduced = Engine(self.fast).reduce(self.parameters, torch.zeros(1))
        norm = reduced.norm
        clip_gradients(reduced.gradients, float(norm), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.fast.after_step(1)
        return norm

    @torch.no_grad()
    def losses(self, name: str, precision: str) -> dict[str, float]:
        """Return the losses of the first batch without dropout, from the same draws."""
        seed_step(1, 0, 0)
        self.fast.modules.eval()
        with autocast(CPU, precision):
            found = self.task(name).losses(self.batches[0])
        return {key: float(loss) for key, loss in found.items()}


def largest_gap(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return how far losses are apart, as a share."""
    return max(abs(first[name] / second[name] - 1) for name in first)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=3)
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument(
        "--no-distill", action="store_true", help="MLM and PrefixLM learn from no teacher"
    )
    parser.add_argument(
        "--precision", choices=("auto", "fp32"), default="auto", help="of the fast path"
    )
    parser.add_argument("--same-precision-only", action="store_true", help="leave fp32 out")
    options = start(parser, arguments)
    keep_freed_memory()
    stepper = Stepper(options.micro_batch, options.accumulate, distill=not options.no_distill)
    default = resolve_precision(options.precision, CPU)
    ours, plain, plain_fp32 = ("fast", default), ("plain", default), ("plain", "fp32")
    variants = [ours, plain] + ([] if options.same_precision_only else [plain_fp32])
    losses = {variant: stepper.losses(*variant) for variant in {*variants, ("fast", "fp32")}}
    gaps = {
        "same_precision": largest_gap(losses[ours], losses[plain]),
        "to_fp32": largest_gap(losses[ours], losses["fast", "fp32"]),
    }
    assert gaps["same_precision"] < LARGEST_LOSS_GAP, losses
    assert gaps["to_fp32"] < LARGEST_LOSS_GAP, losses
    names = {f"{name} {precision}": (name, precision) for name, precision in variants}
    seconds = time_in_turn(
        {key: (lambda v=variant: stepper.step(*v)) for key, variant in names.items()},
        options.rounds,
        CLOCKS[options.clock],
    )
    first, second = f"plain {default}", f"fast {default}"
    result = {
        "step_fast_over_plain": speedup(seconds, first, second),
        "range": ratio_range(seconds, first, second),
    }
    if options.precision == "auto" and not options.same_precision_only:
        result |= {
            "step_default_over_plain_fp32": speedup(seconds, "plain fp32", second),
            "range_fp32": ratio_range(seconds, "plain fp32", second),
        }
    print(
        json.dumps(
            result
            | {
                "median_ms": median_ms(seconds),
                "precision": default,
                "loss_gaps": {key: float(f"{gap:.1g}") for key, gap in gaps.items()},
                "micro_batch": options.micro_batch,
                "accumulate": options.accumulate,
                "distill": not options.no_distill,
            }
            | run_facts(options)
        )
    )


if __name__ == "__main__":
    main()
