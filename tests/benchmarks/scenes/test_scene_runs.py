"""Pairs of runs on scenes: their budgets, intervals, and what a second call leaves alone."""

import argparse
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.scenes import scene_runs, vlmo_scenes
from triptych.core.config import save_yaml
from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.data.source import DataSourceConfig
from triptych.workflows.stagewise import StagewisePlan

QUIET = Console(quiet=True)
PLAN = StagewisePlan(
    family="vlmo", scale="tiny", pairs=(DataSourceConfig(path="my.jsonl"),), seed=2, num_threads=2
)


@pytest.fixture
def calls(monkeypatch):
    """Names of runs that would have been trained or resumed."""
    found = []

    def note(word):
        return lambda *given, **_: found.append((word, given[-1].name))

    for word in ("train_run", "resume_run", "train_stagewise"):
        monkeypatch.setattr(scene_runs, word, note(word))
    return found


def finish(run_folder):
    write_json(run_folder / "model" / "config.json", {})


def test_the_interval_of_three_seeds():
    # a mean of three with deviation 1: 4.303 / sqrt(3)
    assert scene_runs.t_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))


def test_a_difference_is_of_pairs():
    # differences 0.1, 0.2 and 0.3: mean 0.2, deviation 0.1, 4.303 * 0.1 / sqrt(3) = 0.2484
    found = scene_runs.difference("gain", [(0.5, 0.4), (0.9, 0.7), (0.4, 0.1)])
    assert (found["gain"], found["low"], found["high"]) == (0.2, -0.0484, 0.4484)
    assert (found["with"], found["without"]) == ([0.5, 0.9, 0.4], [0.4, 0.7, 0.1])


def test_a_short_run_keeps_the_shares_of_the_recipe(tmp_path):
    run = scene_runs.fresh_run(PLAN, tmp_path, 480, "fp32")
    # of 2,400 steps MLM starts at 720 and ITM at 1,200; a fifth of that; 100 steps of warm-up
    starts = {weight.name: weight.start_step for weight in run.weights}
    assert starts == {"itc": 0, "mlm": 144, "itm": 240}
    assert (run.optim.warmup_steps, run.train.max_steps) == (48, 480)
    assert scene_runs.fresh_run(PLAN, tmp_path, 2400).optim.warmup_steps == 100
    assert (run.train.num_processes, run.train.global_batch_size) == (1, 64)
    assert (run.train.seed, run.data.seed, run.train.precision) == (2, 2, "fp32")
    assert run.model.init_from is None


def test_two_processes_share_batch_and_threads(tmp_path):
    run = scene_runs.fresh_run(PLAN, tmp_path, 480)
    train = scene_runs.in_two_processes(run).train
    assert (train.num_processes, train.global_batch_size, train.num_threads) == (2, 64, 1)


@pytest.mark.parametrize(
    ("pair", "field"),
    [
        (vlmo_scenes.stagewise_pair, "model"),
        (vlmo_scenes.multiway_pair, "model"),
        (vlmo_scenes.negatives_pair, "task"),
    ],
)
def test_vlmo_s_pairs_differ_in_one_field(tmp_path, pair, field):
    first, second = pair(scene_runs.fresh_run(PLAN, tmp_path, 480), tmp_path)
    assert first != second
    assert replace(first, **{field: getattr(second, field)}) == second


def test_a_finished_run_is_left_alone_and_an_interrupted_one_goes_on(tmp_path, calls):
    run = scene_runs.fresh_run(PLAN, tmp_path, 480)
    for name in ("new", "interrupted", "finished"):
        if name != "new":
            stored = replace(run, image=replace(run.image, image_size=32))
            save_yaml(stored, tmp_path / name / "config.yaml")
        if name == "finished":
            finish(tmp_path / name)
        assert scene_runs.train_once(run, tmp_path / name, QUIET) == tmp_path / name / "model"
    assert calls == [("train_run", "new"), ("resume_run", "interrupted")]
    fewer_threads = replace(run, train=replace(run.train, num_threads=1))
    scene_runs.train_once(fewer_threads, tmp_path / "finished", QUIET)
    longer = replace(run, train=replace(run.train, max_steps=481))
    with pytest.raises(ConfigError, match="other settings"):
        scene_runs.train_once(longer, tmp_path / "finished", QUIET)
    assert len(calls) == 2


def test_stages_are_trained_and_timed_once(tmp_path, calls):
    folder = tmp_path / "stagewise"
    minutes = scene_runs.train_stages(PLAN, tmp_path, QUIET)
    assert scene_runs.train_stages(PLAN, tmp_path, QUIET) == minutes
    assert calls == [("train_stagewise", "stagewise")]
    with pytest.raises(ConfigError, match="scale tiny"):
        scene_runs.train_stages(replace(PLAN, scale="smoke"), tmp_path, QUIET)
    clock = folder / "minutes.json"
    stored = json.loads(clock.read_text())
    more = replace(PLAN, pairs=(*PLAN.pairs, DataSourceConfig(path="close_ups.json")))
    with pytest.raises(ConfigError, match="other data"):
        scene_runs.train_stages(more, tmp_path, QUIET)
    clock.write_text(json.dumps(stored | {"steps": stored["steps"] | {"pretrain": 7}}))
    with pytest.raises(ConfigError, match=r"other numbers of steps.*'pretrain': 7"):
        scene_runs.train_stages(PLAN, tmp_path, QUIET)
    (folder / "minutes.json").unlink()
    save_yaml(scene_runs.fresh_run(PLAN, tmp_path, 480), folder / "stages" / "pretrain.yaml")
    scene_runs.train_stages(PLAN, tmp_path, QUIET)
    assert len(calls) == 2
    assert not (folder / "stages").exists()


def test_a_trained_model_without_a_time_is_not_removed(tmp_path, calls):
    folder = tmp_path / "stagewise"
    save_yaml(scene_runs.fresh_run(PLAN, tmp_path, 480), folder / "stages" / "pretrain.yaml")
    finish(folder / "pretrain")
    with pytest.raises(ConfigError, match="nobody timed"):
        scene_runs.train_stages(PLAN, tmp_path, QUIET)
    assert not calls


def test_a_comparison_needs_trained_stages(tmp_path):
    options = argparse.Namespace(out=tmp_path, seeds=2, steps=4, precision="fp32")
    with pytest.raises(ConfigError, match="run the part that trains them"):
        scene_runs.compare("gain", vlmo_scenes.COMPARISONS["multiway_gain"], PLAN, options)
