"""Runs on scenes: what a second call leaves alone."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.scenes import scene_runs
from triptych.core.config import save_yaml
from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.data.source import DataSourceConfig
from triptych.recipes.registry import build_recipe
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


@pytest.fixture
def run():
    recipe = build_recipe("vlmo.pretrain", "tiny")
    return replace(recipe, data=replace(recipe.data, train=PLAN.pairs))


def test_a_finished_run_is_left_alone_and_an_interrupted_one_goes_on(run, tmp_path, calls):
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
    longer = replace(run, train=replace(run.train, max_steps=1201))
    with pytest.raises(ConfigError, match="other settings"):
        scene_runs.train_once(longer, tmp_path / "finished", QUIET)
    assert len(calls) == 2


def test_stages_are_trained_and_timed_once(run, tmp_path, calls):
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
    save_yaml(run, folder / "stages" / "pretrain.yaml")
    scene_runs.train_stages(PLAN, tmp_path, QUIET)
    assert len(calls) == 2
    assert not (folder / "stages").exists()


def test_a_trained_model_without_a_time_is_not_removed(run, tmp_path, calls):
    folder = tmp_path / "stagewise"
    save_yaml(run, folder / "stages" / "pretrain.yaml")
    finish(folder / "pretrain")
    with pytest.raises(ConfigError, match="nobody timed"):
        scene_runs.train_stages(PLAN, tmp_path, QUIET)
    assert not calls
