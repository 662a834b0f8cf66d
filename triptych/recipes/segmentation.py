"""Semantic segmentation on any model, and VLMo's use as the image encoder of ADE20K.

The papers' scales have the settings of released BEiT, which VLMo follows: its paper has none.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes import mplug, scales, vlmo
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES, check_scale, small_optim
from triptych.tasks.finetuning.segmentation import SegmentationConfig
from triptych.train.config import OptimConfig, TrainConfig

CROPS = ImageTransformConfig(crop_scale=(0.25, 1.0), randaugment_geometric=False)
"""Crops of a quarter of the area on, flips, and colours alone: a mask follows no rotation."""

SMALL_SIZE = 128
"""Side in pixels for small models, whose patches would else be larger than most objects."""


def images(scale: str) -> RunConfig:
    """Return semantic segmentation: the class of each pixel, from masks.

    base, large: BEiT's on ADE20K: UPerNet as wide as the model, 160,000 steps of 16 images at 512
    px (large: 504, in patches of 14), learning rate 3e-5 (2e-5) with layer decay 0.9 (0.95), weight
    decay 0.05, 1,500 warm-up steps, linear to 0. BEiT crops images that are 0.5 to 2 times as
    large; this takes crops of a quarter of the area on, which become squares.
    """
    return _run("segment.images", scale, mplug.MODELS)


def segmentation(scale: str) -> RunConfig:
    """Return semantic segmentation with VLMo as the image encoder, as on ADE20K.

    base, large: the settings of `segment.images`, and a drop path rate of 0.1 (large: 0.2).
    """
    run = _run("vlmo.segmentation", scale, vlmo.MODELS)
    image = replace(run.image, mean=vlmo.HALF, std=vlmo.HALF)
    if scale not in PAPER_SCALES:
        return replace(run, image=image)
    drop_path = 0.1 if scale == "base" else 0.2
    return replace(run, image=image, model=replace(run.model, drop_path=drop_path, image_size=512))


def _run(recipe: str, scale: str, models: dict[str, str]) -> RunConfig:
    check_scale(scale)
    if scale not in PAPER_SCALES:
        steps = {"smoke": 4, "tiny": 300, "small": 6000}[scale]
        optim = small_optim(1e-3 if scale != "small" else 3e-4, min(50, steps), head_factor=2.0)
        task = SegmentationConfig(channels=64)
        run = scales.small_run(recipe, scale, models, task, steps, optim)
        return replace(run, model=replace(run.model, image_size=SMALL_SIZE))
    is_base = scale == "base"
    rate = 3e-5 if is_base else 2e-5
    optim = OptimConfig(
        learning_rate=rate,
        vision_learning_rate=rate,
        layer_decay=0.9 if is_base else 0.95,
        weight_decay=0.05,
        warmup_steps=1500,
        warmup_learning_rate=0.0,
        min_learning_rate=0.0,
        decay="linear",
    )
    train = TrainConfig(max_steps=160_000, global_batch_size=16, max_grad_norm=None)
    task = SegmentationConfig(channels=768 if is_base else 1024)
    run = scales.paper_run(recipe, scale, models, task, train, optim, CROPS)
    size = 512 if is_base else 504
    return replace(run, model=replace(run.model, image_size=size))
