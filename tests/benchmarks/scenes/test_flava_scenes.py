"""FLAVA on scenes: pairs of runs that differ in one thing, the probe, and all of it in small."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.scenes import flava_ceiling, flava_scenes, scene_runs
from triptych.core.outputs import MetricValue
from triptych.data.source import DataSourceConfig
from triptych.scenes.layout import SceneFiles
from triptych.workflows.frozen import read_labelled
from triptych.workflows.stagewise import StagewisePlan

PLAN = StagewisePlan(
    family="flava",
    scale="tiny",
    pairs=(DataSourceConfig(path="my.jsonl"),),
    texts=(DataSourceConfig(path="corpus.txt", reader="text"),),
)


@pytest.fixture
def run(tmp_path):
    return scene_runs.fresh_run(PLAN, tmp_path, 400)


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_short_joint_stage_starts_its_late_losses_at_the_same_share(run):
    # after 40 % of the steps, as in the recipe
    starts = {weight.name: weight.start_step for weight in run.weights}
    assert starts == dict.fromkeys(("gc", "mim", "mlm"), 0) | dict.fromkeys(
        ("itm", "mmm_image", "mmm_text"), 160
    )
    assert (run.optim.warmup_steps, run.model.init_from) == (40, None)


def test_the_mixture_is_compared_with_its_pairs(run, tmp_path):
    mixture, pairs = flava_scenes.joint_pair(run, tmp_path)
    assert [source.kind for source in mixture.data.train] == ["pair", "image", "text"]
    assert pairs.data.train == mixture.data.train[:1]
    assert replace(pairs, data=replace(pairs.data, train=mixture.data.train)) == mixture


def test_the_reach_of_the_contrastive_gradient_is_compared(run, tmp_path):
    whole, local = flava_scenes.contrastive_pair(run, tmp_path)
    assert (whole.task.contrastive, local.task.contrastive) == ("global", "local")
    assert replace(local, task=replace(local.task, contrastive="global")) == whole
    assert (local.train.num_processes, local.train.global_batch_size) == (2, 256)


@pytest.mark.parametrize("name", flava_scenes.COMPARISONS)
def test_fresh_weights_take_the_codes_of_the_stages(run, tmp_path, name):
    expected = str(tmp_path / "stagewise" / "image_tokenizer" / "model")
    for side in flava_scenes.COMPARISONS[name].pair(run, tmp_path):
        assert side.task.image_tokenizer == expected
        assert side.model.init_from is None


def test_images_of_the_probe_are_written_once(tmp_path):
    folder = tmp_path / "classes"
    sizes = {"train": 30, "val": 4, "test": 5, "compositional": 6}
    files = flava_scenes.write_classes(folder, sizes, 0)
    for split, size in sizes.items():
        images = read_labelled(
            DataSourceConfig(path=str(files.classes(split))), label_pattern=flava_scenes.SHAPE
        )
        assert len(images.labels) == size
        assert set(images.labels) <= {"circle", "square", "triangle", "star", "cross", "heart"}
    before = files.summary.stat().st_mtime_ns
    flava_scenes.write_classes(folder, sizes, 0)
    assert files.summary.stat().st_mtime_ns == before


def test_each_figure_of_the_probe_is_of_its_own_split(tmp_path, monkeypatch):
    shares = {"test": 0.25, "compositional": 0.75}

    def probe(model, train, val, test, *, label_pattern):
        assert (Path(train.path).name, Path(val.path).name) == ("train", "val")
        value = shares[Path(test.path).name]
        metric = MetricValue(
            name="accuracy", value=value, low=value, high=value, num_items=4, protocol="words"
        )
        return [metric], None

    monkeypatch.setattr(flava_scenes, "probe_folder", probe)
    found, words = flava_scenes.probe_shape(tmp_path / "model", SceneFiles(tmp_path))
    assert found == {"probe_shape": 0.25, "probe_shape_compositional": 0.75}
    assert words == "words"


def test_the_ceiling_is_drawn_on_unseen_pairs_in_the_end(monkeypatch):
    draw, splits = flava_ceiling.draw_images, []

    def drawn(split, count, size):
        splits.append(split)
        return draw(split, count, size)

    monkeypatch.setattr(flava_ceiling, "draw_images", drawn)
    flava_ceiling.learn(2, 4, 8, 8)
    assert splits == ["train", "test", "test", "compositional"]


@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
def test_every_part_in_small_and_again_without_training(tmp_path, monkeypatch, capsys):
    common = ["--out", str(tmp_path), "--scale", "smoke", "--num-threads", "1"]
    short = ["--seeds", "2", "--steps", "3", "--precision", "fp32"]

    def printed(part):
        flava_scenes.main([part, *common, *short])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    found = {part: printed(part) for part in ("joint", "joint_gain")}
    assert found["joint"].keys() == {
        "joint_minutes", "i2t_r1", "t2i_r1", "probe_shape", "probe_shape_compositional", "protocol"
    }  # fmt: skip
    for name in ("probe_shape", "probe_shape_compositional"):
        images = 20 * found["joint"][name]
        assert images == pytest.approx(round(images))
    assert "24 close-ups" in found["joint"]["protocol"]
    gain = found["joint_gain"]
    both = [*gain["with"], *gain["without"]]
    assert len(both) == 4
    assert all(24 * value == pytest.approx(round(24 * value)) for value in both)  # 12 each way
    assert gain["low"] <= gain["joint_gain"] <= gain["high"]

    def train(_, folder: Path, **__):
        raise AssertionError(f"{folder} is trained again")

    for name in ("train_run", "resume_run", "train_stagewise"):
        monkeypatch.setattr(scene_runs, name, train)
    assert printed("joint_gain") == gain


def test_labels_teach_shapes(capsys):
    flava_ceiling.main(
        ["--steps", "60", "--batch-size", "16", "--num-train", "64", "--num-test", "64"]
    )
    found = json.loads(capsys.readouterr().out)
    assert list(found["by_step"]) == ["10", "20", "30", "40", "50", "60"]
    assert found["shape_supervised"] == found["by_step"]["60"] > 1 / 6
    images = 64 * found["shape_supervised_compositional"]
    assert images == pytest.approx(round(images), abs=0.04)  # rounded to three places
