"""FLAVA's pre-training and fine-tuning runs (Singh et al. 2022; torchmultimodal's configs).

Numbers of the base and large scales say where they come from. "Seed" is a published summary of the
paper; the paper's total number of steps, sampling ratios and fine-tuning settings are not known.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.data.collate import PretrainingTextConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.recipes import scales
from triptych.recipes.classification import answer_list
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES, check_scale, linear_optim, small_optim
from triptych.tasks.finetuning.base import FLAVA_HEAD, HeadConfig
from triptych.tasks.finetuning.flava_retrieval import FLAVARetrievalConfig
from triptych.tasks.finetuning.image_text_classification import (
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.tasks.pretraining.flava import FLAVAPretrainingConfig
from triptych.tasks.pretraining.flava_stages import FLAVAImageConfig, FLAVATextConfig
from triptych.tasks.spec import TaskConfig
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig

MODELS = {
    "smoke": "flava_tiny",
    "tiny": "flava_tiny",
    "small": "flava_small",
    "base": "flava_full",
    "large": "flava_900m",
}
POSITIONS = {"smoke": 64, "tiny": 64, "small": 128, "base": 512, "large": 512}
"""Longest text that the model of a scale reads."""

CROPS = ImageTransformConfig(crop_scale=(0.9, 1.0), flip_probability=0.0, randaugment_num_ops=0)
"""torchmultimodal's pre-training: crops of nine tenths of the area on, no flip, no colours."""

CAPTIONS = PretrainingTextConfig(max_text_tokens=77, max_words=None, whole_word=True)
"""Captions unchanged, up to 77 tokens; whole words are masked (torchmultimodal)."""


def image(scale: str) -> RunConfig:
    """Return the image encoder's stage, masked image modelling on images only.

    base, large: the paper uses BEiT's objective first and DINO in the end; these numbers are
    BEiT's: 800 epochs of ImageNet's 1.28 M images at a batch of 2,048 are 500,000 steps, learning
    rate 1.5e-3, 6,250 warm-up steps (10 epochs), weight decay 0.05, gradients clipped at 3.
    """
    check_scale(scale)
    if scale in PAPER_SCALES:
        train = TrainConfig(
            max_steps=500_000, global_batch_size=2048, micro_batch_size=256, max_grad_norm=3.0
        )
        optim = OptimConfig(
            learning_rate=1.5e-3,
            vision_learning_rate=1.5e-3,
            weight_decay=0.05,
            warmup_steps=6250,
            min_learning_rate=1e-5,
        )
        crops = replace(CROPS, crop_scale=(0.08, 1.0), flip_probability=0.5)
        return replace(
            _paper_run("flava.image", scale, FLAVAImageConfig(), train, optim), image=crops
        )
    steps = {"smoke": 4, "tiny": 600, "small": 8000}[scale]
    return _small_run("flava.image", scale, FLAVAImageConfig(), steps, 1.5e-3)


def text(scale: str) -> RunConfig:
    """Return the text encoder's stage, masked language modelling on texts only.

    base, large: texts of 512 tokens (paper: CCNews and BookCorpus); learning rate, decay, warm-up
    and batch are those of the joint stage (seed), since the stage's own are not known, and so is
    the number of steps. Its 64 micro-batches count alike, however many words each has to predict.
    """
    check_scale(scale)
    task = FLAVATextConfig(max_text_tokens=POSITIONS[scale])
    if scale in PAPER_SCALES:
        train = TrainConfig(max_steps=100_000, global_batch_size=8192, micro_batch_size=128)
        return _paper_run("flava.text", scale, task, train, _large_batches())
    steps = {"smoke": 4, "tiny": 500, "small": 6000}[scale]
    return _small_run("flava.text", scale, task, steps, 2e-3)


