"""A demo with a budget: measured, planned, and continued with the same plan."""

import io
import json

import pytest
from rich.console import Console

from triptych.core.config import from_dict
from triptych.demo.page import summary_lines
from triptych.demo.plan import SIZES, DemoSize, Speeds
from triptych.demo.run import run_demo
from triptych.demo.state import DemoSettings, default_minutes, open_demo, resume_command

SETTINGS = DemoSettings(scale="smoke", minutes=1.0, num_threads=1)
SPEEDS = Speeds(
    start_s=1.0,
    scene_s=0.0,
    pretrain_step_s=14.0,
    vqa_step_s=1.0,
    grounding_step_s=1.0,
    evaluation_image_s=0.1,
    at_once=False,
)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_demo_keeps_its_plan(tmp_path, monkeypatch):
    quiet = Console(file=io.StringIO(), width=100)
    with monkeypatch.context() as patch:
        patch.setattr("triptych.demo.run.measure_scenes", lambda *_: SPEEDS)
        patch.setattr("triptych.demo.run.finish_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path, SETTINGS, console=quiet)
    stored = json.loads((tmp_path / "demo.json").read_text())
    plan = from_dict(DemoSize, stored["plan"])
    assert plan.pretrain_steps < SIZES["smoke"].pretrain_steps
    assert from_dict(Speeds, stored["speeds"]) == SPEEDS
    with monkeypatch.context() as patch:  # measured once: the plan does not change
        patch.setattr("triptych.demo.run.measure_scenes", interrupt)
        patch.setattr("triptych.demo.run.evaluate_scenes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path, SETTINGS, console=quiet)
    demo = open_demo(tmp_path, SETTINGS, quiet)
    assert demo.size.pretrain_steps == plan.pretrain_steps
    lines = (tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == plan.pretrain_steps
    for stage in ("vqa", "grounding"):
        lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == demo.size.steps(stage)
    command = f"triptych demo --scale smoke --minutes 1 --seed 0 --num-threads 1 --out {tmp_path}"
    assert resume_command(tmp_path) == command


def test_the_report_says_what_was_left_out_and_what_it_gives(tmp_path):
    settings = DemoSettings(minutes=8.0)
    demo = open_demo(tmp_path, settings, Console(file=io.StringIO()))
    demo.plan = DemoSize(
        recipes="tiny",
        num_images=10_000,
        num_test=500,
        pretrain_steps=800,
        vqa_steps=420,
        grounding_steps=400,
    )
    said = " ".join(summary_lines(demo, 7.9))
    assert "in 7.9 minutes" in said
    assert "a shortened run, planned for 8 minutes on this machine" in said
    assert "10,000 of 24,000 scenes; pre-training 800 of 1,900 steps" in said
    assert "`triptych demo --scale tiny` does all of it" in said
    assert "in 13.92 minutes on 2 cores" in said
    demo.plan = None
    assert "shortened" not in " ".join(summary_lines(demo, 14.0))


def test_the_real_steps_are_measured(tmp_path):
    from triptych.demo.scenes import measure_scenes

    speeds = measure_scenes(tmp_path, SETTINGS)
    assert min(speeds.pretrain_step_s, speeds.vqa_step_s, speeds.grounding_step_s) > 0
    assert min(speeds.scene_s, speeds.evaluation_image_s, speeds.start_s) > 0
    assert not speeds.at_once  # one thread
    assert list(tmp_path.iterdir()) == []


def test_the_budget_goes_by_the_processor(monkeypatch):
    for has_bf16, minutes in ((True, 8.0), (False, 10.0)):
        monkeypatch.setattr("triptych.demo.state.has_bf16", lambda _, has=has_bf16: has)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        assert default_minutes() == minutes
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default_minutes() is None


def test_a_demo_of_an_older_version_continues(tmp_path):
    settings = {"scale": "tiny", "seed": 1, "num_threads": None}
    (tmp_path / "demo.json").write_text(json.dumps({"settings": settings, "times_s": {}}))
    assert resume_command(tmp_path) == f"triptych demo --scale tiny --seed 1 --out {tmp_path}"
    assert open_demo(tmp_path, DemoSettings(seed=1), Console()).plan is None
