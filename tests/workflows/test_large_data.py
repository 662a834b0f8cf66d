"""A run on records that lie on disk, in shards that are shuffled within windows."""

import json
from dataclasses import replace

import pytest
import torch

from tests.train.toy import exact_lines
from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.errors import ConfigError
from triptych.data.index import RecordIndex
from triptych.data.shards import ShardOptions, write_shards
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig
from triptych.tasks.finetuning.captioning import Captioning
from triptych.text import Tokenizer
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows import run as module
from triptych.workflows.run import resume_run, train_run
from triptych.workflows.sources import read_training_data

from .small_runs import small_run, source_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(scenes, tmp_path):
    source = source_of(scenes, "mplug.caption")
    write_shards(source, tmp_path / "shards", ShardOptions(samples_per_shard=8))
    return tmp_path / "shards"


def run_on(shards, **data):
    source = DataSourceConfig(path=str(shards), index="always")
    settings = {"max_steps": 6, "log_every_steps": 1, "checkpoint_every_steps": 3}
    config = small_run("mplug.caption", source, **settings)
    config = replace(config, model=replace(config.model, image_size=32))
    return replace(config, data=replace(config.data, shuffle_window=2, **data))


def test_an_interrupted_run_on_windows_goes_on_bitwise(shards, tmp_path, monkeypatch):
    train_run(run_on(shards), tmp_path / "whole")
    assert Tokenizer.load(tmp_path / "whole").has_words

    def interrupt(task, step):
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Captioning, "after_step", interrupt)
        with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
            train_run(run_on(shards, num_workers=2), tmp_path / "run")
    with monkeypatch.context() as patch:  # the texts are not gone through again
        patch.setattr(module, "RecordTexts", None)
        assert resume_run(tmp_path / "run").step == 6
    assert exact_lines(tmp_path / "run") == exact_lines(tmp_path / "whole")
    found = load_model_folder(tmp_path / "run/model").state_dict
    expected = load_model_folder(tmp_path / "whole/model").state_dict
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_windows_are_refused_where_nothing_is_in_shards(scenes, tmp_path):
    source = source_of(scenes, "mplug.caption")
    config = small_run("mplug.caption", source, max_steps=1)
    config = replace(config, data=replace(config.data, shuffle_window=2))
    with pytest.raises(ConfigError, match="no source is of tar shards"):
        train_run(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="shuffle_window"):
        replace(config.data, shuffle_window=0)


def test_clips_are_excluded_from_an_index_without_a_copy(scenes, tmp_path):
    image = str(next(scenes.split_images("train").iterdir()))
    lines = [{"image": image, "caption": f"image {i}"} for i in range(3)]
    lines.insert(1, {"video": image, "caption": "a clip"})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = DataSourceConfig(path=str(path), index="always")
    config = small_run("vlmo.retrieval", source, max_steps=1)
    config = replace(config, data=replace(config.data, max_bad_share=0.5))
    data = read_training_data(config, tmp_path / "run")
    assert [r.caption for r in data.records] == [f"image {i}" for i in range(3)]
    assert data.skip_log.counts == {SkipKind.VIDEO: 1} and data.skip_log.num_samples == 4
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[2:]))
    assert isinstance(read_training_data(config, tmp_path / "run").records, RecordIndex)
