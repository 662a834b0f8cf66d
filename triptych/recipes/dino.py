"""The run that trains an image encoder by self-distillation (DINO, Caron et al. 2021)."""

from __future__ import annotations

from triptych.data.collate.image import MultiCropConfig
from triptych.recipes.config import DataConfig, ModelSource, RunConfig
from triptych.recipes.flava import MODELS
from triptych.recipes.scales import PAPER_SCALES, PLAIN_IMAGE, check_scale, small_train
from triptych.tasks.pretraining.dino import DINOConfig
from triptych.train.config import OptimConfig, TrainConfig

RECIPE = "dino"
RATE_PER_256 = 7.5e-4
"""The released run's learning rate per 256 images of a batch."""


def dino(scale: str) -> RunConfig:
    """Return DINO on images only, for the image encoder of any model (`--model.name`).

    FLAVA's is the default, as in its paper. The data's texts, or `--tokenizer.path`, give the
    vocabulary of the model, which this run does not train.

    base, large: the released run of ViT-B/16: 400 epochs of ImageNet's 1.28 M images at a batch
    of 1,024 are 500,000 steps; learning rate 7.5e-4 per 256 images, which is 3e-3 at this batch,
    10 epochs of warm-up from 0, cosine to 2e-6; each parameter's gradient is clipped at 0.3; two
    crops at 224 px and ten at 96 px. There weight decay rises from 0.04 to 0.4;
    here it is their mean. Smaller scales: see `_small`.
    """
    check_scale(scale)
    if scale in PAPER_SCALES:
        return RunConfig(
            recipe=RECIPE,
            scale=scale,
            model=ModelSource(name=MODELS[scale]),
            image=PLAIN_IMAGE,
            crops=MultiCropConfig(),
            task=DINOConfig(),
            train=TrainConfig(
                max_steps=500_000,
                global_batch_size=1024,
                micro_batch_size=128,
                max_grad_norm=0.3,
                clip_per_parameter=True,
            ),
            optim=OptimConfig(
                learning_rate=RATE_PER_256 * 1024 / 256,
                vision_learning_rate=RATE_PER_256 * 1024 / 256,
                weight_decay=0.22,
                warmup_steps=12_500,
                warmup_learning_rate=0.0,
                min_learning_rate=2e-6,
            ),
        )
    return _small(scale)


def _small(scale: str) -> RunConfig:
    """Return a run for a laptop, whose teacher does not end uniform, with a loss of ln K.

    The learning rate is the paper's per image of a batch. The teacher's temperature stays at 0.04:
    a student whose softmax has 0.1 amplifies what crops of an image share while their states agree
    by more than 0.04 / 0.1, and those of small images do not agree by 0.07 / 0.1. Crops keep their
    colours: where surfaces are flat, as in the built-in scenes, changed ones leave nothing to agree
    on. The center follows within two steps, since a teacher of 100 steps moves further in the ten
    that the paper's takes than one of 250.
    """
    steps = {"smoke": 4, "tiny": 1500, "small": 20_000}[scale]
    train = small_train(scale, steps)
    rate = RATE_PER_256 * train.global_batch_size / 256
    small = {"smoke": 32, "tiny": 32, "small": 64}[scale]
    return RunConfig(
        recipe=RECIPE,
        scale=scale,
        model=ModelSource(name=MODELS[scale]),
        data=DataConfig(cache_mib=1024),
        image=PLAIN_IMAGE,
        crops=MultiCropConfig(
            num_small=4,
            small_size=small,
            large_scale=(0.4, 1.0),
            small_scale=(0.1, 0.4),
            num_color_ops=0,
        ),
        task=DINOConfig(
            out_dim=1024 if scale != "small" else 8192,
            hidden_dim=256 if scale != "small" else 1024,
            bottleneck_dim=64 if scale != "small" else 256,
            teacher_temperature=0.04,
            teacher_warmup_steps=0,
            freeze_last_layer_steps=steps // 20,
            momentum=0.99,
            center_momentum=0.5,
            max_steps=steps,
            init_std=0.05,
        ),
        train=train,
        optim=OptimConfig(
            learning_rate=rate,
            vision_learning_rate=rate,
            weight_decay=0.04,
            warmup_steps=min(100, steps),
            min_learning_rate=1e-6,
        ),
    )
