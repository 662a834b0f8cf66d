"""Self-distillation of an image encoder from the command's side."""

import json
import signal
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from triptych.checkpoint.run import load_latest
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import DataError
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.tasks.pretraining.dino import DINO
from triptych.text import Tokenizer
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows.prepared import training_loader
from triptych.workflows.run import prepare_run, resume_run, train_run

from .small_runs import small_run, source_of, trained_model


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
    model = trained_model(tmp_path / "run" / "model")
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).pooled.shape[0] == 1
    assert not any("dino" in key for key in model.state_dict())


def test_the_papers_numbers():
    config = build_recipe("dino", "base")
    assert (config.crops.num_large, config.crops.num_small, config.crops.small_size) == (2, 10, 96)
    assert (config.task.out_dim, config.task.bottleneck_dim) == (65_536, 256)
    assert (config.task.momentum, config.task.center_momentum) == (0.996, 0.9)
    assert config.optim.learning_rate == pytest.approx(3e-3)  # 7.5e-4 * 1024 / 256
    assert config.optim.vision_learning_rate == config.optim.learning_rate
    assert config.train.global_batch_size == 1024
    assert (config.train.max_grad_norm, config.train.clip_per_parameter) == (0.3, True)


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "base"])
def test_momentum_ends_with_the_run(scale):
    config = build_recipe("dino", scale)
    assert config.task.max_steps == config.train.max_steps
    assert config.task.teacher_warmup_steps < config.train.max_steps


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small"])
def test_small_scales_keep_what_the_paper_has_for_each_image(scale):
    config = build_recipe("dino", scale)
    assert config.optim.learning_rate == 7.5e-4 * config.train.global_batch_size / 256
    assert config.optim.vision_learning_rate == config.optim.learning_rate


def test_crops_agree_by_more_than_the_uniform_teacher_needs(scenes, tmp_path):
    # A student that predicts one crop's states from another's keeps the share by which they agree,
    # and its colder softmax amplifies that by the ratio of the temperatures. Below 1 in all,
    # a uniform teacher stays uniform, whatever the learning rate.
    config = small_run("dino", source_of(scenes, "mplug.pretrain"), global_batch_size=16)
    run = prepare_run(config, tmp_path, None)
    sources = run.data.batch_sources(run.task)
    batch = next(iter(training_loader(run.config, run.data, sources, run.collator_of, 0)))
    model, settings = run.model.eval(), run.config.task
    with torch.no_grad():
        states = torch.stack([model.encode_image(crop).pooled for crop in batch["large_crops"]])
    states = torch.nn.functional.normalize(states, dim=-1)
    differences = states - states.mean(dim=(0, 1))
    first, second = differences
    agreement = ((first * second).sum() / (first.norm() * second.norm())).item()
    assert agreement * settings.student_temperature / settings.teacher_temperature > 1


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_the_model_folder_holds_the_teacher_unless_the_student_is_wanted(scenes, tmp_path):
    source = source_of(scenes, "mplug.pretrain")
    config = small_run("dino", source, max_steps=2, global_batch_size=4)
    found = {}
    for save in ("teacher", "student"):
        train_run(replace(config, task=replace(config.task, save=save)), tmp_path / save)
        found[save] = weights(tmp_path / save)
    _, state = load_latest(tmp_path / "teacher" / "checkpoints", warn=print)
    modules = state["modules"]
    prefix = "visual_encoder."
    for name in (n for n in found["teacher"] if n.startswith(prefix)):
        assert torch.equal(found["teacher"][name], modules[f"teacher.module.model.{name}"]), name
        assert torch.equal(found["student"][name], modules[f"model.{name}"]), name
    differ = {n for n, t in found["teacher"].items() if not torch.equal(t, found["student"][n])}
    assert differ
    assert all(name.startswith(prefix) for name in differ)


def test_a_stopped_run_with_dropped_branches_goes_on_bitwise(scenes, tmp_path, monkeypatch):
    config = small_run(
        "dino",
        source_of(scenes, "mplug.pretrain"),
        max_steps=3,
        global_batch_size=4,
        micro_batch_size=2,
    )
    config = replace(config, model=replace(config.model, name="vlmo_tiny", drop_path=0.5))
    train_run(config, tmp_path / "whole")
    after_step = DINO.after_step

    def terminate(task, step):
        after_step(task, step)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DINO, "after_step", terminate)
        with pytest.raises(TrainingInterrupted):
            train_run(config, tmp_path / "run")
    resume_run(tmp_path / "run")
    found, expected = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("recipe", ["dino", "vlmo.vision", "flava.image"])
def test_a_folder_of_images_alone_needs_no_words(scenes, tmp_path, recipe):
    images = DataSourceConfig(path=str(scenes.split_images("train")))
    tokenizer = tmp_path / "dvae" / "model"
    said = StringIO()
    config = small_run(recipe, images, max_steps=1, global_batch_size=2)
    if recipe != "dino":
        size = 32  # 64 px in patches of 16, 8 px a code
        dvae = small_run("dvae", images, max_steps=1, global_batch_size=2)
        train_run(replace(dvae, model=replace(dvae.model, image_size=size)), tmp_path / "dvae")
        config = replace(config, task=replace(config.task, image_tokenizer=str(tokenizer)))
    train_run(config, tmp_path / "run", console=Console(file=said, width=400))
    assert "placeholder vocabulary" in said.getvalue()
    folder = tmp_path / "run" / "model"
    assert Tokenizer.load(folder).vocab_size == 5
    trained_model(folder)
    text = small_run(
        "vlmo.language" if "vlmo" in recipe else "flava.text",
        source_of(scenes, "mplug.pretrain"),
        max_steps=1,
    )
    start = replace(text, model=replace(text.model, init_from=str(folder)))
    with pytest.raises(DataError, match="has no vocabulary"):
        train_run(start, tmp_path / "text")
    with pytest.raises(DataError, match="no record has text or caption"):
        train_run(replace(text, data=config.data), tmp_path / "untold")


def test_a_config_with_the_old_name_of_clipping_loads(tmp_path):
    config = build_recipe("dino", "base")
    save_yaml(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert text.count("  clip_per_parameter: true\n") == 1
    (tmp_path / "config.yaml").write_text(text.replace("clip_per_parameter", "clip_per_parameter"))
    assert load_yaml(RunConfig, tmp_path / "config.yaml") == config
