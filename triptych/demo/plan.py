"""How long each part of the demo takes: as its scale says, or as fits into a budget of minutes.

All stages of a shortened demo get the same share of their steps, and as many images as keep the
epochs of pre-training. What each stage costs is measured first (`demo/measure.py`). Steps are fixed
before a stage starts, so that its schedule is never cut off; what pre-training took in truth
decides on the steps of the fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MARGIN = 0.05
"""Share of a budget that is kept for what is not planned, such as checkpoints."""

EVALUATION_SHARE = 0.12
"""Of the time for the stages, the most that evaluation may take."""

MAX_EPOCHS = 60
"""Over own data, so that a small set is not learned by heart for the whole budget. On 600 scenes,
recall at 1 among 200 unseen ones was 0.5 after 10 epochs and 0.68 after 30; where it begins to fall
was not measured."""

MIN_TEST_IMAGES = 200
MIN_IMAGES = 500
MIN_SHARE = 0.01
"""Of the steps and images of a scale; a smaller budget is overdrawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSize:
    """How much of everything a demo takes: that of a scale, or a plan for a budget.

    Attributes:
        recipes: Scale of the recipes that the stages start from: model, batch and learning rates.
        num_images: Training images.
        num_test: Images of each test split.
        pretrain_steps: Pre-training steps.
        vqa_steps: Fine-tuning steps for questions.
        grounding_steps: Fine-tuning steps for phrases.
        rerank_top_k: Candidates that ITM re-ranks.
    """

    recipes: str
    num_images: int
    num_test: int
    pretrain_steps: int
    vqa_steps: int
    grounding_steps: int
    rerank_top_k: int = 16

    def steps(self, stage: str) -> int:
        """Return the steps of a stage: pretrain, vqa or grounding."""
        steps: int = getattr(self, f"{stage}_steps")
        return steps


SIZES = {
    "smoke": DemoSize(
        recipes="smoke",
        num_images=48,
        num_test=12,
        pretrain_steps=4,
        vqa_steps=2,
        grounding_steps=2,
        rerank_top_k=4,
    ),
    "tiny": DemoSize(
        recipes="tiny",
        num_images=24_000,
        num_test=500,
        pretrain_steps=1900,
        vqa_steps=1000,
        grounding_steps=800,
    ),
    "small": DemoSize(
        recipes="tiny",
        num_images=48_000,
        num_test=500,
        pretrain_steps=3800,
        vqa_steps=2000,
        grounding_steps=1600,
    ),
}
"""small is tiny with twice the images and the steps: what the same model learns then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What was measured on this machine, in seconds.

    Attributes:
        start_s: A process, until it trains.
        scene_s: A scene, until training reads it.
        pretrain_step_s: A pre-training step, the mean over the phases of the recipe.
        vqa_step_s: A fine-tuning step for questions, with the threads that it gets.
        grounding_step_s: A fine-tuning step for phrases, likewise.
        evaluation_image_s: All tasks on one image of a test split.
        at_once: Whether the fine-tunings run at the same time.
    """

    start_s: float
    scene_s: float
    pretrain_step_s: float
    vqa_step_s: float
    grounding_step_s: float
    evaluation_image_s: float
    at_once: bool

    def finetuning_s(self, vqa_steps: float, grounding_steps: float) -> float:
        """Return the seconds of both fine-tunings together."""
        each = vqa_steps * self.vqa_step_s, grounding_steps * self.grounding_step_s
        return max(each) if self.at_once else sum(each)


def plan_demo(full: DemoSize, speeds: Speeds, budget_s: float, spent_s: float) -> DemoSize:
    """Return what of a scale fits into a budget: all of it, or the same share of every stage.

    Args:
        full: The scale.
        speeds: Of this machine.
        budget_s: Seconds for everything.
        spent_s: Of them, those that are gone.
    """
    left_s = budget_s * (1 - MARGIN) - spent_s - 3 * speeds.start_s  # two to train, one to report
    test_s = 2 * (speeds.evaluation_image_s + speeds.scene_s)  # of an image of each split
    num_test = int(max(0.0, left_s) * EVALUATION_SHARE / test_s)
    num_test = min(max(num_test, MIN_TEST_IMAGES), full.num_test)
    left_s -= num_test * test_s
    whole_s = (
        full.num_images * speeds.scene_s
        + full.pretrain_steps * speeds.pretrain_step_s
        + speeds.finetuning_s(full.vqa_steps, full.grounding_steps)
    )
    share = max(MIN_SHARE, min(1.0, left_s / whole_s))
    plan = replace(
        full,
        num_images=max(_part(full.num_images, share), min(MIN_IMAGES, full.num_images)),
        num_test=num_test,
        pretrain_steps=_part(full.pretrain_steps, share),
    )
    finetuning_s = share * speeds.finetuning_s(full.vqa_steps, full.grounding_steps)
    return _with_finetuning(plan, full, speeds, finetuning_s, share)


