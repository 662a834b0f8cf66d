"""mPLUG's pre-training and fine-tuning runs (Li et al. 2022; released configs X-PLUG/mPLUG)."""

from __future__ import annotations

from dataclasses import replace

from triptych.data.collate import PretrainingTextConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.generation.search import BeamConfig
from triptych.recipes import scales
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES, check_scale, small_optim
from triptych.tasks.finetuning.base import HeadConfig
from triptych.tasks.finetuning.captioning import CaptioningConfig
from triptych.tasks.finetuning.grounding import GroundingConfig
from triptych.tasks.finetuning.image_text_classification import ImageTextClassificationConfig
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.retrieval import RetrievalConfig
from triptych.tasks.finetuning.scst import SCSTConfig
from triptych.tasks.finetuning.vqa import VQAConfig
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.tasks.spec import TaskConfig, TextLengths
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig

MODELS = {
    "smoke": "mplug_tiny",
    "tiny": "mplug_tiny",
    "small": "mplug_small",
    "base": "mplug_base_patch16_256",
    "large": "mplug_large_patch14_224",
}
WARMUP_STEPS = {"mplug.retrieval": 100, "mplug.grounding": 2000}
"""Where the released fine-tuning configs do not have 400: 100 times their `warmup_epochs`."""
PAPER_CAPTION_BEAM = BeamConfig(num_beams=10, min_tokens=1, max_tokens=20)


