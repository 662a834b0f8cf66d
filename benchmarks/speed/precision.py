"""A training step in bf16 with our attention rule over the same step in fp32 with torch's SDPA.

Prints JSON. A step is what the trainer does with a batch that is there: forward pass, backward
pass, clipping, fused AdamW. Both sides run in one process on the same weights, batches and random
state; they differ in autocast and in `triptych.nn.attention.use_sdpa`, which is forced to True for
the fp32 side. Two more variants, bf16 with SDPA and fp32 with the rule, tell what each part gives.
All four run once a round, in turned order; a speed-up is the median over rounds of the ratio of
two steps of the same round.

`bf16_speedup` is the pre-training step of the tiny demo: mplug_tiny, 64 px, batch 64, all four
objectives, settings of the recipe. The other cases show how it depends on the work: the demo's
earlier steps (ITC and PrefixLM alone), mplug_small, and a base-size model of reduced depth. On a
processor that would emulate bf16 nothing is measured.

    python -m benchmarks.speed.precision --rounds 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.core.machine import cpu_has_bf16
from triptych.core.rng import seed_step
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.distributed.engine import Engine
from triptych.models.families import build_model, model_config
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.family import MPLUG_FAMILY
from triptych.nn import attention
from triptych.recipes.registry import build_recipe
from triptych.scenes.write import write_scenes
from triptych.tasks.registry import build_collator, build_task
from triptych.text import Tokenizer
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast
from triptych.train.schedule import apply_schedule
from triptych.train.step import backward_micro_batch, clip_gradients
from triptych.train.task import Task
from triptych.workflows.run import prepare_tokenizer

ALL = ("itc", "itm", "mlm", "prefix_lm")
CPU = torch.device("cpu")
BASELINE, OURS = "fp32 sdpa", "bf16 rule"
VARIANTS = {  # name: (precision, whether SDPA is forced)
    BASELINE: ("fp32", True),
    OURS: ("bf16", False),
    "bf16 sdpa": ("bf16", True),
    "fp32 rule": ("fp32", False),
}
PROTOCOL = (
    "Pre-training step of the demo (mplug_tiny, 64 px, batch 64, all four objectives): forward "
    "pass, backward pass, clipping, AdamW. bf16 autocast with the attention rule, over fp32 with "
    "torch's SDPA forced everywhere; one process, same weights and batches, turn about; median of "
    "the ratios of steps of one round."
)
NUM_BATCHES = 4
LARGEST_LOSS_GAP = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing to measure; `scale` names the recipe that gives all other settings."""

    name: str
    scale: str
    model: str
    batch_size: int
    objectives: tuple[str, ...] = ALL
    is_reduced: bool = False
    rounds_share: float = 1.0


CASES = (
    Case(name="tiny", scale="tiny", model="mplug_tiny", batch_size=64),
    Case(
        name="tiny, itc and prefix_lm",
        scale="tiny",
        model="mplug_tiny",
        batch_size=64,
        objectives=("itc", "prefix_lm"),
    ),
    Case(name="small", scale="small", model="mplug_small", batch_size=16, rounds_share=0.3),
    Case(
        name="base, reduced depth",
        scale="small",
        model="mplug_base_patch16_256",
        batch_size=4,
        is_reduced=True,
        rounds_share=0.2,
    ),
)


def case_config(case: Case, tokenizer: Tokenizer) -> MPLUGConfig:
    """Return the model: demo-sized vocabularies as trained, base with BERT's and fewer layers."""
    if not case.is_reduced:
        return model_config(case.model, vocab_size=tokenizer.vocab_size)
    config = model_config(case.model)
    vision = replace(config.vision, depth=3)
    return replace(
        config,
        vision=vision,
        text_depth=2,
        fusion_depth=2,
        connected_layers=(1,),
        decoder_depth=2,
    )


def first_batches(
    case: Case, records: list[Record], tokenizer: Tokenizer, image_size: int
) -> list[dict[str, Tensor]]:
    """Return batches as the trainer gets them."""
    run = build_recipe("mplug.pretrain", case.scale)
    loader = build_loader(
        records,
        build_collator(run.task, tokenizer, run.captions, run.lengths, train=True),
        ImageTransform(replace(run.image, image_size=image_size), train=True),
        seed=0,
        local_batch_size=case.batch_size,
        train=True,
    )
    return list(islice(iter(loader), NUM_BATCHES))


@contextmanager
def attention_kernel(*, sdpa: bool) -> Iterator[None]:
    """Force torch's SDPA everywhere, or leave the rule of `nn/attention.py`."""
    rule = attention.use_sdpa
    if sdpa:
        attention.use_sdpa = lambda *_: True
    try:
        yield
    finally:
        attention.use_sdpa = rule


