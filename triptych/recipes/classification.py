"""Fine-tuning classifiers on any model: of answers, of images with texts, of texts alone.

The model is that of `--init-from`, or a fresh one of `model.name`.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.core.errors import ConfigError
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes.config import (
    DataConfig,
    ModelSource,
    RunConfig,
    TaskConfig,
    TokenizerConfig,
)
from triptych.tasks.finetuning.heads import FLAVA_HEAD, HeadConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassificationConfig,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.train.config import OptimConfig, TrainConfig

SCALES = ("smoke", "tiny", "small", "base", "large")
MODELS = {
    "smoke": "mplug_tiny",
    "tiny": "mplug_tiny",
    "small": "mplug_small",
    "base": "mplug_base_patch16_256",
    "large": "mplug_large_patch14_224",
}
NO_AUGMENTATION = ImageTransformConfig(crop_scale=None, flip_probability=0.0, randaugment_num_ops=0)


def answers(scale: str) -> RunConfig:
    """Return visual question answering by a closed list of answers.

    base, large: VLMo's fine-tuning on VQAv2: 10 epochs at a batch of 128 are 50,000 steps, learning
    rate 3e-5 (large: 1.5e-5) with linear decay, weight decay 0.01, a tenth of the steps warm up, 20
    times the rate for the head, 480 px, the 3,129 answers that are the best of 9 questions or more.
    """
    task = AnswerClassificationConfig()
    if scale not in ("base", "large"):
        task = replace(task, min_answer_count=1 if scale == "smoke" else 2)
    return _run("classify.answers", scale, task, max_steps=50_000, image_size=480)


def pairs(scale: str) -> RunConfig:
    """Return a classifier of images with texts: SNLI-VE, hateful memes, one's own labels.

    base, large: the papers give no settings for these; they are those of VLMo's other classifiers:
    batch 128, learning rate 3e-5 (large: 1.5e-5), 384 px. 10 epochs of SNLI-VE are 41,000 steps.
    Memes have their words in `text`: `--task.text-field text`.
    """
    task = ImageTextClassificationConfig(head=HeadConfig())
    return _run("classify.pairs", scale, task, max_steps=41_000, image_size=384)


def texts(scale: str) -> RunConfig:
    """Return a classifier of texts, or a regression: GLUE.

    base, large: torchmultimodal's FLAVA on QNLI, which takes RoBERTa's settings: batch 32, 33,112
    steps, 1,986 of them warm up, learning rate 1e-5, decay 0.1, betas 0.9 and 0.98, eps 1e-6.
    """
    task = TextClassificationConfig(head=FLAVA_HEAD)
    if scale not in ("base", "large"):  # small models have 64 positions
        return _run("classify.texts", scale, replace(task, max_text_tokens=64), 33_112, None)
    run = _run("classify.texts", scale, task, 33_112, None)
    optim = OptimConfig(
        learning_rate=1e-5,
        vision_learning_rate=1e-5,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        eps=1e-6,
        warmup_steps=1_986,
        warmup_learning_rate=0.0,
        min_learning_rate=0.0,
        decay="linear",
    )
    return replace(run, optim=optim, train=TrainConfig(max_steps=33_112, local_batch_size=32))


def _run(
    recipe: str, scale: str, task: TaskConfig, max_steps: int, image_size: int | None
) -> RunConfig:
    if scale not in SCALES:
        raise ConfigError(f"scale = {scale!r}: must be one of {', '.join(SCALES)}")
    if scale not in ("base", "large"):
        return _small_run(recipe, scale, task)
    rate = 3e-5 if scale == "base" else 1.5e-5
    if scale == "large" and image_size is not None:
        image_size = image_size // 14 * 14  # the default model's patches
    return RunConfig(
        recipe=recipe,
        scale=scale,
        model=ModelSource(name=MODELS[scale], image_size=image_size),
        tokenizer=TokenizerConfig(vocab_size=30522, num_unused=994),
        data=DataConfig(num_workers=8, cache_mib=0),
        image=ImageTransformConfig(crop_scale=(0.5, 1.0)),
        task=task,
        train=TrainConfig(max_steps=max_steps, local_batch_size=128),
        optim=OptimConfig(
            learning_rate=rate,
            vision_learning_rate=rate,
            head_learning_rate_factor=20.0,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            warmup_steps=max_steps // 10,
            warmup_learning_rate=0.0,
            min_learning_rate=0.0,
            decay="linear",
        ),
    )


def _small_run(recipe: str, scale: str, task: TaskConfig) -> RunConfig:
    """Return a run for a laptop; the rates are our own."""
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    rate = 7e-4 if scale != "small" else 2e-4
    return RunConfig(
        recipe=recipe,
        scale=scale,
        model=ModelSource(name=MODELS[scale]),
        data=DataConfig(cache_mib=1024),
        image=NO_AUGMENTATION,
        task=task,
        train=TrainConfig(
            max_steps=steps,
            local_batch_size=8 if scale == "smoke" else 64,
            checkpoint_every_steps=1000,
        ),
        optim=OptimConfig(
            learning_rate=rate,
            vision_learning_rate=rate,
            muon_learning_rate=3 * rate,
            head_learning_rate_factor=2.0,
            betas=(0.9, 0.98),
            warmup_steps=min(50, steps),
            min_learning_rate=rate / 100,
        ),
    )
