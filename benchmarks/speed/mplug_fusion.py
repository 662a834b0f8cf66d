"""The five fusion networks and the strides of mPLUG's, at base width; prints JSON.

Six layers of width 768 over 257 image tokens (256 px) and 30 text tokens, as in figures 3 and 4 of
the paper: forward pass alone (evaluation), and forward and backward pass (training, dropout as
configured, gradients of the input states included). Strides are in the released layout, layer j is
connected if j != 0 and j is a multiple of S. All networks run in turn in one process, in the
precision that `auto` chooses on this machine; a ratio is the median over rounds of the ratio of two
runs of the same round.

    python -m benchmarks.speed.mplug_fusion --rounds 9
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.mplug_timing import (
    CLOCKS,
    Seconds,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from triptych.core.processes import keep_freed_memory
from triptych.models.mplug.config import FusionName, strided_layers
from triptych.models.mplug.family import mplug_base_patch16_256
from triptych.models.mplug.fusion import build_fusion
from triptych.nn.init import init_weights
from triptych.train.precision import autocast, resolve_precision

TEXT_TOKENS = 30
STRIDES = (1, 2, 3, 6)
RIVALS: tuple[FusionName, ...] = (
    "connected_attention",
    "co_attention",
    "asymmetric_co_attention",
    "none",
)
OURS, CONNECTED, CO_ATTENTION = "skip_connected S=3", "connected_attention", "co_attention"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Case:
    """A network with the states that it fuses."""

    fusion: nn.Module
    image: Tensor
    text: Tensor
    mask: Tensor
    precision: str

    @torch.no_grad()
    def forward(self) -> None:
        """Fuse once, in evaluation."""
        self.fusion.eval()
        with autocast(CPU, self.precision):
            self.fusion(self.image, self.text, self.mask)

    def forward_backward(self) -> None:
        """Fuse once and take the gradients of weights and states, in training."""
        self.fusion.train()
        with autocast(CPU, self.precision):
            image, text, _ = self.fusion(self.image, self.text, self.mask)
        wanted = [self.image, self.text, *self.fusion.parameters()]
        ones = [torch.ones_like(image), torch.ones_like(text)]
        torch.autograd.grad([image, text], wanted, ones, allow_unused=True)


def build_cases(batch_size: int, precision: str | None) -> dict[str, Case]:
    """Return every network by name, with the same states."""
    base = mplug_base_patch16_256()
    image = torch.randn(batch_size, 1 + base.vision.num_patches, base.text.embed_dim)
    text = torch.randn(batch_size, TEXT_TOKENS, base.text.embed_dim)
    mask = torch.ones(batch_size, TEXT_TOKENS, dtype=torch.bool)
    image.requires_grad_()
    text.requires_grad_()
    configs = {
        f"skip_connected S={stride}": replace(
            base, connected_layers=strided_layers(base.fusion_depth, stride)
        )
        for stride in STRIDES
    } | {name: replace(base, fusion=name) for name in RIVALS}
    cases = {}
    for name, config in configs.items():
        fusion = build_fusion(config)
        init_weights(fusion, 0.02)
        precision = precision or resolve_precision("auto", CPU)
        cases[name] = Case(fusion, image, text, mask, precision)
    return cases


def timed(
    cases: dict[str, Case], run: Callable[[Case], None], rounds: int, clock: str
) -> tuple[dict[str, float], Seconds]:
    """Return median milliseconds a sample, and all seconds."""
    seconds = time_in_turn(
        {name: (lambda case=case: run(case)) for name, case in cases.items()},
        rounds,
        CLOCKS[clock],
    )
    batch_size = len(next(iter(cases.values())).image)
    return {name: round(ms / batch_size, 2) for name, ms in median_ms(seconds).items()}, seconds


def summary(cases: dict[str, Case], options: Any) -> dict[str, Any]:
    """Time both passes and return figures and details."""
    forward_ms, _ = timed(cases, Case.forward, options.rounds, options.clock)
    both_ms, seconds = timed(cases, Case.forward_backward, options.rounds, options.clock)
    figures: dict[str, Any] = {
        "fusion_s3_over_coattention": speedup(seconds, CO_ATTENTION, OURS),
        "fusion_s3_over_connected": speedup(seconds, CONNECTED, OURS),
    }
    ranges = {other: ratio_range(seconds, other, OURS) for other in (CO_ATTENTION, CONNECTED)}
    return figures | {
        "ranges": ranges,
        "forward_ms_per_sample": forward_ms,
        "forward_backward_ms_per_sample": both_ms,
        "batch_size": options.batch_size,
        "image_tokens": cases[OURS].image.shape[1],
        "text_tokens": TEXT_TOKENS,
        "precision": cases[OURS].precision,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=9)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=None)
    options = start(parser, arguments)
    keep_freed_memory()
    cases = build_cases(options.batch_size, options.precision)
    print(json.dumps(summary(cases, options) | run_facts(options)))


if __name__ == "__main__":
    main()
