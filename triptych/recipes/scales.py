"""What the recipes of all families share: scales, and the common part of small and paper runs.

Small runs are our own: they train from random weights in minutes, on few images that are neither
cropped nor mirrored. Paper runs take the papers' numbers from the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

from triptych.core.errors import ConfigError
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes.config import (
    DataConfig,
    ModelSource,
    RunConfig,
    TokenizerConfig,
)
from triptych.tasks.spec import TaskConfig
from triptych.train.config import OptimConfig, TrainConfig

SCALES = ("smoke", "tiny", "small", "base", "large")
PAPER_SCALES = ("base", "large")

PLAIN_IMAGE = ImageTransformConfig(crop_scale=None, flip_probability=0.0, randaugment_num_ops=0)
"""For small scales: a crop or a flip would contradict captions that name all objects in order."""


def check_scale(scale: str) -> None:
    """Raise a ConfigError unless there is such a scale."""
    if scale not in SCALES:
        raise ConfigError(f"scale = {scale!r}: must be one of {', '.join(SCALES)}")


def small_train(scale: str, steps: int) -> TrainConfig:
    """Return the batch size and the checkpoints of a small run of so many steps."""
    return TrainConfig(
        max_steps=steps,
        global_batch_size=8 if scale == "smoke" else 64,
        checkpoint_every_steps=1000,
    )


def small_optim(
    rate: float,
    warmup_steps: int,
    *,
    muon_rate: float | None = None,
    head_factor: float = 1.0,
) -> OptimConfig:
    """Return Muon for randomly initialised matrices, and AdamW for everything else.

    Image encoder and the rest share one rate, since no part starts from pre-trained weights.

    Args:
        rate: AdamW's peak learning rate; it falls to a hundredth.
        warmup_steps: Steps of the linear rise.
        muon_rate: Muon's peak learning rate; three times AdamW's if absent.
        head_factor: The learning rate of a classifier relative to `rate`.
    """
    return OptimConfig(
        learning_rate=rate,
        vision_learning_rate=rate,
        muon_learning_rate=3 * rate if muon_rate is None else muon_rate,
        head_learning_rate_factor=head_factor,
        lora_learning_rate_factor=1.0,  # these rates are those of random weights, already high
        betas=(0.9, 0.98),
        warmup_steps=warmup_steps,
        min_learning_rate=rate / 100,
    )


def linear_optim(rate: float, warmup_steps: int) -> OptimConfig:
    """Return released VLMo's AdamW: betas 0.9 and 0.98, weight decay 0.01, linear to 0."""
    return OptimConfig(
        learning_rate=rate,
        vision_learning_rate=rate,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        warmup_steps=warmup_steps,
        warmup_learning_rate=0.0,
        min_learning_rate=0.0,
        decay="linear",
    )


def small_run(
    recipe: str,
    scale: str,
    models: Mapping[str, str],
    task: TaskConfig,
    steps: int,
    optim: OptimConfig,
    image: ImageTransformConfig = PLAIN_IMAGE,
) -> RunConfig:
    """Return a run for a laptop, at the scale smoke, tiny or small.

    Args:
        recipe: Its name.
        scale: Its scale.
        models: The registered variant of each scale.
        task: What is trained.
        steps: How long.
        optim: How.
        image: How images are prepared.
    """
    return RunConfig(
        recipe=recipe,
        scale=scale,
        model=ModelSource(name=models[scale]),
        data=DataConfig(cache_mib=1024),
        image=image,
        task=task,
        train=small_train(scale, steps),
        optim=optim,
    )


def paper_run(
    recipe: str,
    scale: str,
    models: Mapping[str, str],
    task: TaskConfig,
    train: TrainConfig,
    optim: OptimConfig,
    image: ImageTransformConfig,
) -> RunConfig:
    """Return a run at a paper's size, on BERT's vocabulary.

    Args:
        recipe: Its name.
        scale: base or large.
        models: The registered variant of each scale.
        task: What is trained.
        train: How long, and in which batches.
        optim: How.
        image: How images are prepared.
    """
    return RunConfig(
        recipe=recipe,
        scale=scale,
        model=ModelSource(name=models[scale]),
        tokenizer=TokenizerConfig(vocab_size=30522, num_unused=994),
        data=DataConfig(num_workers=8, cache_mib=0),
        image=image,
        task=task,
        train=train,
        optim=optim,
    )
