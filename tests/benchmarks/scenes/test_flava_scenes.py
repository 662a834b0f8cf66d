"""FLAVA on scenes: the probe, the ceiling, and all stages in small."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scenes import flava_ceiling, flava_scenes
from triptych.core.outputs import MetricValue
from triptych.data.source import DataSourceConfig
from triptych.scenes.layout import SceneFiles
from triptych.workflows.frozen import read_labelled


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
def test_all_stages_in_small(tmp_path, capsys):
    flava_scenes.main(["joint", "--out", str(tmp_path), "--scale", "smoke", "--num-threads", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() == {
        "joint_minutes", "i2t_r1", "t2i_r1", "probe_shape", "probe_shape_compositional", "protocol"
    }  # fmt: skip
    for name in ("probe_shape", "probe_shape_compositional"):
        images = 20 * found[name]
        assert images == pytest.approx(round(images))
    assert "24 close-ups" in found["protocol"]


def test_labels_teach_shapes(capsys):
    flava_ceiling.main(
        ["--steps", "60", "--batch-size", "16", "--num-train", "64", "--num-test", "64"]
    )
    found = json.loads(capsys.readouterr().out)
    assert list(found["by_step"]) == ["10", "20", "30", "40", "50", "60"]
    assert found["shape_supervised"] == found["by_step"]["60"] > 1 / 6
    images = 64 * found["shape_supervised_compositional"]
    assert images == pytest.approx(round(images), abs=0.04)  # rounded to three places
