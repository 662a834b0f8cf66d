"""Whole runs that are validated: exact, of every family, with the best model beside the last."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.toy import exact_lines
from triptych.checkpoint.run import load_checkpoint
from triptych.cli.main import main
from triptych.core.errors import ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.models.families import VARIANTS
from triptych.train.metrics_log import read_metrics
from triptych.train.validation import ValidationConfig
from triptych.workflows import validation
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import resume_run, train_run

from .kills import full_run, same_tensors
from .small_runs import small_run, source_of


def validated(config, source=None, share=None, **settings):
    """Return a run with held-out data."""
    val = () if source is None else (source,)
    data = replace(config.data, val=val, val_share=share)
    return replace(config, data=data, validation=ValidationConfig(**settings))


def last_state(folder: Path, step: int):
    """Return the tensors of a checkpoint, by their paths."""
    state = load_checkpoint(folder / "checkpoints" / f"step_{step}")
    tensors = dict(state["modules"])
    for name, moments in state["optimizer"].items():
        tensors |= {f"{name}/{key}": v for key, v in moments.items() if torch.is_tensor(v)}
    return tensors


def training_lines(folder: Path):
    """Return the lines of training."""
    lines = [{k: v for k, v in x.items() if not k.startswith("val/")} for x in exact_lines(folder)]
    return [line for line in lines if len(line) > 1]


def val_lines(folder: Path):
    """Return the lines of validation."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [line for line in lines if any(key.startswith("val/") for key in line)]


def content(folder: Path):
    """Return the bytes of a folder's files."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Score in fp32, as these runs train: bf16 would let near ties fall either way."""
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


def test_pretraining_with_all_its_state_trains_bitwise_the_same(tmp_path, scenes, monkeypatch):
    """Queue, momentum copies, dropout, and hard negatives that are drawn."""
    monkeypatch.setattr(VARIANTS, "_entries", dict(VARIANTS._entries))  # forget the model after
    train = {"max_steps": 2, "checkpoint_every_steps": 2, "log_every_steps": 1}
    config, plain = full_run(scenes, **train), tmp_path / "plain"
    train_run(config, plain)
    assert not (plain / "best").exists()
    source = source_of(scenes, "mplug.pretrain", "val")
    for task, name, pick in (("losses", "loss/total", min), ("retrieval", "r_mean", max)):
        run = tmp_path / task
        result = train_run(validated(config, source, every_steps=1, task=task), run)
        assert same_tensors(last_state(run, 2), last_state(plain, 2))
        assert training_lines(run) == training_lines(plain)
        numbers = [line[f"val/{name}"] for line in val_lines(run)]
        assert len(numbers) == 2
        assert result.best_step == 1 + numbers.index(pick(numbers))


@pytest.mark.parametrize(
    ("recipe", "curve"),
    [("vlmo.retrieval", "val/i2t_r1"), ("dino", "val/loss/dino")],
)
def test_the_other_families_train_bitwise_the_same(tmp_path, scenes, recipe, curve):
    source = source_of(scenes, "mplug.pretrain")
    train = {"max_steps": 2, "log_every_steps": 1}
    config = small_run(recipe, source, **train)
    train_run(config, tmp_path / "plain")
    held_out = source_of(scenes, "mplug.pretrain", "val")
    train_run(validated(config, held_out, every_steps=1), tmp_path / "run")
    assert same_tensors(last_state(tmp_path / "run", 2), last_state(tmp_path / "plain", 2))
    assert training_lines(tmp_path / "run") == training_lines(tmp_path / "plain")
    assert curve in val_lines(tmp_path / "run")[0]


