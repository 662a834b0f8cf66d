"""What fits into a budget, from given speeds."""

from dataclasses import replace

import pytest

from triptych.demo.plan import (
    MARGIN,
    MAX_EPOCHS,
    SIZES,
    Speeds,
    plan_demo,
    plan_finetuning,
    plan_own,
)
from triptych.recipes.changes import shortened
from triptych.recipes.registry import build_recipe
from triptych.workflows.step_costs import STEPS_OF_PHASE, mean_of_step

TINY = SIZES["tiny"]
QUICK = Speeds(  # about an idle machine with two cores and bf16
    start_s=4.0,
    scene_s=0.001,
    pretrain_step_s=0.32,
    vqa_step_s=0.21,
    grounding_step_s=0.2,
    evaluation_image_s=0.03,
    at_once=True,
)
SLOW = Speeds(  # without bf16
    start_s=6.0,
    scene_s=0.002,
    pretrain_step_s=1.0,
    vqa_step_s=0.7,
    grounding_step_s=0.65,
    evaluation_image_s=0.1,
    at_once=True,
)


def planned_s(plan, speeds, slower=1.0):
    """Seconds of all that a plan holds, starts of processes apart."""
    each = plan.vqa_steps * speeds.vqa_step_s, plan.grounding_steps * speeds.grounding_step_s
    return slower * (
        plan.num_images * speeds.scene_s
        + plan.pretrain_steps * speeds.pretrain_step_s
        + (max(each) if speeds.at_once else sum(each))
        + 2 * plan.num_test * (speeds.evaluation_image_s + speeds.scene_s)
    )


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("speeds", "minutes"), [(QUICK, 8), (SLOW, 10), (SLOW, 3)])
def test_a_plan_fills_its_budget_and_no_more(speeds, minutes, at_once):
    speeds = replace(speeds, at_once=at_once)
    plan = plan_demo(TINY, speeds, 60 * minutes, 25.0)
    room = 60 * minutes * (1 - MARGIN) - 25.0 - 3 * speeds.start_s
    assert room - 3 < planned_s(plan, speeds) <= room
    shares = [plan.steps(stage) / TINY.steps(stage) for stage in ("pretrain", "vqa")]
    assert shares[0] == pytest.approx(shares[1], abs=0.002)
    assert plan.num_images / TINY.num_images == pytest.approx(shares[0], abs=0.001)
    assert 200 <= plan.num_test <= 500


def test_at_once_each_finetuning_fills_the_time_of_both():
    plan = plan_demo(TINY, QUICK, 480, 25.0)
    times = plan.vqa_steps * QUICK.vqa_step_s, plan.grounding_steps * QUICK.grounding_step_s
    assert times[0] == pytest.approx(times[1], abs=0.3)


def test_a_large_budget_gives_the_whole_scale():
    assert plan_demo(TINY, QUICK, 7200, 25.0) == TINY


def test_a_budget_that_is_too_small_still_gives_a_plan():
    plan = plan_demo(TINY, SLOW, 20, 60.0)
    assert (plan.pretrain_steps, plan.vqa_steps, plan.grounding_steps) == (19, 10, 10)
    assert (plan.num_images, plan.num_test) == (500, 200)


@pytest.mark.parametrize("slower", [0.9, 1.0, 1.3])
def test_finetuning_makes_up_for_what_pretraining_took(slower):
    plan = plan_demo(TINY, QUICK, 480, 25.0)
    pretrain_s = slower * (plan.pretrain_steps * QUICK.pretrain_step_s + QUICK.start_s)
    spent_s = 25.0 + pretrain_s + plan.num_images * QUICK.scene_s
    again = plan_finetuning(plan, TINY, QUICK, 480, spent_s, pretrain_s)
    assert replace(again, vqa_steps=0, grounding_steps=0) == replace(
        plan, vqa_steps=0, grounding_steps=0
    )
    rest_s = slower * (
        again.vqa_steps * QUICK.vqa_step_s
        + 2 * QUICK.start_s
        + 2 * again.num_test * QUICK.evaluation_image_s
    )
    least = 0.2 * plan.vqa_steps
    most_s = 480 if again.vqa_steps > least + 1 else 1.04 * 480  # some fine-tuning there must be
    assert 480 * (1 - MARGIN) - 2 < spent_s + rest_s <= most_s


def test_finetuning_is_never_left_out():
    plan = plan_demo(TINY, QUICK, 480, 25.0)
    again = plan_finetuning(plan, TINY, QUICK, 480, 900.0, 850.0)
    assert again.vqa_steps == pytest.approx(0.2 * plan.vqa_steps, abs=1)
    assert again.grounding_steps > 0.15 * plan.grounding_steps


def test_own_data_is_not_gone_through_too_often():
    sizes = {"num_train": 40, "num_held_out": 10, "batch": 32}
    few = plan_own(TINY, **sizes, speeds=QUICK, left_s=400.0)
    assert few.pretrain_steps == MAX_EPOCHS * 40 // 32
    assert (few.num_images, few.num_test) == (40, 10)
    assert (few.vqa_steps, few.grounding_steps) == (0, 0)
    sizes = {"num_train": 90_000, "num_held_out": 500, "batch": 64}
    many = plan_own(TINY, **sizes, speeds=QUICK, left_s=400.0)
    rest_s = 400 * (1 - MARGIN) - 2 * QUICK.start_s - 2 * 500 * QUICK.evaluation_image_s
    assert many.pretrain_steps == int(rest_s / QUICK.pretrain_step_s)
    whole = plan_own(TINY, **sizes, speeds=None, left_s=None)
    assert whole.pretrain_steps == TINY.pretrain_steps


def test_schedules_keep_their_proportions():
    whole = build_recipe("mplug.pretrain", "tiny")
    half = shortened(whole, 950, 1900)
    assert (half.train.max_steps, half.optim.warmup_steps) == (950, 100)
    assert [w.start_step for w in half.weights] == [0, 0, 285, 570]
    assert shortened(whole, 1900, 1900) == whole
    twice = shortened(whole, 3800, 3800)
    assert (twice.optim.warmup_steps, twice.weights[3].start_step) == (200, 2280)


def test_a_step_is_timed_when_it_is_warm_and_by_the_phases_shares():
    steps_s = [9.0, 9.0, 1.0, 3.0, 9.0, 9.0, 4.0, 6.0]
    assert len(steps_s) == 2 * STEPS_OF_PHASE
    assert mean_of_step(steps_s, [0.25, 0.75]) == 0.25 * 2.0 + 0.75 * 5.0
