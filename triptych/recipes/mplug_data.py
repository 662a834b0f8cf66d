"""mPLUG's runs on the papers' own collections of data, which lie in folders under one root.

Each names its sources by their published files, relative to `data.root`; `triptych data list` says
what each dataset consists of, and where it is published. What is not there is said before anything
is read. Everything else is as in the recipe without a collection.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.data.source import DataSourceConfig
from triptych.recipes import mplug
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.train.config import OptimConfig

COCO = DataSourceConfig(path="coco/dataset_coco.json", split="train", name="coco", ratio=567)
VISUAL_GENOME = DataSourceConfig(
    path="visual_genome/region_descriptions.json", name="visual_genome", ratio=769
)
SBU = DataSourceConfig(path="sbu", name="sbu", ratio=860)
CC3M = DataSourceConfig(path="cc3m", name="cc3m", ratio=3_000)
CC12M = DataSourceConfig(path="cc12m", name="cc12m", ratio=10_000)
"""Thousands of texts (paper, table 12) are the ratios; CC3M, CC12M and SBU as img2dataset leaves
them."""

SET_4M = (COCO, VISUAL_GENOME, SBU, CC3M)
SET_14M = (*SET_4M, CC12M)

VQA_QUESTIONS = "vqav2/v2_OpenEnded_mscoco_{}2014_questions.json"
VQA_AND_VG = (
    *(DataSourceConfig(path=VQA_QUESTIONS.format(part), name=part) for part in ("train", "val")),
    DataSourceConfig(path="visual_genome/question_answers.json", name="visual_genome"),
)

REFERENCES = tuple(
    DataSourceConfig(path=f"{name}/refs({by}).p", split="train", name=name)
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
)


def pretrain_14m(scale: str) -> RunConfig:
    """Return mPLUG's pre-training on COCO, Visual Genome, SBU, CC3M and CC12M.

    Paper, section 5.1 and table 12. Each step draws one of the five sources, as often as the paper
    has texts of it: Visual Genome's file has 5.4 million regions, of which the paper takes 769,000.
    In the released code a batch mixes all sources.
    """
    return _on(SET_14M, "pretrain_14m", mplug.pretrain(scale))


def continue_4m(scale: str) -> RunConfig:
    """Return the further pre-training on 4 M pairs before VQA and captioning; name `--init-from`.

    Paper, appendix: on COCO, Visual Genome, SBU and CC3M, for 0.2 points of accuracy or more. How
    long and how fast it does not say; our assumption at base and large: 5 epochs of 4 M pairs at
    the batch of 1,024, 20,000 steps, at a tenth of the learning rates of pre-training, and alpha at
    its full value from the first step. Small scales: a quarter of the steps, a third of the rate.
    """
    run = mplug.pretrain(scale)
    if scale in PAPER_SCALES:
        steps, share = 20_000, 0.1
        assert isinstance(run.task, MPLUGPretrainingConfig)
        run = replace(run, task=replace(run.task, alpha_ramp_steps=0))
    else:
        steps, share = max(4, run.train.max_steps // 4), 1 / 3
        run = replace(run, weights=tuple(replace(w, start_step=0) for w in run.weights))
    optim = _slower(run.optim, share)
    optim = replace(optim, warmup_steps=min(optim.warmup_steps, steps))
    train = replace(run.train, max_steps=steps)
    return _on(SET_4M, "continue_4m", replace(run, train=train, optim=optim))


def vqa_vg(scale: str) -> RunConfig:
    """Return visual question answering on VQAv2's training and validation split and Visual Genome.

    Paper, appendix. Visual Genome's one answer a question weighs 0.5, as in the released code. Base
    and large: the 8 epochs of `mplug.vqa` over 658,111 and some 1.4 million questions.
    """
    run = mplug.vqa(scale)
    if scale in PAPER_SCALES:
        steps = 8 * (658_111 + 1_400_000) // run.train.global_batch_size
        run = replace(run, train=replace(run.train, max_steps=steps))
    return _on(VQA_AND_VG, "vqa_vg", run)


def grounding_mixed(scale: str) -> RunConfig:
    """Return grounding on RefCOCO, RefCOCO+ and RefCOCOg together, at a learning rate of 2e-5.

    Paper, appendix: the first of two stages. Base and large: the 120 epochs of `mplug.grounding`
    over 120,624, 120,191 and 80,512 training phrases. Its images lie in the folder `coco`.
    """
    run = mplug.grounding(scale)
    if scale in PAPER_SCALES:
        steps = 120 * (120_624 + 120_191 + 80_512) // run.train.global_batch_size
        run = replace(run, train=replace(run.train, max_steps=steps))
    return _on(REFERENCES, "grounding_mixed", run)


def grounding_second(scale: str) -> RunConfig:
    """Return grounding on one data set from a model of `grounding_mixed`: name both.

    Paper, appendix: the second stage, at a learning rate of 2e-6, here of all parts; how long it
    does not say. Base and large take the steps of `mplug.grounding`; small scales a tenth of its
    learning rate.
    """
    run = mplug.grounding(scale)
    optim = _slower(run.optim, 0.1)
    if scale in PAPER_SCALES:
        optim = replace(optim, vision_learning_rate=optim.learning_rate, min_learning_rate=1e-6)
    return replace(run, recipe="mplug.grounding_second", optim=optim)


def _slower(optim: OptimConfig, share: float) -> OptimConfig:
    """Return all learning rates times a share; the last ones exceed no peak."""
    rate, vision, muon = (
        None if value is None else float(f"{value * share:.6g}")
        for value in (optim.learning_rate, optim.vision_learning_rate, optim.muon_learning_rate)
    )
    assert rate is not None
    assert vision is not None
    lowest = min(rate, vision)
    return replace(
        optim,
        learning_rate=rate,
        vision_learning_rate=vision,
        muon_learning_rate=muon,
        min_learning_rate=min(optim.min_learning_rate, lowest),
        warmup_learning_rate=min(optim.warmup_learning_rate, lowest),
    )


def _on(sources: tuple[DataSourceConfig, ...], name: str, run: RunConfig) -> RunConfig:
    return replace(run, recipe=f"mplug.{name}", data=replace(run.data, train=sources))
