"""LoRA against fine-tuning all weights: memory of what is trained, and the score; prints JSON.

`lora_memory` is the bytes of gradients and optimizer state after one step of mplug.vqa, LoRA over
full, each with the optimizer of its recipe (AdamW; at tiny size Muon for the matrices of the full
run). Both have the recipe's trained temperature and heads. `activations` is the ratio of the bytes
that the backward pass keeps, weights apart; they depend on the batch, and are not in `lora_memory`.

`lora_score` is the ratio of VQA accuracies on the test questions of the scenes after runs of equal
length from the same pre-trained model. Runs that `--out` holds are scored as they are.

    python -m benchmarks.lab.lora --memory
    python -m benchmarks.lab.lora --score --model MODEL --data SCENES --out runs/lora
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.models.families import create_model, family_of
from triptych.nn.lora import LoRAConfig, adapt
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.tasks.registry import build_task
from triptych.text import Tokenizer
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.task import Task
from triptych.workflows.adapting import freeze_parts
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import MODEL_FOLDER, finish_run, is_finished
from triptych.workflows.scene_data import scene_source

LORA = LoRAConfig(rank=32, also=("embedding", "*norm*"))
"""Rank and parameters trained in full: the words of the answers are new to a model that was
pre-trained on the scenes' captions."""

SIDES = {"full": LoRAConfig(), "lora": LORA}
SAMPLES, IMAGE_SIZE, QUESTION, ANSWER = 4, 64, 16, 6


def questions(vocab_size: int) -> dict[str, Tensor]:
    """Return a batch of random questions about random images."""
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> Tensor:
        return torch.randint(5, vocab_size, (SAMPLES, length), generator=generator)

    return {
        "image": torch.randn(SAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "token_ids": words(QUESTION),
        "text_mask": torch.ones(SAMPLES, QUESTION, dtype=torch.bool),
        "answer_token_ids": words(ANSWER),
        "answer_mask": torch.ones(SAMPLES, ANSWER, dtype=torch.bool),
        "answer_weight": torch.ones(SAMPLES),
        "answer_row": torch.arange(SAMPLES),
        "index": torch.arange(SAMPLES),
    }


def kept_bytes(task: Task, batch: dict[str, Tensor]) -> int:
    """Do a forward and a backward pass; return the bytes kept between them, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in task.modules.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.losses(batch, active=frozenset({"vqa"}))["vqa"]
    loss.backward()
    return sum(kept.values())


def one_step(scale: str, lora: LoRAConfig) -> dict[str, int]:
    """Train one step of mplug.vqa, and return the bytes of each kind of memory."""
    config = replace(build_recipe("mplug.vqa", scale), lora=lora)
    torch.manual_seed(0)
    model = create_model(config.model.name, image_size=IMAGE_SIZE)
    if lora.rank is not None:
        adapt(model, lora)
    task = build_task(config.task, model, Tokenizer.without_words())
    freeze_parts(config, task)
    task.modules.train()
    is_vision = family_of(model.config).is_vision_parameter
    groups = group_parameters(task.modules.named_parameters(), config.optim, is_vision)
    optimizer = build_optimizer(groups, config.optim)
    activations = kept_bytes(task, questions(200))
    gradients = [p.grad for p in task.modules.parameters() if p.grad is not None]
    optimizer.step()
    state = [v for own in optimizer.state.values() for v in own.values() if isinstance(v, Tensor)]
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in trained),
        "gradients": sum(gradient.nbytes for gradient in gradients),
        "optimizer_state": sum(value.nbytes for value in state),
        "activations": activations,
    }


def measure_memory(scales: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for scale in scales:
        bytes_of = {side: one_step(scale, lora) for side, lora in SIDES.items()}
        trained = {s: n["gradients"] + n["optimizer_state"] for s, n in bytes_of.items()}
        kept = [bytes_of[side]["activations"] for side in ("lora", "full")]
        found[f"lora_memory_{scale}"] = {
            "value": round(trained["lora"] / trained["full"], 4),
            "activations": round(kept[0] / kept[1], 4),
            "bytes": bytes_of,
        }
    return found


def scenes_run(options: argparse.Namespace, side: str) -> RunConfig:
    config = build_recipe("mplug.vqa", "tiny")
    files = SceneFiles(options.data)
    return replace(
        config,
        model=replace(config.model, init_from=str(options.model)),
        data=replace(config.data, train=(scene_source(files, "vqa", "train"),)),
        train=replace(config.train, max_steps=options.steps, num_threads=1, progress="plain"),
        guard=replace(config.guard, images=0),
        lora=SIDES[side],
    )


def measure_score(options: argparse.Namespace) -> dict[str, Any]:
    test = scene_source(SceneFiles(options.data), "vqa", "test")
    scores = {}
    for side in SIDES:
        run = options.out / side
        if not is_finished(run):
            finish_run(scenes_run(options, side), run)
        scores[side] = evaluate_model(run / MODEL_FOLDER, "vqa", test)[0]
    full, lora = scores["full"], scores["lora"]
    return {
        "lora_score": {
            "value": round(lora.value / full.value, 4),
            **{
                side: [round(v.value, 4), round(v.low, 4), round(v.high, 4)]
                for side, v in scores.items()
            },
            "protocol": f"mplug.vqa tiny, {options.steps} steps, rank {LORA.rank}, embeddings "
            f"and norms trained in full; {lora.num_items} test questions",
        }
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--scales", nargs="+", default=["tiny", "base"])
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--model", type=Path, help="pre-trained model folder")
    parser.add_argument("--data", type=Path, help="folder of the scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(arguments)
    if not (options.memory or options.score) or (options.score and not options.model):
        parser.error("give --memory, or --score with --model and --data")
    found = measure_memory(options.scales) if options.memory else {}
    print(json.dumps(found | (measure_score(options) if options.score else {})))


if __name__ == "__main__":
    main()
