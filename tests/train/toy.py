"""A tiny task with dropout, a momentum copy and a queue, and an endless loader for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.core.outputs import Predictions
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig
from triptych.train.metrics_log import WALL_CLOCK_KEYS, read_metrics
from triptych.train.trainer import Trainer

FEATURES, CLASSES, QUEUE = 6, 3, 7


class ToyModel(nn.Module):
    """A linear "encoder", dropout, a head and a temperature."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.visual_encoder = nn.Linear(FEATURES, 5)
        self.norm = nn.LayerNorm(5)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, CLASSES)
        self.position_embedding = nn.Parameter(torch.zeros(1, 5))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.norm(self.visual_encoder(image)) + self.position_embedding
        return self.head(self.dropout(hidden)) * self.logit_scale.exp()  # (B, CLASSES)


class ToyTask:
    """Classify (`itm`), and agree with the momentum copy and a queue of old outputs (`itc`)."""

    objective_names = frozenset({"itm", "itc"})
    batch_keys = frozenset({"image", "label"})

    def __init__(self, dropout: float = 0.3, seed: int = 3) -> None:
        torch.manual_seed(seed)
        self.model, self.momentum = ToyModel(dropout), ToyModel(0.0)
        self.momentum.load_state_dict(self.model.state_dict())
        self.momentum.requires_grad_(False)
        queue = nn.Module()
        queue.register_buffer("keys", torch.zeros(QUEUE, CLASSES))
        queue.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.queue = queue
        self.modules = nn.ModuleDict(
            {"model": self.model, "momentum": self.momentum, "queue": queue}
        )
        self.pending: list[Tensor] = []
        self.after_steps: list[int] = []

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        logits = self.model(batch["image"])
        losses = {}
        if "itm" in active:
            losses["itm"] = nn.functional.cross_entropy(logits, batch["label"])
        if "itc" in active:
            with torch.no_grad():
                target = self.momentum(batch["image"])
            self.pending.append(target)
            old = self.queue.get_buffer("keys").mean(dim=0)
            losses["itc"] = (logits - target + 0.1 * old).square().mean()
        return losses

    def after_step(self, step: int) -> None:
        self.after_steps.append(step)
        with torch.no_grad():
            for copy, parameter in zip(self.momentum.parameters(), self.model.parameters()):
                copy.lerp_(parameter, 0.1)
            keys, pointer = self.queue.get_buffer("keys"), self.queue.get_buffer("pointer")
            for row in torch.cat(self.pending) if self.pending else ():
                keys[int(pointer) % QUEUE] = row
                pointer += 1
        self.pending.clear()

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        return Predictions(index=list(range(len(batch["image"]))))


def is_vision(name: str) -> bool:
    """Return whether a parameter of the toy task belongs to its vision encoder."""
    return name.startswith("model.visual_encoder.")


def toy_batches(start: int, size: int = 4) -> Iterator[dict[str, Tensor]]:
    """Yield micro-batch `start`, `start + 1`, ...; each depends on its number alone."""
    while True:
        generator = torch.Generator().manual_seed(1000 + start)
        yield {
            "image": torch.randn(size, FEATURES, generator=generator),
            "label": torch.randint(CLASSES, (size,), generator=generator),
        }
        start += 1


def toy_trainer(folder: Path, task: ToyTask | None = None, **settings: Any) -> Trainer:
    """Return a trainer of the toy task; `settings` are TrainConfig's, or others popped here."""
    batches = settings.pop("batches", toy_batches)
    evaluate, validator = settings.pop("evaluate", None), settings.pop("validator", None)
    muon = settings.pop("muon_learning_rate", None)
    config = {
        "max_steps": 8,
        "global_batch_size": 4,
        "log_every_steps": 1,
        "checkpoint_every_steps": 1,
        "precision": "fp32",
        "device": "cpu",
        "progress": "off",
        "tensorboard": False,
        "seed": 11,
    }
    return Trainer(
        task or ToyTask(),
        batches,
        config=TrainConfig(**config | settings),
        optim=OptimConfig(
            learning_rate=1e-2, vision_learning_rate=1e-3, muon_learning_rate=muon, warmup_steps=2
        ),
        weights=(
            ObjectiveWeight(name="itm"),
            ObjectiveWeight(name="itc", start_step=2, ramp_steps=2, every_steps=2),
        ),
        run_folder=folder,
        is_vision=is_vision,
        evaluate=evaluate,
        validator=validator,
    )


def exact_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in WALL_CLOCK_KEYS}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
