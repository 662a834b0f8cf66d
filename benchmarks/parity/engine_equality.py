"""Compare every way to share the work with one process on the joined batch; prints JSON.

A cell trains a small model of one family for some steps with the real Trainer: hard negatives,
queue and teacher on, masks given, dropout off, fp32. `equality_cells` is the number of cells whose
losses and updated weights are within 1e-5 of those of one process that has the joined
micro-batches, without recomputation, and `equality_total` the number of cells.

    python -m benchmarks.parity.engine_equality
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.machine import current_commit, describe_machine
from triptych.distributed.env import is_main, rank, run_processes, world_size
from triptych.models.families import build_model, model_config
from triptych.models.vlmo.config import VLMoConfig
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.pretraining.flava import (
    BATCH_KINDS,
    FLAVAPretraining,
    FLAVAPretrainingConfig,
)
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.train.config import OptimConfig, TrainConfig
from triptych.train.metrics_log import METRICS_FILE, read_metrics
from triptych.train.precision import PrecisionChoice
from triptych.train.sources import BatchSource
from triptych.train.trainer import Trainer

FAMILIES = ("mplug", "vlmo", "flava")
ROWS, LENGTH, VOCAB, SIDE = 8, 9, 40, 32
BOUND = 1e-5


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to train."""

    family: str
    parallel: str = "none"
    ranks: int = 1
    accumulate: int = 1
    recompute: str = "none"
    steps: int = 3
    precision: PrecisionChoice = "fp32"


def build_task(family: str) -> Any:
    """Return a small pre-training task without dropout, the same on every process."""
    torch.manual_seed(0)
    if family == "mplug":
        config = model_config("mplug_tiny", vocab_size=VOCAB, image_size=SIDE)
        config = replace(
            config,
            text=replace(config.text, dropout=0.0, attention_dropout=0.0),
            vision=replace(config.vision, attention_dropout=0.0, depth=1),
            text_depth=1,
            fusion_depth=3,
            connected_layers=(1,),
            decoder_depth=1,
        )
        options = MPLUGPretrainingConfig(
            queue_size=24, momentum=0.9, alpha=0.4, distill_mlm=True, distill_prefix_lm=True
        )
        return MPLUGPretraining(build_model(config), options)
    if family == "vlmo":
        vlmo = VLMoConfig(
            vocab_size=VOCAB,
            embed_dim=16,
            depth=3,
            num_heads=2,
            fused_from=2,
            image_size=SIDE,
            max_text_tokens=12,
            proj_dim=8,
            drop_path=0.0,
            text_dropout=0.0,
        )
        return VLMoPretraining(build_model(vlmo), VLMoPretrainingConfig())
    flava = model_config("flava_tiny", vocab_size=VOCAB, image_size=SIDE)
    return FLAVAPretraining(build_model(flava), FLAVAPretrainingConfig(chunk_size=2))


