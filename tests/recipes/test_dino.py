"""Self-distillation of an image encoder from the command's side."""

import json
from dataclasses import replace

import pytest
import torch

from triptych.recipes.registry import build_recipe
from triptych.recipes.run import load_model, train_run

from .small_runs import small_run, source_of


@pytest.mark.parametrize("name", ["flava_tiny", "vlmo_tiny"])
def test_a_run_trains_the_image_side_alone(scenes, tmp_path, name):
    config = small_run("dino", source_of(scenes, "mplug.pretrain"), max_steps=2, log_every_steps=1)
    config = replace(config, model=replace(config.model, name=name))
    train_run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    uniform = torch.tensor(1024.0).log().item()  # what an undecided student gives
    assert all(1 < line["loss/dino"] < uniform + 1 for line in lines)
    assert all(0 < line["loss/teacher_entropy"] < uniform for line in lines)
    model = load_model(tmp_path / "run" / "model")
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).pooled.shape[0] == 1
    assert not any("dino" in key for key in model.state_dict())


def test_the_papers_numbers():
    config = build_recipe("dino", "base")
    assert (config.crops.num_large, config.crops.num_small, config.crops.small_size) == (2, 10, 96)
    assert (config.task.out_dim, config.task.bottleneck_dim) == (65_536, 256)
    assert (config.task.momentum, config.task.center_momentum) == (0.996, 0.9)
    assert config.optim.learning_rate == pytest.approx(7.5e-4)


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "base"])
def test_momentum_ends_with_the_run(scale):
    config = build_recipe("dino", scale)
    assert config.task.max_steps == config.train.max_steps
    assert config.task.teacher_warmup_steps < config.train.max_steps
