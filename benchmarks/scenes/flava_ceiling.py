"""How well FLAVA's tiny image encoder tells shapes when their labels teach it; prints JSON.

`probe_shape` of `flava_scenes.py` freezes an encoder that never saw a label. Here the
same encoder learns the shape of the one object of an image, from random weights, and is scored on
unseen images as it goes: what the probe could reach, and how many images that takes. In the
end it is scored on colour-shape pairs that it has not seen, too.

    python -m benchmarks.scenes.flava_ceiling --steps 600
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.flava.family import flava_tiny
from triptych.models.flava.model import FLAVA
from triptych.scenes.config import SHAPES, SceneConfig
from triptych.scenes.render import render_scene
from triptych.scenes.world import generate_scene

NUM_TRAIN, NUM_TEST = 20_000, 500
LEARNING_RATE = 1.5e-3


def draw_images(split: str, count: int, image_size: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, S, S) in [-1, 1] and the number of each one's shape (N,)."""
    config = SceneConfig(seed=0, image_size=image_size)
    scenes = [generate_scene(config, split, i, series="class", num_objects=1) for i in range(count)]
    images = [render_scene(scene, image_size, noise=config.noise) for scene in scenes]
    pixels = np.stack([np.asarray(image) for image in images])
    labels = [SHAPES.index(scene.objects[0].shape) for scene in scenes]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(labels)


def learn(
    steps: int, batch_size: int, num_train: int, num_test: int
) -> tuple[dict[int, float], float]:
    """Return the accuracy on unseen images by steps, and in the end on unseen pairs."""
    config = flava_tiny()
    encoder = FLAVA(config).visual_encoder
    head = nn.Linear(config.vision.embed_dim, len(SHAPES))
    images, labels = draw_images("train", num_train, config.vision.image_size)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )

    def logits(pixels: Tensor) -> Tensor:
        return head(encoder.final_norm(encoder(pixels))[:, 0])  # type: ignore[no-any-return]

    def accuracy(split: str) -> float:
        unseen, truth = draw_images(split, num_test, config.vision.image_size)
        encoder.eval()
        with torch.inference_mode():
            right = logits(unseen).argmax(dim=1) == truth
        encoder.train()
        return round(float(right.float().mean()), 3)

    curve = {}
    for step in range(1, steps + 1):
        rows = torch.randint(num_train, (batch_size,))
        F.cross_entropy(logits(images[rows]), labels[rows]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % max(1, steps // 6) == 0:
            curve[step] = accuracy("test")
    return curve, accuracy("compositional")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-train", type=int, default=NUM_TRAIN, help="labelled images")
    parser.add_argument("--num-test", type=int, default=NUM_TEST, help="unseen images")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    curve, on_pairs = learn(options.steps, options.batch_size, options.num_train, options.num_test)
    print(
        json.dumps(
            {
                "shape_supervised": curve[max(curve)],
                "shape_supervised_compositional": on_pairs,
                "by_step": curve,
                "protocol": f"Labels teach the encoder: {options.steps} steps of "
                f"{options.batch_size} of {options.num_train:,} images, AdamW; scored on "
                f"{options.num_test} unseen ones.",
            }
        )
    )


if __name__ == "__main__":
    main()
