"""A model folder from a checkpoint equals the one that the run writes at its end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.states import write_format_1
from triptych.checkpoint.run import list_checkpoints, load_checkpoint
from triptych.cli.main import main
from triptych.core.errors import CheckpointError, ConfigError
from triptych.workflows.exporting import export_model
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of, trained_model


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _assert_same(folder: Path, run: Path) -> None:
    ours, theirs = _content(folder), _content(run / "model")
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        assert content == theirs[name], name


def test_the_newest_checkpoint_gives_the_model_of_the_end(tmp_path, pretrained, capsys):
    before = _content(pretrained)
    assert main(["export-model", str(pretrained), "--out", str(tmp_path / "now")]) == 0
    step = list_checkpoints(pretrained / "checkpoints")[-1]
    assert f"model: {tmp_path / 'now'} (step {step})" in capsys.readouterr().out
    _assert_same(tmp_path / "now", pretrained)
    assert _content(pretrained) == before
    trained_model(tmp_path / "now")  # loads


@pytest.mark.parametrize("recipe", ["mplug.scst", "mplug.nlvr2", "dino"])
def test_heads_teachers_and_rewards(tmp_path, scenes, pretrained, recipe):
    """NLVR2 has a classifier; DINO saves its teacher; SCST's reward needs the data."""
    source = source_of(scenes, "mplug.pretrain" if recipe == "dino" else recipe)
    config = small_run(recipe, source, max_steps=2)
    if recipe.startswith("mplug"):
        start = replace(config.model, init_from=str(pretrained / "model"))
        without_table = replace(config.guard, images=0)  # only a run's end writes it on the card
        config = replace(config, model=start, guard=without_table)
    train_run(config, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "model")
    _assert_same(tmp_path / "model", tmp_path / "run")


def test_an_earlier_step_of_a_run_without_its_end(tmp_path, scenes):
    train = {"max_steps": 4, "checkpoint_every_steps": 1, "log_every_steps": 1}
    run = tmp_path / "run"
    config = small_run(
        "mplug.pretrain", source_of(scenes, "mplug.pretrain"), **train, keep_checkpoints=4
    )
    train_run(config, run)
    shutil.rmtree(run / "model")  # as while it trains
    assert export_model(run, tmp_path / "two", step=2) == 2
    weights = load_file(tmp_path / "two" / "model.safetensors")
    saved = load_checkpoint(run / "checkpoints" / "step_2")["modules"]
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in weights.items())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert f"| itc | {line['loss/itc']:.4f} |" in (tmp_path / "two" / "README.md").read_text()
    newest = run / "checkpoints" / "step_4" / "state.json"
    newest.write_text(newest.read_text() + " ")
    warnings: list[str] = []
    assert export_model(run, tmp_path / "three", warn=warnings.append) == 3
    assert "step_4" in warnings[0]
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9: .* 3, 4"):
        export_model(run, tmp_path / "nine", step=9)
    with pytest.raises(ConfigError, match="lies in the run folder"):
        export_model(run, run / "model")
    with pytest.raises(CheckpointError, match=r"holds no run: config\.yaml is missing"):
        export_model(tmp_path, tmp_path / "other")


def test_a_run_of_an_older_version_is_exported_by_its_data(tmp_path, pretrained):
    old = tmp_path / "old"
    shutil.copytree(pretrained, old)
    step = list_checkpoints(old / "checkpoints")[-1]
    state = load_checkpoint(old / "checkpoints" / f"step_{step}")
    shutil.rmtree(old / "checkpoints")
    write_format_1(old / "checkpoints" / f"step_{step}", {"modules": state["modules"]})
    (old / "start.json").unlink()
    (old / "tokenizer.json").unlink()
    export_model(old, tmp_path / "model")
    _assert_same(tmp_path / "model", pretrained)