def test_the_scores_are_those_of_the_model_folder(tmp_path, scenes, pretrained):
    """A classifier, whose head is trained with the task; and the model card."""
    source, held_out = (source_of(scenes, "mplug.nlvr2", split) for split in ("train", "val"))
    config = small_run("mplug.nlvr2", source, max_steps=2)
    config = replace(config, model=replace(config.model, init_from=str(pretrained / "model")))
    train_run(validated(config, held_out, every_steps=1), tmp_path / "run")
    last = val_lines(tmp_path / "run")[-1]
    scores = {v.name: v for v in evaluate_model(tmp_path / "run" / "model", "nlvr2", held_out)}
    assert last["val/nlvr2"] == scores["nlvr2"].value
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    row = f"| nlvr2 | {scores['nlvr2'].value:.4f} | {scores['nlvr2'].low:.4f} to "
    assert row in card
    assert scores["nlvr2"].protocol in card
    assert "These are the weights of step 2" in card
    first = val_lines(tmp_path / "run")[0]
    best = {v.name: v for v in evaluate_model(tmp_path / "run" / "best", "nlvr2", held_out)}
    assert best["nlvr2"].value == max(first["val/nlvr2"], last["val/nlvr2"])


def test_a_share_of_the_images_is_held_out_and_said(tmp_path, scenes, capsys):
    config = small_run("mplug.vqa", source_of(scenes, "mplug.vqa"), max_steps=2, progress="plain")
    train_run(validated(config, share=0.25, every_steps=2), tmp_path / "run")
    out = " ".join(capsys.readouterr().out.split())
    start = json.loads((tmp_path / "run" / "start.json").read_text())
    assert f"of 32 images ({96 - start['num_records']} of 96 records), data.val_share 0.25" in out
    assert f"validation: vqa on {96 - start['num_records']} records of" in out
    assert "every 2 steps; the best model by vqa (higher is better) is kept" in out
    assert "a share of 0.25" in (tmp_path / "run" / "model" / "README.md").read_text()


def _numbers(monkeypatch, numbers):
    """Let validations after steps 1, 2, ... find these instead."""
    left = dict(enumerate(numbers, 1))
    evaluate = validation.evaluate_loaded
    steps = []

    def scored(loaded, task, source, **settings):
        found = evaluate(loaded, task, source, **settings)
        if settings["limit"] == validation.TRIAL_RECORDS:
            return found
        steps.append(len(steps) + 1)
        return [replace(found[0], value=left.pop(min(left)))]

    monkeypatch.setattr(validation, "evaluate_loaded", scored)


