"""The run that trains an image tokenizer (Ramesh et al. 2021, section 2.1 and appendix A.2)."""

from __future__ import annotations

from dataclasses import replace

from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.dvae.model import PIXEL_MEAN, PIXEL_STD
from triptych.recipes.config import DataConfig, ModelSource, RunConfig
from triptych.recipes.scales import PAPER_SCALES, check_scale, small_train
from triptych.tasks.pretraining.dvae import DVAETrainingConfig
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig

MODELS = {
    "smoke": "dvae_tiny",
    "tiny": "dvae_tiny",
    "small": "dvae_small",
    "base": "dvae_dalle",
    "large": "dvae_dalle",
}
VALUES_PER_CODE = 8 * 8 * 3
"""Pixel values per code: β of the paper is this times the weight of `kl`."""

RECIPE = "dvae"


def dvae(scale: str) -> RunConfig:
    """Return the training of an image tokenizer on images.

    base, large: the paper's settings: 3 M steps of 512 images; learning rate 1e-4, to 1.25e-6 along
    a cosine (there over 1.2 M steps); τ from 1 to 1/16 in 150,000 steps; β from 0 to 6.6 in 5,000;
    AdamW with decay 1e-4. Excluded: the paper's running mean of the weights, its crops of 256 px
    (`--model.image-size`), and its mixed precision by hand.

    Small scales: the last encoder layer is initialised so that all codes are in use, the encoder
    has a tenth of the decoder's learning rate, and `balance` replaces `kl`; with the paper's
    settings a short run collapses to one code.
    """
    check_scale(scale)
    if scale in PAPER_SCALES:
        return _paper_run(scale)
    steps = {"smoke": 4, "tiny": 600, "small": 10_000}[scale]
    return RunConfig(
        recipe=RECIPE,
        scale=scale,
        model=ModelSource(name=MODELS[scale]),
        data=DataConfig(cache_mib=1024),
        image=_image(crop_scale=None, flip_probability=0.0 if scale != "small" else 0.5),
        task=DVAETrainingConfig(anneal_steps=max(1, 4 * steps // 5), init_scale=4.0),
        train=replace(small_train(scale, steps), evaluate_every_steps=max(1, steps // 4)),
        optim=OptimConfig(
            learning_rate=5e-3,
            vision_learning_rate=5e-4,
            weight_decay=1e-4,
            betas=(0.9, 0.99),
            warmup_steps=min(50, steps),
            min_learning_rate=1e-5,
        ),
        weights=(
            ObjectiveWeight(name="reconstruction"),
            ObjectiveWeight(name="balance", weight=0.1),
        ),
    )


def _paper_run(scale: str) -> RunConfig:
    return RunConfig(
        recipe=RECIPE,
        scale=scale,
        model=ModelSource(name=MODELS[scale]),
        image=_image(crop_scale=(0.5, 1.0), flip_probability=0.5),
        task=DVAETrainingConfig(),
        train=TrainConfig(
            max_steps=3_000_000,
            global_batch_size=512,
            micro_batch_size=64,
            max_grad_norm=None,
            evaluate_every_steps=5000,
            checkpoint_every_steps=5000,
        ),
        optim=OptimConfig(
            learning_rate=1e-4,
            vision_learning_rate=1e-4,
            weight_decay=1e-4,
            warmup_steps=0,
            min_learning_rate=1.25e-6,
        ),
        weights=(
            ObjectiveWeight(name="reconstruction"),
            ObjectiveWeight(name="kl", weight=6.6 / VALUES_PER_CODE, ramp_steps=5000),
        ),
    )


def _image(
    *, crop_scale: tuple[float, float] | None, flip_probability: float
) -> ImageTransformConfig:
    return ImageTransformConfig(
        crop_scale=crop_scale,
        flip_probability=flip_probability,
        randaugment_num_ops=0,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
    )
