"""VLMo's third stage at base size, the fast path over the plain one; prints one line of JSON.

A step is what the trainer does: forward and backward pass, clipping, AdamW, the temperature clamp.
`vlmo_plain.py` is the plain path: texts padded to 40 tokens, every block whole, ITM as
three fusion passes and MLM as a fourth, the word head on all positions. Both run on the same
weights, batch and draws of negatives, in the same precision, in turn; their losses are compared
first. The figure is the median over rounds of the ratio of two steps of the same round.

    python -m benchmarks.speed.vlmo_step --rounds 3
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.speed.mplug_batch import VOCAB_SIZE, make_batch
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
from benchmarks.speed.vlmo_plain import plain_losses
from triptych.core.rng import seed_step
from triptych.distributed.engine import Engine
from triptych.models.families import model_config
from triptych.models.vlmo.family import VLMO_FAMILY
from triptych.models.vlmo.model import VLMo
from triptych.recipes.vlmo import pretrain
from triptych.tasks.pretraining.vlmo import OBJECTIVES, VLMoPretraining, VLMoPretrainingConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast, resolve_precision
from triptych.train.schedule import apply_schedule
from triptych.train.step import backward_micro_batch, clip_gradients

CPU = torch.device("cpu")
LARGEST_LOSS_GAP = 0.002
"""Between both paths, as a share of the loss; they differ by rounding alone."""


class PlainTask(VLMoPretraining):
    """The task, computing its losses the plain way."""

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return all losses."""
        del active
        return plain_losses(self, batch)


class Stepper:
    """Does training steps on either path, on one set of weights."""

    def __init__(self, variant: str, batch_size: int, *, fused_itc: bool, precision: str) -> None:
        run = pretrain("base")
        assert isinstance(run.task, VLMoPretrainingConfig)
        sizes = model_config(variant, vocab_size=VOCAB_SIZE)
        config = replace(sizes, drop_path=0.0, text_dropout=0.0)
        model = VLMo(config)
        fast = VLMoPretraining(model, replace(run.task, fused_itc=fused_itc))
        plain = PlainTask.__new__(PlainTask)
        plain.__dict__ = fast.__dict__
        self.tasks = {"fast": fast, "plain": plain}
        self.batch = make_batch(batch_size, model.image_size, torch.Generator().manual_seed(0))
        groups = group_parameters(
            fast.modules.named_parameters(), run.optim, VLMO_FAMILY.is_vision_parameter
        )
        self.parameters = [p for group in groups for _, p in group.parameters]
        self.optimizer = build_optimizer(groups, run.optim)
        apply_schedule(self.optimizer, 0, run.optim, run.train.max_steps)
        self.weights = {weight.name: weight.weight for weight in run.weights}
        self.precision = precision
        if precision == "auto":
            self.precision = resolve_precision("auto", CPU)

    def step(self, name: str) -> None:
        """Do one optimizer step."""
        seed_step(1, 0, 0)  # the same negatives on both paths
        task = self.tasks[name]
        task.modules.train()
        context = autocast(CPU, self.precision)
        backward_micro_batch(Engine(task), self.batch, self.weights, share=1.0, context=context)
        reduced = Engine(task).reduce(self.parameters, torch.zeros(1))
        norm = reduced.norm
        clip_gradients(reduced.gradients, float(norm), 1.0)
        assert torch.isfinite(norm), f"{name}: the gradient is not finite"
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        task.after_step(1)

    @torch.no_grad()
    def losses(self, name: str) -> dict[str, float]:
        """Return the losses from the same draws, in fp32."""
        seed_step(1, 0, 0)
        return {key: float(loss) for key, loss in self.tasks[name].losses(self.batch).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=3)
    parser.add_argument("--variant", default="vlmo_base_patch16", help="registered size")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--one-contrast", action="store_true", help="ITC without the second branch")
    options = start(parser, arguments)
    stepper = Stepper(
        options.variant,
        options.batch,
        fused_itc=not options.one_contrast,
        precision=options.precision,
    )
    losses = {name: stepper.losses(name) for name in stepper.tasks}
    gap = max(abs(losses["fast"][k] / losses["plain"][k] - 1) for k in losses["plain"])
    assert gap < LARGEST_LOSS_GAP, losses
    seconds = time_in_turn(
        {name: (lambda n=name: stepper.step(n)) for name in stepper.tasks},
        options.rounds,
        CLOCKS[options.clock],
    )
    result = {
        "step_fast_over_plain": speedup(seconds, "plain", "fast"),
        "range": ratio_range(seconds, "plain", "fast"),
        "median_ms": median_ms(seconds),
        "precision": stepper.precision,
        "longest_text": stepper.batch["token_ids"].shape[1],
        "loss_gap": gap,
        "protocol": (
            f"{options.variant}, batch {options.batch}, {stepper.precision}, ITC on "
            f"{'one branch' if options.one_contrast else 'both branches'}, ITM, MLM: whole "
            f"training step, median of {options.rounds} pairs of steps"
        ),
    }
    print(json.dumps(result | run_facts(options)))


if __name__ == "__main__":
    main()
