"""Fine-tuning of classifiers on any model: answers, images with texts, images or texts alone.

The model comes from `--init-from`, or is a randomly initialised `model.name`.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes import scales
from triptych.recipes.config import RunConfig
from triptych.recipes.mplug import MODELS
from triptych.recipes.scales import PAPER_SCALES, check_scale, linear_optim, small_optim
from triptych.tasks.finetuning.base import FLAVA_HEAD, HeadConfig
from triptych.tasks.finetuning.image_classification import ImageClassificationConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassificationConfig,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.tasks.spec import TaskConfig
from triptych.train.config import OptimConfig, TrainConfig

SMALL_IMAGE = ImageTransformConfig(crop_scale=(0.8, 1.0), randaugment_num_ops=0)
"""For small scales, where no text names sides or colours: flips, and crops that keep small objects.
Crops of half the area on and RandAugment's colours cost 0.07 of accuracy on the scenes' shapes."""


def answers(scale: str) -> RunConfig:
    """Return visual question answering by a closed list of answers.

    base, large: VLMo's fine-tuning on VQAv2: 10 epochs at a batch of 128 are 50,000 steps, learning
    rate 3e-5 (large: 1.5e-5) with linear decay, weight decay 0.01, a tenth of the steps warm up, 20
    times the rate for the head, 480 px, the 3,129 answers that are the best of 9 questions or more.
    """
    return _run("classify.answers", scale, answer_list(scale), max_steps=50_000, image_size=480)


def answer_list(scale: str) -> AnswerClassificationConfig:
    """Return the answer classifier; small scales have fewer questions, so their list is shorter."""
    if scale in PAPER_SCALES:
        return AnswerClassificationConfig()
    return AnswerClassificationConfig(min_answer_count=1 if scale == "smoke" else 2)


def pairs(scale: str) -> RunConfig:
    """Return a classifier of images with texts: SNLI-VE, hateful memes, your own labels.

    base, large: the papers give no settings for these; we use those of VLMo's other classifiers:
    batch 128, learning rate 3e-5 (large: 1.5e-5), 384 px. 10 epochs of SNLI-VE are 41,000 steps.
    Memes have their text in the field `text`: `--task.text-field text`.
    """
    task = ImageTextClassificationConfig(head=HeadConfig())
    return _run("classify.pairs", scale, task, max_steps=41_000, image_size=384)


def images(scale: str) -> RunConfig:
    """Return a classifier of images alone: ImageNet, the classes of your own folders.

    base, large: VLMo gives no settings; these are released BEiT's on ImageNet-1k, for models that
    saw no labels before: 100 epochs (large: 50) at a batch of 1,024 are 125,000 (62,500) steps, 20
    (5) epochs of warm-up, learning rate 4e-3 (1e-3), layer decay 0.65 (0.75), weight decay 0.05,
    mixup 0.8, CutMix 1, label smoothing 0.1, RandAugment(2, 9). BEiT erases random rectangles too,
    which this does not. VLMo skips branches: --model.drop-path 0.1 (large: 0.2).
    """
    task = ImageClassificationConfig()
    if scale not in PAPER_SCALES:
        run = _run("classify.images", scale, replace(task, label_smoothing=0.1), 125_000, None)
        return replace(run, image=SMALL_IMAGE)
    is_base = scale == "base"
    steps, rate = (125_000, 4e-3) if is_base else (62_500, 1e-3)
    run = _run("classify.images", scale, task, steps, 224)
    optim = OptimConfig(
        learning_rate=rate,
        vision_learning_rate=rate,
        layer_decay=0.65 if is_base else 0.75,
        weight_decay=0.05,
        warmup_steps=25_000 if is_base else 6250,
        warmup_learning_rate=1e-6,
        min_learning_rate=1e-6,
    )
    return replace(
        run,
        task=replace(task, mixup=0.8, cutmix=1.0, label_smoothing=0.1),
        train=TrainConfig(max_steps=steps, global_batch_size=1024, max_grad_norm=None),
        optim=optim,
        image=ImageTransformConfig(crop_scale=(0.08, 1.0), randaugment_magnitude=9.0),
    )


def texts(scale: str) -> RunConfig:
    """Return a classifier of texts, or a regression: GLUE.

    base, large: torchmultimodal's FLAVA on QNLI, which takes RoBERTa's settings: batch 32, 33,112
    steps, 1,986 of them warm up, learning rate 1e-5, decay 0.1, betas 0.9 and 0.98, eps 1e-6.
    """
    task = TextClassificationConfig(head=FLAVA_HEAD)
    if scale not in PAPER_SCALES:  # small models have 64 positions
        return _run("classify.texts", scale, replace(task, max_text_tokens=64), 33_112, None)
    run = _run("classify.texts", scale, task, 33_112, None)
    optim = replace(linear_optim(1e-5, 1_986), weight_decay=0.1, eps=1e-6)
    return replace(run, optim=optim, train=TrainConfig(max_steps=33_112, global_batch_size=32))


def _run(
    recipe: str, scale: str, task: TaskConfig, max_steps: int, image_size: int | None
) -> RunConfig:
    check_scale(scale)
    if scale not in PAPER_SCALES:
        steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
        optim = small_optim(7e-4 if scale != "small" else 2e-4, min(50, steps), head_factor=2.0)
        return scales.small_run(recipe, scale, MODELS, task, steps, optim)
    rate = 3e-5 if scale == "base" else 1.5e-5
    if scale == "large" and image_size is not None:
        image_size = image_size // 14 * 14  # the default model's patches
    optim = replace(linear_optim(rate, max_steps // 10), head_learning_rate_factor=20.0)
    train = TrainConfig(max_steps=max_steps, global_batch_size=128)
    image = ImageTransformConfig(crop_scale=(0.5, 1.0))
    run = scales.paper_run(recipe, scale, MODELS, task, train, optim, image)
    return replace(run, model=replace(run.model, image_size=image_size))