def joint(scale: str) -> RunConfig:
    """Return the joint stage: each step draws one source of pairs, images or texts.

    Name each source's `kind` and `ratio` with its path; without ratios all are drawn equally often,
    as in torchmultimodal (the paper's ratios are not known).

    base, large: seed: AdamW, batch 8,192, learning rate 1e-3, 10,000 warm-up steps, decay 0.1;
    torchmultimodal's config: 100,000 steps, all six losses with weight 1. Biases, norms, class
    tokens and positions do not decay here; in torchmultimodal they do. Each process
    takes its part of the batch in chunks of 128. It is not accumulated: negatives, swapped captions
    and token means are those of one micro-batch.

    Small scales: GC takes every step on pairs; ITM, MMM-image and MMM-text join every fourth step
    after 40 % of them. tiny has batches of 256: with GC alone on as many pairs in all, one
    seed each, batches of 64 end 0.09 lower in recall at 1 among 500 images.
    """
    check_scale(scale)
    task = FLAVAPretrainingConfig(max_text_tokens=POSITIONS[scale])
    if scale in PAPER_SCALES:
        train = TrainConfig(max_steps=100_000, global_batch_size=8192)
        task = replace(task, chunk_size=128)
        return _paper_run("flava.joint", scale, task, train, _large_batches())
    steps = {"smoke": 6, "tiny": 1300, "small": 20_000}[scale]
    run = _small_run("flava.joint", scale, task, steps, 1.5e-3)
    if scale == "tiny":
        run = replace(run, train=replace(run.train, global_batch_size=256))
    late = 4 * steps // 10
    weights = (
        ObjectiveWeight(name="gc"),
        *(
            ObjectiveWeight(name=name, start_step=late, every_steps=4)
            for name in ("itm", "mmm_image", "mmm_text")
        ),
        ObjectiveWeight(name="mim"),
        ObjectiveWeight(name="mlm"),
    )
    return replace(run, weights=weights)


def retrieval(scale: str) -> RunConfig:
    """Return retrieval by GC and ITM, from a model of the joint stage.

    base, large: the paper retrieves without fine-tuning; these are VLMo's settings: 3,000 steps of
    3,072 pairs of COCO at 384 px, learning rate 3e-5, 300 warm-up steps. Each process takes its
    part of the batch in chunks of 128 pairs.
    """
    check_scale(scale)
    task = FLAVARetrievalConfig()
    weights = (ObjectiveWeight(name="gc"), ObjectiveWeight(name="itm"))
    if scale in PAPER_SCALES:
        run = _finetune("flava.retrieval", scale, replace(task, chunk_size=128), 3000)
        train = replace(run.train, global_batch_size=3072, micro_batch_size=None)
        model = replace(run.model, image_size=384)
        return replace(run, train=train, model=model, weights=weights)
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    run = _small_run("flava.retrieval", scale, task, steps, 5e-4)
    return replace(run, weights=weights)


def vqa(scale: str) -> RunConfig:
    """Return visual question answering by a closed list of answers from the training data.

    base, large: the paper's settings are not known; these are VLMo's: 10 epochs of VQAv2 at a batch
    of 128, learning rate 3e-5, 20 times that for the head; 480 px.
    """
    check_scale(scale)
    task = answer_list(scale)
    if scale in PAPER_SCALES:
        run = _finetune("flava.vqa", scale, task, 50_000)
        optim = replace(run.optim, head_learning_rate_factor=20.0)
        return replace(run, optim=optim, model=replace(run.model, image_size=480))
    steps = {"smoke": 4, "tiny": 2000, "small": 6000}[scale]
    return _small_run("flava.vqa", scale, task, steps, 7e-4)


def snli_ve(scale: str) -> RunConfig:
    """Return visual entailment, three classes, by the fused class state and FLAVA's classifier.

    base, large: torchmultimodal's classifier (768, ReLU, dropout 0.5); the paper's optimisation is
    not known, so that of `flava.vqa` is used.
    """
    check_scale(scale)
    task = ImageTextClassificationConfig(text_field="hypothesis", head=FLAVA_HEAD)
    if scale in PAPER_SCALES:
        return _finetune("flava.snli_ve", scale, task, 41_000)
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    return _small_run("flava.snli_ve", scale, task, steps, 7e-4)