class Stepper:
    """Does one training step of a case in any of the variants, on one set of weights."""

    def __init__(self, case: Case, config: MPLUGConfig, tokenizer: Tokenizer) -> None:
        run = build_recipe("mplug.pretrain", case.scale)
        self.max_norm = run.train.max_grad_norm
        seed_step(0, 0, 0)
        self.task: Task = build_task(run.task, build_model(config), tokenizer)
        self.task.modules.train()
        groups = group_parameters(
            self.task.modules.named_parameters(), run.optim, MPLUG_FAMILY.is_vision_parameter
        )
        self.parameters = [p for group in groups for _, p in group.parameters]
        self.optimizer = build_optimizer(groups, run.optim)
        apply_schedule(self.optimizer, 0, run.optim, run.train.max_steps)
        self.weights = {w.name: w.weight for w in run.weights if w.name in case.objectives}

    def step(self, batch: dict[str, Tensor], variant: str) -> tuple[float, float]:
        """Return the seconds of a step and its loss."""
        precision, sdpa = VARIANTS[variant]
        start = time.perf_counter()
        with attention_kernel(sdpa=sdpa):
            losses = backward_micro_batch(
                Engine(self.task), batch, self.weights, share=1.0, context=autocast(CPU, precision)
            )
        reduced = Engine(self.task).reduce(self.parameters, torch.zeros(1))
        norm = reduced.norm
        clip_gradients(reduced.gradients, float(norm), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(1)
        loss = float(losses["total"])
        assert torch.isfinite(norm), f"{variant}: the gradient is not finite"
        return time.perf_counter() - start, loss

    def loss(self, batch: dict[str, Tensor], variant: str) -> float:
        """Return the loss of a batch without dropout, and without training on it."""
        precision, sdpa = VARIANTS[variant]
        seed_step(0, 0, 0)
        self.task.modules.eval()
        with torch.no_grad(), attention_kernel(sdpa=sdpa), autocast(CPU, precision):
            losses = self.task.losses(batch, active=frozenset(self.weights))
        self.task.modules.train()
        return sum(weight * float(losses[name]) for name, weight in self.weights.items())


def measure(case: Case, records: list[Record], tokenizer: Tokenizer, rounds: int) -> dict[str, Any]:
    """Time all variants of a case."""
    config = case_config(case, tokenizer)
    batches = first_batches(case, records, tokenizer, config.vision.image_size)
    stepper = Stepper(case, config, tokenizer)
    losses = {variant: stepper.loss(batches[0], variant) for variant in VARIANTS}
    gap = max(abs(loss / losses[BASELINE] - 1) for loss in losses.values())
    assert gap < LARGEST_LOSS_GAP, f"the variants compute different losses: {losses}"
    for variant in VARIANTS:  # builds kernels and optimizer state
        stepper.step(batches[0], variant)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(max(3, round(rounds * case.rounds_share))):
        for variant in list(VARIANTS)[:: 1 if number % 2 == 0 else -1]:
            seed_step(number, 0, 0)
            batch = batches[number % len(batches)]
            seconds[variant].append(stepper.step(batch, variant)[0])
    return summary(case, config, seconds) | {"largest_loss_gap": float(f"{gap:.1g}")}


def summary(case: Case, config: MPLUGConfig, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, and ratios of steps of the same round."""
    ratios = sorted(a / b for a, b in zip(seconds[BASELINE], seconds[OURS], strict=True))
    return {
        "case": case.name,
        "speedup": round(statistics.median(ratios), 2),
        "lowest_ratio": round(ratios[0], 2),
        "highest_ratio": round(ratios[-1], 2),
        "median_ms": {k: round(1000 * statistics.median(v), 1) for k, v in seconds.items()},
        "rounds": len(ratios),
        "model": case.model,
        "batch_size": case.batch_size,
        "objectives": list(case.objectives),
        "image_size": config.vision.image_size,
        "image_tokens": config.vision.num_patches + 1,
        "layers": {
            "vision": config.vision.depth,
            "text": config.text_depth,
            "fusion": config.fusion_depth,
            "decoder": config.decoder_depth,
        },
        "width": config.vision.embed_dim,
        "vocab_size": config.text.vocab_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant (tiny)")
    parser.add_argument("--num-threads", type=int, default=None, help="threads of torch; all")
    parser.add_argument("--tiny-only", action="store_true", help="exclude the larger models")
    arguments = parser.parse_args()
    if not cpu_has_bf16():
        print(json.dumps({"not_measured": "this processor has no instructions for bf16"}))
        return
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        files = write_scenes(
            Path(folder) / "scenes",
            512,
            num_val=0,
            num_test=0,
            num_compositional=0,
            formats=("captions",),
            captions_per_image=1,
        )
        source = DataSourceConfig(
            path=str(files.karpathy), reader="karpathy", image_root=str(files.images), split="train"
        )
        records = read_records(source).records
        tokenizer = prepare_tokenizer(build_recipe("mplug.pretrain", "tiny"), records)
        cases = [
            measure(case, records, tokenizer, arguments.rounds)
            for case in CASES
            if case.scale == "tiny" or not arguments.tiny_only
        ]
    print(
        json.dumps(
            {
                "bf16_speedup": cases[0]["speedup"],
                "protocol": PROTOCOL,
                "num_threads": torch.get_num_threads(),
                "cases": cases,
            }
        )
    )


if __name__ == "__main__":
    main()