def joined_batch(family: str, number: int, rows: int) -> dict[str, Tensor]:
    """Return micro-batch `number` of all processes together."""
    draw = torch.Generator().manual_seed(100 + number)
    lengths = torch.randint(3, LENGTH + 1, (rows,), generator=draw)
    mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(5, VOCAB, (rows, LENGTH), generator=draw).masked_fill(~mask, 0)
    hidden = (torch.rand(rows, LENGTH, generator=draw) < 0.3) & mask
    hidden[:, 1] = True
    batch = {
        "image": torch.randn(rows, 3, SIDE, SIDE, generator=draw),
        "token_ids": ids,
        "text_mask": mask,
        "mlm_token_ids": ids.masked_fill(hidden, 4),
        "mlm_labels": ids.masked_fill(~hidden, IGNORE_INDEX),
        "image_key": torch.arange(rows) + 1000 * number,
        "caption_key": torch.arange(rows) + 1000 * number + 500,
        "index": torch.arange(rows),
    }
    if family == "mplug":
        batch |= {"prefix_token_ids": ids[:, :3], "prefix_mask": mask[:, :3]}
        batch |= {"target_token_ids": ids, "target_mask": mask}
    if family == "flava":
        patches = (rows, (SIDE // 16) ** 2)
        batch |= {
            "hidden_patches": torch.rand(patches, generator=draw) < 0.5,
            "image_codes": torch.randint(0, 8, patches, generator=draw),
            "itm_labels": (torch.rand(rows, generator=draw) < 0.8).long(),
        }
    return batch


def own_batches(cell: Cell, start: int) -> Iterator[dict[str, Tensor]]:
    """Yield this process's part of the micro-batches from `start` on."""
    size = ROWS // cell.accumulate // world_size()
    kinds = list(BATCH_KINDS.values())
    while True:
        batch = joined_batch(cell.family, start, size * world_size())
        own = {key: value[rank() * size :][:size] for key, value in batch.items()}
        if cell.family == "flava":  # a kind a step
            number = start // cell.accumulate % len(kinds)
            own = {
                key: own[key] for key in (*kinds[number].batch_keys, "image_codes") if key in own
            }
            own["source"] = torch.tensor(number)
        yield own
        start += 1


Trained = tuple[list[dict[str, float]], dict[str, NDArray[Any]]]


def train_cell(cell: Cell, folder: Path) -> Trained:
    """Train one cell on this process; return the losses of each step and the final weights."""
    torch.set_num_threads(1)
    task = build_task(cell.family)
    names = list(BATCH_KINDS) if cell.family == "flava" else []
    trainer = Trainer(
        task,
        lambda start: own_batches(cell, start),
        config=TrainConfig(
            max_steps=cell.steps,
            global_batch_size=ROWS,
            micro_batch_size=ROWS // cell.accumulate // cell.ranks,
            parallel=cell.parallel,  # type: ignore[arg-type]
            shard_size=max(1, cell.ranks // 2) if cell.parallel == "hsdp" else None,
            recompute=cell.recompute,
            precision=cell.precision,
            device="cpu",
            log_every_steps=1,
            checkpoint_every_steps=1000,
            progress="off",
            tensorboard=False,
        ),
        # AdamW's default of 1e-8 would turn rounding of tiny gradients into steps
        optim=OptimConfig(learning_rate=1e-3, vision_learning_rate=1e-3, warmup_steps=1, eps=1e-4),
        run_folder=folder,
        is_vision=lambda name: False,
        sources=tuple(BatchSource(name=name, kind=name) for name in names),
    )
    trainer.fit()
    lines = read_metrics(folder / METRICS_FILE) if is_main() else []
    losses = [
        {key: value for key, value in line.items() if key.startswith(("loss/", "grad_norm"))}
        for line in lines
    ]
    state = task.modules.state_dict() if is_main() else {}
    return losses, {name: tensor.numpy() for name, tensor in state.items()}


def run_cells(cells: Sequence[Cell]) -> list[Trained]:
    """Train cells of one number of ranks, one after the other, in the same processes."""
    with tempfile.TemporaryDirectory() as folder:
        if cells[0].ranks == 1:
            return _train_all(cells, Path(folder))
        return run_processes(_train_all, cells[0].ranks, cells, Path(folder))


def _train_all(cells: Sequence[Cell], folder: Path) -> list[Trained]:
    return [train_cell(cell, folder / str(number)) for number, cell in enumerate(cells)]


def reference_of(cell: Cell) -> Cell:
    """Return the cell of one process that a cell is compared with."""
    return replace(cell, parallel="none", ranks=1, recompute="none")


def gap(found: Trained, reference: Trained) -> float:
    """Return the largest difference of a loss (relative above 1) or a weight from the reference."""
    (losses, weights), (expected_losses, expected) = found, reference
    assert weights.keys() == expected.keys()
    assert [line.keys() for line in losses] == [line.keys() for line in expected_losses]
    largest = [
        abs(line[key] - own[key]) / max(1.0, abs(own[key]))
        for line, own in zip(losses, expected_losses, strict=True)
        for key in own
    ]
    largest += [
        float(np.abs(weights[name].astype(np.float64) - expected[name]).max()) for name in expected
    ]
    return max(largest)


def all_cells() -> list[Cell]:
    """Return every cell of the table."""
    ways = [(p, r) for p, r in product(("ddp", "zero2", "fsdp"), (2, 4))] + [("hsdp", 4)]
    cells = [
        Cell(family, parallel, ranks, accumulate, recompute)
        for family, (parallel, ranks), accumulate, recompute in product(
            FAMILIES, ways, (1, 2), ("none", "full")
        )
        if ROWS // accumulate // ranks >= 1
    ]
    alone = product(FAMILIES, (1, 2), ("selective", "full"))
    return cells + [Cell(f, "none", 1, a, recompute) for f, a, recompute in alone]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells and print how many are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=FAMILIES, help="only this one")
    options = parser.parse_args(argv)
    cells = [cell for cell in all_cells() if options.family in (None, cell.family)]
    start = time.perf_counter()
    alone = [reference_of(cell) for cell in cells]
    groups = {1: sorted(set(alone), key=repr)}
    for cell in cells:
        groups.setdefault(cell.ranks, []).append(cell)
    trained = {
        cell: found
        for group in groups.values()
        for cell, found in zip(group, run_cells(group), strict=True)
    }
    gaps = {}
    for cell, reference in zip(cells, alone, strict=True):
        way = f"{cell.parallel} x{cell.ranks} accumulate {cell.accumulate} {cell.recompute}"
        gaps[f"{cell.family} {way}"] = gap(trained[cell], trained[reference])
    print(
        json.dumps(
            {
                "equality_cells": sum(value <= BOUND for value in gaps.values()),
                "equality_total": len(gaps),
                "largest_gap": max(gaps.values()),
                "gaps": {name: float(f"{value:.2g}") for name, value in gaps.items()},
                "seconds": round(time.perf_counter() - start, 1),
                "commit": current_commit(),
                "machine": describe_machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