def nlvr2(scale: str) -> RunConfig:
    """Return the classification of statements about two images, NLVR2; it is not in the paper.

    base, large: FLAVA's classifier on the class states of both pairs; the optimisation of
    `flava.vqa` for as long as VLMo trains: 10 epochs of 86,000 statements at a batch of 128 are
    6,750 steps; 384 px.
    """
    check_scale(scale)
    task = NLVR2Config(swap_probability=0.0, head=FLAVA_HEAD)
    if scale in PAPER_SCALES:
        run = _finetune("flava.nlvr2", scale, task, 6750)
        return replace(run, model=replace(run.model, image_size=384))
    steps = {"smoke": 4, "tiny": 2000, "small": 6000}[scale]
    task = NLVR2Config(head=HeadConfig(hidden_ratio=1.0))
    return _small_run("flava.nlvr2", scale, task, steps, 7e-4)


def hateful_memes(scale: str) -> RunConfig:
    """Return the classification of hateful memes, two classes scored by AUROC; the field is `text`.

    base, large: 20 epochs of 8,500 memes at a batch of 128, 66 steps each; as for
    `flava.snli_ve`, the paper's optimisation is not known.
    """
    check_scale(scale)
    task = ImageTextClassificationConfig(text_field="text", head=FLAVA_HEAD)
    if scale in PAPER_SCALES:
        return _finetune("flava.hateful_memes", scale, task, 1320)
    steps = {"smoke": 4, "tiny": 500, "small": 2000}[scale]
    return _small_run("flava.hateful_memes", scale, task, steps, 7e-4)


def glue(scale: str) -> RunConfig:
    """Return a classifier of texts, or a regression, on the text encoder alone.

    base, large: torchmultimodal on QNLI, which takes RoBERTa's settings: batch 32, 33,112 steps,
    1,986 of them warm up, learning rate 1e-5, decay 0.1, betas 0.9 and 0.98, eps 1e-6.
    """
    check_scale(scale)
    task = TextClassificationConfig(head=FLAVA_HEAD, max_text_tokens=min(128, POSITIONS[scale]))
    if scale in PAPER_SCALES:
        train = TrainConfig(max_steps=33_112, global_batch_size=32)
        optim = replace(linear_optim(1e-5, 1_986), weight_decay=0.1, eps=1e-6)
        return _paper_run("flava.glue", scale, task, train, optim)
    steps = {"smoke": 4, "tiny": 1000, "small": 6000}[scale]
    return _small_run("flava.glue", scale, task, steps, 7e-4)


def _finetune(recipe: str, scale: str, task: TaskConfig, steps: int) -> RunConfig:
    rate = 3e-5 if scale == "base" else 1.5e-5
    train = TrainConfig(max_steps=steps, global_batch_size=128, micro_batch_size=64)
    return _paper_run(recipe, scale, task, train, linear_optim(rate, steps // 10))


def _paper_run(
    recipe: str, scale: str, task: TaskConfig, train: TrainConfig, optim: OptimConfig
) -> RunConfig:
    run = scales.paper_run(recipe, scale, MODELS, task, train, optim, CROPS)
    return replace(run, captions=CAPTIONS)


def _small_run(recipe: str, scale: str, task: TaskConfig, steps: int, rate: float) -> RunConfig:
    optim = small_optim(rate if scale != "small" else rate / 3, min(100, steps))
    run = scales.small_run(recipe, scale, MODELS, task, steps, optim)
    return replace(run, captions=replace(CAPTIONS, max_text_tokens=min(77, POSITIONS[scale])))


def _large_batches() -> OptimConfig:
    """Return the paper's AdamW: a large rate, a large decay and a long warm-up (seed)."""
    return OptimConfig(
        learning_rate=1e-3,
        vision_learning_rate=1e-3,
        weight_decay=0.1,
        warmup_steps=10_000,
        warmup_learning_rate=0.0,
        min_learning_rate=0.0,
    )