def pretrain(scale: str) -> RunConfig:
    """Return mPLUG's pre-training.

    base, large: paper, section 5.1 and the released `pretrain_mplug_{base,large}.yaml`: 30 epochs
    of 14 M pairs at a global batch of 1,024 are 410,000 steps; learning rates 1e-4 and 1e-5 (base),
    5e-5 and 5e-6 (large); 1,000 warm-up steps; queue 65,536; momentum 0.995; alpha 0.4, ramped up
    over the first epoch. The released configs have 2,000 warm-up iterations, and end at 2e-6 for
    large. ITC, MLM and PrefixLM all learn from the teacher, as the derived code intends; its
    defects leave MLM an untrained teacher and PrefixLM none.

    Small scales: ITC and PrefixLM, from which short runs learn most, are in every step; MLM joins
    every other step after 30 % of the steps, and ITM after 60 %. Muon trains the matrices.
    """
    check_scale(scale)
    if scale in PAPER_SCALES:
        rate, vision_rate = (1e-4, 1e-5) if scale == "base" else (5e-5, 5e-6)
        return _paper_run(
            "mplug.pretrain",
            scale,
            MPLUGPretrainingConfig(
                alpha_ramp_steps=13_672, distill_mlm=True, distill_prefix_lm=True
            ),
            TrainConfig(max_steps=410_000, global_batch_size=1024, micro_batch_size=128),
            OptimConfig(learning_rate=rate, vision_learning_rate=vision_rate),
            crop_scale=(0.2, 1.0),
        )
    steps = {"smoke": 4, "tiny": 1900, "small": 20_000}[scale]
    rate = 1.5e-3 if scale != "small" else 5e-4
    task = MPLUGPretrainingConfig(queue_size=0, momentum=0.0, alpha=0.0)
    optim = small_optim(rate, min(200, steps), muon_rate=4e-3)
    weights = (
        ObjectiveWeight(name="itc"),
        ObjectiveWeight(name="prefix_lm"),
        ObjectiveWeight(name="mlm", start_step=3 * steps // 10, every_steps=2),
        ObjectiveWeight(name="itm", start_step=6 * steps // 10, every_steps=2),
    )
    run = scales.small_run("mplug.pretrain", scale, MODELS, task, steps, optim)
    captions = PretrainingTextConfig(empty_prefix_probability=0.7)
    return replace(run, captions=captions, weights=weights)


def caption(scale: str) -> RunConfig:
    """Return captioning by cross-entropy.

    base, large: paper, appendix: 5 epochs of COCO's Karpathy split (113,000 images, 567,000
    pairs) at a batch of 256 are 11,000 steps; learning rate 1e-5, decay 0.05, 336 px, beam 10 of
    at most 20 tokens. The released code has decay 0.02, 384 px for base, beam 5 of 8 to 25 tokens,
    and its decoder reads image states alone (`task.memory = "image"`).
    """
    paper = CaptioningConfig(beam=PAPER_CAPTION_BEAM)
    task = paper if scale in PAPER_SCALES else CaptioningConfig()
    return _finetune("mplug.caption", scale, task, 11_000, 256, 1e-5, 5e-6)


def scst(scale: str) -> RunConfig:
    """Return captioning by policy gradient on CIDEr, from a model that `mplug.caption` trained.

    base, large: paper, appendix: 5 more epochs at a learning rate of 8e-7; with 113,000 images
    and the batch of 256 of cross-entropy training (our assumption) they are 2,207 steps. The
    released code has 1e-6, decay 0.02, batches of 32 (base) and 64 (large) per process, and a
    warm-up that starts above the learning rate, at 1e-5; here there is none.
    """
    if scale not in PAPER_SCALES:
        steps = {"smoke": 4, "tiny": 400, "small": 2000}
        small = SCSTConfig(max_tokens=30)
        return _small_run("mplug.scst", scale, small, steps, 1e-4 if scale != "small" else 2e-5)
    task = SCSTConfig(captioning=CaptioningConfig(beam=PAPER_CAPTION_BEAM))
    optim = OptimConfig(
        learning_rate=8e-7,
        vision_learning_rate=8e-7,
        weight_decay=0.05,
        warmup_steps=0,
        min_learning_rate=0.0,
    )
    train = TrainConfig(max_steps=2_207, global_batch_size=256, micro_batch_size=32)
    return _paper_run("mplug.scst", scale, task, train, optim, crop_scale=(0.5, 1.0))


def retrieval(scale: str) -> RunConfig:
    """Return retrieval by ITC and ITM.

    base, large: released `retrieval` config: 8 epochs of COCO at a batch of 1,024, learning rates
    1e-5 and 2e-6, 336 px, queue 65,536; alpha grows over the first epoch. 8 epochs of the 567,000
    pairs of COCO's Karpathy split are 4,430 steps. The released decay is 0.02, the paper's 0.05.
    ITM ranks 256 candidates (`triptych eval --rerank-top-k 256`; the paper: 128 on Flickr30k).
    """
    task = RetrievalConfig(alpha_ramp_steps=554)
    run = _finetune("mplug.retrieval", scale, task, 4_430, 1024, 1e-5, 2e-6)
    return replace(run, weights=(ObjectiveWeight(name="itc"), ObjectiveWeight(name="itm")))


def vqa(scale: str) -> RunConfig:
    """Return visual question answering by generation.

    base, large: released VQA configs: 8 epochs at a batch of 8 x 128 = 1,024 (base) or 8 x 256 =
    2,048 (large), learning rates 3e-5 and 5e-6, decay 0.05 and 504 px in the paper (0.02, 384 base
    and 336 large in the released code), beam 5 of at most 10 tokens. The steps are 8 epochs of the
    658,111 questions of VQAv2's training and validation splits; `mplug.vqa_vg` adds those of Visual
    Genome, as the paper does.
    """
    steps, batch = (2_571, 2048) if scale == "large" else (5_141, 1024)
    return _finetune("mplug.vqa", scale, VQAConfig(), steps, batch, 3e-5, 5e-6)


def grounding(scale: str) -> RunConfig:
    """Return visual grounding by coordinate tokens.

    base, large: released grounding config: 120 epochs at a batch of 8 x 24 = 192, learning rates
    2e-5 and 5e-6, decay 0.02 (paper: 0.05), 336 px, 337 bins, tokens weighted by distance and
    overlap. The steps are 120 epochs of the 120,624 training phrases of RefCOCO; other data need
    their own `train.max_steps`.

    The paper has two stages: `mplug.grounding_mixed` trains on all data sets at 2e-5, and from its
    model `mplug.grounding_second` on each of them at 2e-6.
    """
    small = scale not in PAPER_SCALES
    task = (
        GroundingConfig(
            num_bins=33,
            smoothing_bins=0.7,
            smooth_coordinates=True,
            start_unused=0,
            first_bin_unused=1,
        )
        if small
        else GroundingConfig(length_and_overlap_weighting=True)
    )
    return _finetune("mplug.grounding", scale, task, 75_390, 192, 2e-5, 5e-6)


def nlvr2(scale: str) -> RunConfig:
    """Return the classification of statements about two images (NLVR2).

    base, large: paper, section 5.2.5 and appendix: two cross-attention branches merged before the
    FFN, an MLP on the text [CLS], 336 px, decay 0.05. The authors released neither a model nor a
    config for it, and the text of the paper that we could check lacks its table of settings: the
    other settings are those of ALBEF, on whose code mPLUG is built (`configs/NLVR.yaml`): 10 epochs
    of 86,373 pairs at a batch of 8 x 16 are 6,750 steps, learning rate 2e-5; 5e-6 for the image
    encoder as in mPLUG's other configs.
    """
    return _finetune("mplug.nlvr2", scale, NLVR2Config(merge="mean"), 6_750, 128, 2e-5, 5e-6)


def snli_ve(scale: str) -> RunConfig:
    """Return visual entailment in three classes, without the decoder (SNLI-VE).

    base, large: paper, section 5.2.5 and appendix: the encoders and the fusion network read the
    image, the premise and the hypothesis; 336 px, decay 0.05. No config was released either: the
    other settings are those of ALBEF (`configs/VE.yaml`): 5 epochs of 529,527 pairs at a batch of
    8 x 32 are 10,340 steps, learning rate 2e-5; 5e-6 for the image encoder. The order of the
    classes is that of mPLUG's dataset code.

    Small scales exclude the premise: the scenes' captions would give the answer away.
    """
    task = ImageTextClassificationConfig(
        labels=("contradiction", "neutral", "entailment"),
        text_field="hypothesis",
        with_premise=scale in PAPER_SCALES,
        max_text_tokens=80 if scale in PAPER_SCALES else 40,
        head=HeadConfig(hidden_ratio=1.0, norm=False, activation="relu"),
    )
    return _finetune("mplug.snli_ve", scale, task, 10_340, 256, 2e-5, 5e-6)


def hateful_memes(scale: str) -> RunConfig:
    """Return the classification of hateful memes, two classes scored by AUROC; the field is `text`.

    Neither paper nor released code has it; base and large take the settings of `mplug.snli_ve`: 20
    epochs of 8,500 memes at a batch of 256 are 660 steps, as many epochs as `flava.hateful_memes`.
    """
    head = HeadConfig(hidden_ratio=1.0, norm=False, activation="relu")
    task = ImageTextClassificationConfig(text_field="text", head=head)
    run = _finetune("mplug.hateful_memes", scale, task, 660, 256, 2e-5, 5e-6)
    if scale in PAPER_SCALES:
        return replace(run, optim=replace(run.optim, warmup_steps=66))
    return run


def _finetune(
    recipe: str,
    scale: str,
    task: TaskConfig,
    steps: int,
    batch_size: int,
    rate: float,
    vision_rate: float,
) -> RunConfig:
    """Return a fine-tuning run; the numbers are the paper's, small scales take their own."""
    check_scale(scale)
    if scale in PAPER_SCALES:
        run = _paper_run(
            recipe,
            scale,
            task,
            TrainConfig(
                max_steps=steps, global_batch_size=batch_size, micro_batch_size=batch_size // 8
            ),
            OptimConfig(
                learning_rate=rate,
                vision_learning_rate=vision_rate,
                weight_decay=0.05,
                warmup_steps=WARMUP_STEPS.get(recipe, 400),
            ),
            crop_scale=(0.5, 1.0),
        )
        if isinstance(task, GroundingConfig):
            image = replace(run.image, crop_scale=None, randaugment_geometric=False)
            return replace(run, image=image)
        return run
    if isinstance(task, RetrievalConfig):
        task = replace(task, queue_size=0, momentum=0.0, alpha=0.0, alpha_ramp_steps=0)
    rate = 7e-4 if scale != "small" else 2e-4
    return _small_run(recipe, scale, task, {"smoke": 4, "tiny": 2000, "small": 6000}, rate)


def _small_run(
    recipe: str, scale: str, task: TaskConfig, steps: dict[str, int], rate: float
) -> RunConfig:
    """Return a fine-tuning run for the built-in scenes, or for a user's few images."""
    check_scale(scale)
    optim = small_optim(rate, min(50, steps[scale]))
    return scales.small_run(recipe, scale, MODELS, task, steps[scale], optim)


def _paper_run(
    recipe: str,
    scale: str,
    task: TaskConfig,
    train: TrainConfig,
    optim: OptimConfig,
    crop_scale: tuple[float, float],
) -> RunConfig:
    """Return a run at the paper's sizes."""
    finetuned_px = {"mplug.pretrain": None, "mplug.vqa": 504}.get(recipe, 336)
    if scale == "base" and finetuned_px is not None:
        finetuned_px = 512 if finetuned_px == 504 else finetuned_px  # patches of 16 do not fit 504
    image = ImageTransformConfig(crop_scale=crop_scale)
    run = scales.paper_run(recipe, scale, MODELS, task, train, optim, image)
    model = replace(run.model, image_size=finetuned_px)
    return replace(run, model=model, lengths=TextLengths(question=80))