def plan_finetuning(
    plan: DemoSize,
    full: DemoSize,
    speeds: Speeds,
    budget_s: float,
    spent_s: float,
    pretrain_s: float,
) -> DemoSize:
    """Return a plan with the fine-tuning steps that the time left allows.

    Args:
        plan: What `plan_demo` returned.
        full: The scale.
        speeds: What was measured at the beginning.
        budget_s: Seconds for everything.
        spent_s: Of them, those that are gone after pre-training.
        pretrain_s: Those that pre-training took; a step of fine-tuning, and evaluation, are
            expected to be slower or faster than measured by as much.
    """
    slower = pretrain_s / (plan.pretrain_steps * speeds.pretrain_step_s + speeds.start_s)
    slower = max(slower, 0.8)  # the time of a process that was killed is not known
    now = replace(
        speeds,
        vqa_step_s=speeds.vqa_step_s * slower,
        grounding_step_s=speeds.grounding_step_s * slower,
    )
    evaluation_s = 2 * plan.num_test * speeds.evaluation_image_s * slower
    left_s = budget_s * (1 - MARGIN) - spent_s - 2 * speeds.start_s * slower - evaluation_s
    least = max(MIN_SHARE, 0.2 * plan.pretrain_steps / full.pretrain_steps)
    return _with_finetuning(plan, full, now, left_s, least)


def plan_own(
    full: DemoSize,
    *,
    num_train: int,
    num_held_out: int,
    batch: int,
    speeds: Speeds | None,
    left_s: float | None,
) -> DemoSize:
    """Return how long to train on own data, which has no fine-tuning.

    Args:
        full: The scale.
        num_train: Records to train on.
        num_held_out: Records that the model is scored on.
        batch: Records of a step.
        speeds: Of this machine, for a budget.
        left_s: Seconds that are left of it; None without one.
    """
    steps = min(full.pretrain_steps, max(1, MAX_EPOCHS * num_train // batch))
    if left_s is not None and speeds is not None:
        left_s = left_s * (1 - MARGIN) - 2 * speeds.start_s
        left_s -= 2 * num_held_out * speeds.evaluation_image_s  # the second time, to validate
        steps = min(steps, max(1, int(left_s / speeds.pretrain_step_s)))
    return replace(
        full,
        num_images=num_train,
        num_test=num_held_out,
        pretrain_steps=steps,
        vqa_steps=0,
        grounding_steps=0,
    )


def _with_finetuning(
    plan: DemoSize, full: DemoSize, speeds: Speeds, left_s: float, least: float
) -> DemoSize:
    """Return a plan whose fine-tunings fill some seconds; at once, each fills them by itself.

    Args:
        plan: What has been planned.
        full: The scale, of whose steps no more are taken.
        speeds: Of the steps.
        left_s: Seconds to fill.
        least: Share of the steps of the scale that are taken in any case.
    """
    shares = []
    for stage, step_s in (("vqa", speeds.vqa_step_s), ("grounding", speeds.grounding_step_s)):
        whole_s = full.steps(stage) * step_s
        if not speeds.at_once:
            whole_s = speeds.finetuning_s(full.vqa_steps, full.grounding_steps)
        shares.append(max(least, min(1.0, left_s / whole_s)))
    return replace(
        plan,
        vqa_steps=_part(full.vqa_steps, shares[0]),
        grounding_steps=_part(full.grounding_steps, shares[1]),
    )


def _part(number: int, share: float) -> int:
    return max(1, int(number * share + 1e-6))
