"""Models on the line between a pre-trained one and its fine-tuned one."""

import json
from dataclasses import replace

import pytest
import torch

from tests.serving.tiny_folder import write_tiny_folder
from triptych.cli.interpolate import curves
from triptych.cli.main import main
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.outputs import MetricValue
from triptych.serving.loading import ServingSettings, load_model
from triptych.workflows.interpolate import (
    HeldOut,
    Point,
    blend,
    choose,
    open_line,
    own_task,
    sweep,
)
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of


@pytest.fixture(scope="module")
def folders(pretrained, scenes, tmp_path_factory):
    """The pre-trained model and what mplug.vqa makes of it."""
    run = small_run("mplug.vqa", source_of(scenes, "mplug.vqa"), max_steps=2)
    run = replace(run, model=replace(run.model, init_from=str(pretrained / "model")))
    out = tmp_path_factory.mktemp("vqa") / "run"
    train_run(run, out)
    return pretrained / "model", out / "model"


@pytest.fixture(scope="module")
def held(scenes):
    """What is scored: questions, and captions as the guard."""
    own = HeldOut(task="vqa", source=source_of(scenes, "mplug.vqa", "test"), limit=4)
    guard = HeldOut(task="retrieval", source=source_of(scenes, "mplug.pretrain", "test"), limit=6)
    return own, guard


def value(score, higher=True):
    return MetricValue(
        name="m",
        value=score,
        low=score,
        high=score,
        num_items=1,
        protocol="",
        higher_is_better=higher,
    )


def flags(source):
    """Return the flags that name a source and say how it is read."""
    found = ["--data", source.path, "--reader", source.reader]
    for name in ("image_root", "annotations", "split"):
        if getattr(source, name) is not None:
            found += [f"--{name.replace('_', '-')}", getattr(source, name)]
    return found


def test_ends_of_the_sweep_are_the_two_models(folders, held, capsys):
    before, after = folders
    own, guard = held
    points = sweep(open_line(before, after), own, guard, alphas=(0.0, 0.5, 1.0))
    assert [point.alpha for point in points] == [0, 0.5, 1]
    for folder, task, data, point in (
        (after, "vqa", own, points[2].own),
        (before, "retrieval", guard, points[0].guard),
    ):
        asked = ["eval", str(folder), "--task", task, "--json", *flags(data.source)]
        assert main([*asked, "--limit", str(data.limit), "--rerank-top-k", "0"]) == 0
        first = json.loads(capsys.readouterr().out)["scores"][0]["metrics"][0]
        assert (first["name"], first["value"]) == (point.name, point.value)


def test_the_written_folder_holds_the_weights_between(folders, held, tmp_path, capsys):
    before, after = map(str, folders)
    asked = ["interpolate", before, after, "--task", "vqa", *flags(held[0].source), "--limit", "2"]
    out = tmp_path / "mixed"
    assert main([*asked, "--alphas", "0.25", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == 0.25
    mixed, first, last = (load_model(folder).model.state_dict() for folder in (out, before, after))
    for name, found in mixed.items():
        if found.is_floating_point():
            wanted = 0.75 * first.get(name, last[name]) + 0.25 * last[name]
            assert torch.allclose(found, wanted, atol=1e-6), name
    assert "alpha 0.25" in (out / "README.md").read_text()
    assert load_model(out).settings.trained_for == load_model(after).settings.trained_for


def test_the_guard_decides_among_what_the_own_task_allows():
    own = (0.1, 0.795, 0.8)
    guard = (0.9, 0.6, 0.2)
    points = [Point(a, value(o), value(g)) for a, o, g in zip((0.0, 0.5, 1.0), own, guard)]
    assert choose(points, 0.01).alpha == 0.5
    assert choose(points, 0.001).alpha == 1.0
    assert choose(points, 1.0).alpha == 0.0
    alone = [Point(a, value(o)) for a, o in zip((0.0, 0.5, 1.0), (0.3, 0.9, 0.9))]
    assert choose(alone, 0).alpha == 1.0
    losses = [Point(a, value(o, higher=False)) for a, o in zip((0.0, 0.5, 1.0), (3.0, 1.0, 2.0))]
    assert choose(losses, 0).alpha == 0.5


def test_the_fine_tuned_model_names_its_task_and_curves_are_drawn(folders, held, capsys):
    before, after = map(str, folders)
    guard = held[1].source
    asked = ["interpolate", before, after, *flags(held[0].source), "--limit", "3"]
    asked += ["--guard", guard.path, "--guard.reader", guard.reader, "--guard.split", "test"]
    asked += ["--guard.image-root", guard.image_root, "--alphas", "0", "0.5", "1"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "o vqa from" in out and "+ i2t_r1 from" in out and "alpha" in out
    with pytest.raises(ConfigError, match="name it with --task"):
        own_task(replace(load_model(before), settings=ServingSettings(("x",))))


def test_curves_go_from_their_lowest_to_their_highest_value():
    points = [Point(a, value(o), value(1 - o)) for a, o in ((1.0, 0.9), (0.0, 0.1), (0.5, 0.5))]
    lines = curves(points, points[2])
    assert lines[0].index("+") < lines[0].index("o")  # the guard falls, the own score rises
    assert lines[8].index("o") < lines[8].index("+")
    assert "*" in lines[4] and lines[10].index("^") == lines[9].index("0.5") + 1
    flat = curves([Point(0.0, value(0.3)), Point(1.0, value(0.3))], Point(0.0, value(0.3)))
    assert flat[0].count("o") == 2


def test_weights_of_one_model_alone_are_kept():
    starts = {"a": torch.zeros(2), "n": torch.tensor(3), "old": torch.ones(1)}
    ends = {"a": torch.ones(2), "n": torch.tensor(5), "new": torch.ones(1)}
    mixed = blend(starts, ends, 0.25)
    assert mixed.keys() == {"a", "n"}
    assert mixed["a"].tolist() == [0.25, 0.25] and mixed["n"] == 5


def test_models_that_do_not_fit_and_wrong_settings_are_refused(folders, held, tmp_path):
    before, after = folders
    other = write_tiny_folder(tmp_path / "other", "vqa")
    with pytest.raises(CheckpointError, match="different shapes"):
        open_line(before, other)
    with pytest.raises(ConfigError, match="the same model"):
        open_line(after, after)
    with pytest.raises(ConfigError, match="alphas"):
        sweep(open_line(before, after), held[0], alphas=(1.5,))
    with pytest.raises(ConfigError, match="gives"):
        sweep(open_line(before, after), replace(held[0], metric="nonsense"), alphas=(0.0,))
