"""VLMo's three stages and its fine-tuning (Bao et al. 2022; released configs of microsoft/unilm).

Numbers of the base and large scales are the released code's; where the paper differs it is said.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.data.collate import PretrainingTextConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes import scales
from triptych.recipes.classification import answer_list
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES, check_scale, linear_optim, small_optim
from triptych.tasks.finetuning.image_text_classification import (
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import VLMO_NLVR2
from triptych.tasks.finetuning.retrieval import VLMoRetrievalConfig
from triptych.tasks.pretraining.vlmo import VLMoPretrainingConfig
from triptych.tasks.pretraining.vlmo_stages import VLMoLanguageConfig, VLMoVisionConfig
from triptych.tasks.spec import TaskConfig
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig

MODELS = {
    "smoke": "vlmo_tiny",
    "tiny": "vlmo_tiny",
    "small": "vlmo_small",
    "base": "vlmo_base_patch16",
    "large": "vlmo_large_patch16",
}
HALF = (0.5, 0.5, 0.5)
IMAGE = ImageTransformConfig(crop_scale=(0.5, 1.0), mean=HALF, std=HALF)
"""Released `square_transform_randaug`: crops of half the area on, flips, RandAugment(2, 7)."""

PLAIN_IMAGE = replace(scales.PLAIN_IMAGE, mean=HALF, std=HALF)

TEXTS = PretrainingTextConfig(whole_word=True)
RAW_TEXTS = replace(TEXTS, max_words=None)
"""The released code reads captions as they are."""

LONG_TEXTS = replace(RAW_TEXTS, max_text_tokens=196)


def vision(scale: str) -> RunConfig:
    """Return stage 1, masked image modelling; name the tokenizer with --task.image-tokenizer.

    base, large: BEiT's pre-training, which VLMo starts from: 150 epochs of ImageNet-22k's 14.2 M
    images at a batch of 2,048, learning rate 1.5e-3, 10,000 warm-up steps, cosine to 1e-5,
    weight decay 0.05, gradients clipped at 3. (BEiT jitters colours; RandAugment stands for that.)
    """
    check_scale(scale)
    task = VLMoVisionConfig()
    if scale in PAPER_SCALES:
        train = TrainConfig(
            max_steps=1_040_000, global_batch_size=2048, micro_batch_size=256, max_grad_norm=3.0
        )
        optim = OptimConfig(
            learning_rate=1.5e-3,
            vision_learning_rate=1.5e-3,
            weight_decay=0.05,
            warmup_steps=10_000,
            min_learning_rate=1e-5,
        )
        image = replace(IMAGE, crop_scale=(0.08, 1.0), randaugment_geometric=False)
        return _paper_run("vlmo.vision", scale, task, train, optim, image)
    steps = {"smoke": 4, "tiny": 450, "small": 8000}[scale]
    return _small_run("vlmo.vision", scale, task, steps, 1.5e-3)


def language(scale: str) -> RunConfig:
    """Return stage 2, masked language modelling on texts only; start from stage 1.

    base, large: 200,000 steps of 1,024 texts of up to 196 tokens (the paper: 500,000 for base),
    learning rate 2e-4, 2,500 warm-up steps, linear to 0.
    """
    check_scale(scale)
    task = VLMoLanguageConfig()
    if scale in PAPER_SCALES:
        train = TrainConfig(max_steps=200_000, global_batch_size=1024, micro_batch_size=256)
        run = _paper_run("vlmo.language", scale, task, train, linear_optim(2e-4, 2500), IMAGE)
        return replace(run, captions=LONG_TEXTS)
    steps = {"smoke": 4, "tiny": 250, "small": 6000}[scale]
    return _small_run("vlmo.language", scale, task, steps, 2e-3)


def pretrain(scale: str) -> RunConfig:
    """Return stage 3, ITC, ITM and MLM on pairs; start from stage 2.

    base, large: 200,000 steps of 1,024 pairs at 224 px, learning rate 2e-4 (base) or 5e-5 (large),
    2,500 warm-up steps, linear to 0, ITC on both branches, MLM with a quarter of the weight. The
    paper has one branch and equal weights.

    Small scales: ITC is in every step; MLM and ITM join every other step.
    """
    check_scale(scale)
    if scale in PAPER_SCALES:
        rate = 2e-4 if scale == "base" else 5e-5
        train = TrainConfig(max_steps=200_000, global_batch_size=1024, micro_batch_size=128)
        task = VLMoPretrainingConfig(fused_itc=True)
        run = _paper_run("vlmo.pretrain", scale, task, train, linear_optim(rate, 2500), IMAGE)
        weights = (
            ObjectiveWeight(name="itc"),
            ObjectiveWeight(name="itm"),
            ObjectiveWeight(name="mlm", weight=0.25),
        )
        return replace(run, weights=weights)
    steps = {"smoke": 4, "tiny": 1200, "small": 20_000}[scale]
    run = _small_run("vlmo.pretrain", scale, VLMoPretrainingConfig(), steps, 1.5e-3)
    weights = (
        ObjectiveWeight(name="itc"),
        ObjectiveWeight(name="mlm", weight=0.5, start_step=3 * steps // 10, every_steps=2),
        ObjectiveWeight(name="itm", start_step=5 * steps // 10, every_steps=2),
    )
    return replace(run, weights=weights)


def retrieval(scale: str) -> RunConfig:
    """Return retrieval by ITC.

    base, large: 3,000 steps of 3,072 pairs of COCO (Flickr30k: 1,500, warm-up 150) at 384 px,
    learning rate 3e-5 (base) or 2e-5 (large), 300 warm-up steps, drop path rate 0.2.
    """
    check_scale(scale)
    task, weights = VLMoRetrievalConfig(), (ObjectiveWeight(name="itc"),)
    if scale in PAPER_SCALES:
        rate = 3e-5 if scale == "base" else 2e-5
        train = TrainConfig(max_steps=3000, global_batch_size=3072)
        run = _paper_run("vlmo.retrieval", scale, task, train, linear_optim(rate, 300), IMAGE)
        return replace(_at(run, 384, 0.2), weights=weights)
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    return replace(_small_run("vlmo.retrieval", scale, task, steps, 5e-4), weights=weights)


def vqa(scale: str) -> RunConfig:
    """Return visual question answering by a closed list of answers from the training data.

    base, large: 10 epochs of VQAv2 at a batch of 128 are 50,000 steps, 480 px, learning rate 3e-5
    (base) or 1.5e-5 (large), 20 times that for the head, a tenth of the steps warm up.
    """
    check_scale(scale)
    task = answer_list(scale)
    if scale in PAPER_SCALES:
        rate = 3e-5 if scale == "base" else 1.5e-5
        train = TrainConfig(max_steps=50_000, global_batch_size=128, micro_batch_size=64)
        optim = replace(linear_optim(rate, 5000), head_learning_rate_factor=20.0)
        return _at(_paper_run("vlmo.vqa", scale, task, train, optim, IMAGE), 480, 0.15)
    steps = {"smoke": 4, "tiny": 2500, "small": 6000}[scale]
    return _small_run("vlmo.vqa", scale, task, steps, 7e-4)


def nlvr2(scale: str) -> RunConfig:
    """Return the classification of statements about two images, NLVR2.

    base, large: 10 epochs of 86,000 statements at a batch of 128 are 6,750 steps, 384 px, learning
    rate 5e-5 (base) or 3e-5 (large), a tenth of the steps warm up.
    """
    check_scale(scale)
    task = VLMO_NLVR2
    if scale in PAPER_SCALES:
        rate = 5e-5 if scale == "base" else 3e-5
        train = TrainConfig(max_steps=6750, global_batch_size=128, micro_batch_size=32)
        run = _paper_run("vlmo.nlvr2", scale, task, train, linear_optim(rate, 675), IMAGE)
        return _at(run, 384, 0.1 if scale == "base" else 0.15)
    steps = {"smoke": 4, "tiny": 2000, "small": 6000}[scale]
    task = replace(task, swap_probability=0.5)
    return _small_run("vlmo.nlvr2", scale, task, steps, 7e-4)


def snli_ve(scale: str) -> RunConfig:
    """Return visual entailment on SNLI-VE, three classes.

    Neither paper nor released code has it; base and large take the settings of VLMo's NLVR2.
    """
    check_scale(scale)
    task = ImageTextClassificationConfig(text_field="hypothesis")
    if scale in PAPER_SCALES:
        rate = 5e-5 if scale == "base" else 3e-5
        train = TrainConfig(max_steps=41_000, global_batch_size=128, micro_batch_size=64)
        run = _paper_run("vlmo.snli_ve", scale, task, train, linear_optim(rate, 4100), IMAGE)
        return _at(run, 384, 0.1 if scale == "base" else 0.15)
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    return _small_run("vlmo.snli_ve", scale, task, steps, 7e-4)


def hateful_memes(scale: str) -> RunConfig:
    """Return the classification of hateful memes, two classes scored by AUROC; the field is `text`.

    Neither paper nor released code has it; base and large take the settings of VLMo's NLVR2 for 20
    epochs of 8,500 memes, 1,320 steps, as many as `flava.hateful_memes`.
    """
    check_scale(scale)
    task = ImageTextClassificationConfig(text_field="text")
    if scale in PAPER_SCALES:
        rate = 5e-5 if scale == "base" else 3e-5
        train = TrainConfig(max_steps=1320, global_batch_size=128, micro_batch_size=64)
        run = _paper_run("vlmo.hateful_memes", scale, task, train, linear_optim(rate, 132), IMAGE)
        return _at(run, 384, 0.1 if scale == "base" else 0.15)
    steps = {"smoke": 4, "tiny": 500, "small": 2000}[scale]
    return _small_run("vlmo.hateful_memes", scale, task, steps, 7e-4)


def _at(run: RunConfig, image_size: int, drop_path: float) -> RunConfig:
    """Return a fine-tuning run at its own size and drop path rate."""
    return replace(run, model=replace(run.model, image_size=image_size, drop_path=drop_path))


def _paper_run(
    recipe: str,
    scale: str,
    task: TaskConfig,
    train: TrainConfig,
    optim: OptimConfig,
    image: ImageTransformConfig,
) -> RunConfig:
    if train.max_grad_norm != 3.0:  # BEiT clips gradients, VLMo's own stages do not
        train = replace(train, max_grad_norm=None)
    run = scales.paper_run(recipe, scale, MODELS, task, train, optim, image)
    return replace(run, captions=RAW_TEXTS)


def _small_run(recipe: str, scale: str, task: TaskConfig, steps: int, rate: float) -> RunConfig:
    optim = small_optim(rate if scale != "small" else rate / 3, min(100, steps))
    run = scales.small_run(recipe, scale, MODELS, task, steps, optim, PLAIN_IMAGE)
    return replace(run, captions=TEXTS)
