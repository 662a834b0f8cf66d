"""What a run says before its first step, refuses, and leaves in its card."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data.source import DataSourceConfig
from triptych.tasks.finetuning.grounding import Grounding
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataSourceConfig(path=str(path))


def test_data_of_another_task_is_refused_before_training_is_announced(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = write(tmp_path / "m.jsonl", {"image": "a.png", "caption": "a star"})
    arguments = ["train", "mplug.vqa", "--scale", "smoke", "--data", data.path]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    message = f"{data.path}: no record has question and answers, which mplug.vqa needs"
    assert f"{message} (found: image, caption)" in shown.err


def test_clips_alone_are_refused_by_a_task_of_images(tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    data = write(tmp_path / "m.jsonl", {"video": "a.mp4", "caption": "a star"})
    with pytest.raises(DataError, match=r"m\.jsonl: every record is a clip, and this task"):
        train_run(small_run("vlmo.pretrain", data), tmp_path / "run")
    assert main(["data", "check", data.path]) == 1
    assert "truncated: 1" in capsys.readouterr().out


def test_clips_are_skipped_and_counted_by_a_task_of_images(tmp_path, scenes, capsys):
    (tmp_path / "a.mp4").touch()
    clip = write(tmp_path / "m.jsonl", {"video": "a.mp4", "caption": "a star"})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    both = write(
        tmp_path / "both.jsonl",
        {"video": "a.mp4", "caption": "a star"},
        {"image": "a.png", "caption": "a star"},
    )
    run = small_run("vlmo.pretrain", source_of(scenes, "mplug.pretrain"), both, max_steps=1)
    run = replace(run, data=replace(run.data, max_bad_share=0.5))
    train_run(run, tmp_path / "run")
    (line,) = [json.loads(x) for x in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert line["kind"] == "video" and line["where"].endswith("a.mp4")
    assert clip.path != both.path


def test_grounding_begins_with_smooth_coordinates(tmp_path, scenes, monkeypatch):
    calls = []
    monkeypatch.setattr(Grounding, "init_coordinates", lambda task: calls.append(task))
    run = small_run("mplug.grounding", source_of(scenes, "mplug.grounding"), max_steps=1)
    train_run(run, tmp_path / "smooth")
    assert run.task.smooth_coordinates and len(calls) == 1
    plain = replace(run, task=replace(run.task, smooth_coordinates=False))
    train_run(plain, tmp_path / "plain")
    assert len(calls) == 1


def test_fine_tuning_random_weights_is_said(tmp_path, scenes, pretrained, capsys):
    run = small_run("mplug.caption", source_of(scenes, "mplug.caption"), max_steps=1)
    train_run(run, tmp_path / "random")
    warning = "no pre-trained model is named: mplug_tiny starts from random weights"
    assert warning in " ".join(capsys.readouterr().out.split())
    started = replace(run, model=replace(run.model, init_from=str(pretrained / "model")))
    train_run(started, tmp_path / "started")
    assert "random weights" not in capsys.readouterr().out


def test_the_card_of_a_run_shows_its_last_losses(pretrained):
    card = (pretrained / "model" / "README.md").read_text(encoding="utf-8")
    lines = [json.loads(x) for x in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert f"| itc | {lines[-1]['loss/itc']:.4f} |" in card
    assert "--task caption --data TEST_DATA" in card or "--task retrieval --data" in card