def test_a_killed_run_goes_on_to_the_same_best_model_and_stop(tmp_path, scenes, monkeypatch):
    """Killed within the validation of step 3, which would have been the best."""
    config = small_run(
        "mplug.retrieval",
        source_of(scenes, "mplug.retrieval"),
        max_steps=9,
        checkpoint_every_steps=2,
        keep_checkpoints=9,
        log_every_steps=1,
    )
    held_out = source_of(scenes, "mplug.retrieval", "val")
    config = validated(config, held_out, every_steps=1, patience=3)
    numbers = [0.1, 0.3, 0.5, 0.2, 0.2, 0.2]
    with monkeypatch.context() as patch:
        _numbers(patch, numbers)
        whole = train_run(config, tmp_path / "whole")
    assert (whole.step, whole.best_step, whole.stopped_early) == (6, 3, True)

    class KilledError(Exception):
        pass

    save = validation.save_model
    kept = []

    def save_and_die(folder, *content):
        kept.append(folder)
        save(folder, *content)
        if len(kept) == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        _numbers(patch, numbers)
        patch.setattr(validation, "save_model", save_and_die)
        with pytest.raises(KilledError):
            train_run(config, tmp_path / "run")
    (tmp_path / "run" / ".best.tmp1").mkdir()  # left by a write that was killed
    with monkeypatch.context() as patch:
        _numbers(patch, numbers[2:])
        again = resume_run(tmp_path / "run")
    assert (again.step, again.best_step, again.stopped_early) == (6, 3, True)
    for folder in ("best", "model"):
        assert content(tmp_path / "run" / folder) == content(tmp_path / "whole" / folder)
    assert exact_lines(tmp_path / "run") == exact_lines(tmp_path / "whole")
    assert not (tmp_path / "run" / ".best.tmp1").exists()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "step 6, after which training stopped early." in card
    assert "step 3 were the best (0.5000)" in card
    shutil.rmtree(tmp_path / "run" / "model")
    third = resume_run(tmp_path / "run")  # nothing is left to train or to score
    assert (third.step, third.stopped_early) == (6, True)
    assert content(tmp_path / "run" / "model") == content(tmp_path / "whole" / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes):
    """A run of four steps, each validated and stored."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    train = {"max_steps": 4, "checkpoint_every_steps": 1, "keep_checkpoints": 4}
    config = small_run("mplug.retrieval", source_of(scenes, "mplug.retrieval"), **train)
    held_out = source_of(scenes, "mplug.retrieval", "val")
    train_run(validated(config, held_out, every_steps=2), folder)
    return folder


def test_models_are_exported_from_any_checkpoint_and_the_best(tmp_path, finished, capsys):
    assert main(["export-model", str(finished), "--out", str(tmp_path / "last")]) == 0
    assert content(tmp_path / "last") == content(finished / "model")
    assert main(["export-model", str(finished), "--best", "--out", str(tmp_path / "best")]) == 0
    assert "the best by validation" in capsys.readouterr().out
    best = content(tmp_path / "best")
    assert best.keys() == content(finished / "best").keys()
    assert best["README.md"] == content(finished / "best")["README.md"]
    three = ["export-model", str(finished), "--step", "3", "--out", str(tmp_path / "three")]
    assert main(three) == 0
    assert "No held-out data was scored" in (tmp_path / "three" / "README.md").read_text()


def test_exports_that_cannot_be(tmp_path, finished, pretrained, capsys):
    both = ["export-model", str(finished), "--best", "--step", "2", "--out", str(tmp_path / "x")]
    assert main(both) == 2
    assert "--best and --step 2: name one" in capsys.readouterr().err
    assert main(["export-model", str(pretrained), "--best", "--out", str(tmp_path / "x")]) != 0
    assert "holds no best model" in capsys.readouterr().err


def test_what_cannot_be_validated_is_refused(tmp_path, scenes):
    source = source_of(scenes, "mplug.retrieval")
    held_out = source_of(scenes, "mplug.retrieval", "val")
    run = small_run("mplug.retrieval", source, max_steps=2)
    for config, error, words in (
        (validated(run, held_out, metric="i2t_r2"), ConfigError, r"i2t_r2.*i2t_r1, i2t_r5"),
        (validated(run, held_out, metric="i2t_r1_itm"), ConfigError, r"rerank_top_k"),
        (validated(run, held_out, task="vqa"), ConfigError, r"'vqa'.*scored on retrieval"),
        (
            validated(run, source_of(scenes, "mplug.vqa", "val")),
            DataError,
            r"nothing to evaluate retrieval on",
        ),
        (validated(run, share=1e-6), DataError, "holds out none"),
    ):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        with pytest.raises(error, match=words):
            train_run(config, folder)
        assert not list(folder.glob("checkpoints/step_*"))
    with pytest.raises(ConfigError, match=r"validation.patience = 3.*--data.val-share"):
        validated(run, patience=3)
    with pytest.raises(ConfigError, match=r"val_share"):
        validated(run, held_out, share=0.1)


def test_too_many_bad_images_end_a_validation(tmp_path, scenes):
    held_out = source_of(scenes, "mplug.retrieval", "val")
    run = small_run("mplug.retrieval", source_of(scenes, "mplug.retrieval"), max_steps=1)
    with pytest.raises(DataError, match="bad"):
        train_run(validated(run, replace(held_out, image_root=str(tmp_path))), tmp_path / "run")


def test_a_recipe_that_teaches_a_command_alone_is_validated_by_its_task(tmp_path):
    """GLUE's recipe names what it serves; its accuracy decides all the same."""
    for split, count in (("train", 12), ("val", 6)):
        lines = [{"text": f"text {i}", "label": ("yes", "no")[i % 2]} for i in range(count)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{split}.jsonl").write_text(text)
    sources = (
        DataSourceConfig(path=str(tmp_path / f"{split}.jsonl")) for split in ("train", "val")
    )
    config = small_run("flava.glue", next(sources), max_steps=1)
    train_run(validated(config, next(sources)), tmp_path / "run")
    assert "val/accuracy" in val_lines(tmp_path / "run")[0]
