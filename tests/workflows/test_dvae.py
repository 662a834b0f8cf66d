"""The image tokenizer: trained on images alone, stored, loaded; released weights read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.config import from_dict
from triptych.core.errors import CheckpointError, ConfigError
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.dvae.convert import export_encoder
from triptych.models.dvae.family import dvae_tiny
from triptych.models.dvae.model import DVAE, PIXEL_MEAN, PIXEL_STD
from triptych.recipes.registry import build_recipe
from triptych.serving.loading import load_model
from triptych.tasks.pretraining import image_tokenizer
from triptych.workflows.run import resume_run, train_run

from .small_runs import small_run, source_of

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "flava_codebook.safetensors"


def run_of(scenes, **train):
    return small_run("dvae", DataSourceConfig(path=str(scenes.split_images("train"))), **train)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("dvae") / "run"
    train_run(run_of(scenes), folder)
    return folder


def test_a_run_leaves_a_model_folder_without_words(trained):
    stored = load_model_folder(trained / "model")
    assert stored.config["model"]["kind"] == "dvae"
    assert stored.config["trained_for"] == ["image_tokenizer"]
    assert not stored.tokenizer_path.exists()
    preprocess = from_dict(ImageTransformConfig, stored.preprocess)
    assert preprocess.image_size == 32
    assert preprocess.mean == pytest.approx(PIXEL_MEAN)
    assert preprocess.std == pytest.approx(PIXEL_STD)
    assert "reconstruction_l1" in stored.card
    assert "image_tokenizer.load" in stored.card


def test_the_log_and_the_image_say_what_codes_keep(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    assert {"loss/reconstruction", "loss/balance", "loss/code_perplexity"} <= set(last)
    assert 1 <= last["eval/code_perplexity"] <= 256
    assert 0 < last["eval/codes_used"] <= 1
    model = image_tokenizer.load(trained / "model")
    shown = np.asarray(Image.open(trained / "reconstructions.png"))
    assert shown.shape == (64, 8 * 32, 3)
    top = torch.from_numpy(shown[:32].copy()).view(32, 8, 32, 3).permute(1, 3, 0, 2) / 255
    found = model.reconstruct(0.8 * top + 0.1).permute(0, 2, 3, 1) * 255
    below = torch.from_numpy(shown[32:].copy()).view(32, 8, 32, 3).permute(1, 0, 2, 3)
    assert (found - below).abs().mean() < 1  # rounding may change a code


def test_loaded_codes_are_those_of_the_trained_model(trained):
    model = image_tokenizer.load(trained / "model")
    assert isinstance(model, DVAE)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    weights = load_file(trained / "model" / "model.safetensors")
    fresh = DVAE(dvae_tiny())
    fresh.load_state_dict(weights)
    image = 0.8 * torch.rand(2, 3, 32, 32) + 0.1
    assert torch.equal(model.codes(image), fresh.codes(image))
    assert image_tokenizer.fingerprint(model.encoder) == image_tokenizer.fingerprint(fresh.encoder)
    with torch.no_grad():
        fresh.encoder.output.bias[3] += 1
    assert image_tokenizer.fingerprint(model.encoder) != image_tokenizer.fingerprint(fresh.encoder)
    larger = image_tokenizer.load(trained / "model", image_size=64)
    assert larger.config.grid_size == 8


def test_a_resumed_run_is_the_run(trained, scenes, tmp_path):
    config = run_of(scenes, checkpoint_every_steps=2, keep_checkpoints=2)
    train_run(config, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step_4*"):
        for file in path.glob("*"):
            file.unlink()
        path.rmdir()
    resume_run(tmp_path / "run")
    mine = load_file(tmp_path / "run" / "model" / "model.safetensors")
    theirs = load_file(trained / "model" / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_training_goes_on_from_a_model_folder(trained, scenes, tmp_path):
    config = run_of(scenes, max_steps=1)
    still = replace(
        config,
        model=replace(config.model, init_from=str(trained / "model")),
        task=replace(config.task, init_scale=0.0),
        optim=replace(
            config.optim,
            learning_rate=1e-9,
            vision_learning_rate=1e-9,
            min_learning_rate=0.0,
            warmup_learning_rate=0.0,
        ),
    )
    train_run(still, tmp_path / "run")
    before, after = (image_tokenizer.load(f / "model") for f in (trained, tmp_path / "run"))
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_released_weights_load_from_file_and_folder(tmp_path):
    tensors = load_file(GOLDEN)
    weights = {k.removeprefix("weights/"): t for k, t in tensors.items() if "/" in k}
    file = tmp_path / "codebook.safetensors"
    save_file(weights, file)
    folder = tmp_path / "flava"
    folder.mkdir()
    save_file({f"image_codebook.{k}": t for k, t in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "flava"}')
    for path in (file, folder):
        model = image_tokenizer.load(path, image_size=32)
        assert torch.equal(model.codes(tensors["image"]), tensors["codes"].flatten(1))
        assert model.config.image_size == 32
    exported = export_encoder(image_tokenizer.load(str(file)))
    assert all(torch.equal(exported[k], t) for k, t in weights.items())


def test_other_recipes_do_not_start_from_it(trained, scenes, tmp_path):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=1)
    config = replace(config, model=replace(config.model, init_from=str(trained / "model")))
    with pytest.raises(ConfigError, match="holds an image tokenizer, and mplug"):
        train_run(config, tmp_path / "run")


def test_what_is_no_image_tokenizer_is_an_error(tmp_path, pretrained, trained):
    with pytest.raises(ConfigError, match="image_tokenizer is empty"):
        image_tokenizer.load("")
    with pytest.raises(CheckpointError, match="holds no image tokenizer but a MPLUG"):
        image_tokenizer.load(pretrained / "model")
    with pytest.raises(CheckpointError, match="no model folder"):
        image_tokenizer.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds an image tokenizer, which answers no"):
        load_model(trained / "model")


def test_a_run_of_another_model_is_an_error(scenes, tmp_path):
    config = run_of(scenes)
    wrong = replace(config, model=replace(config.model, name="mplug_tiny"))
    with pytest.raises(ConfigError, match=r"trains dVAE models, and model.name = mplug_tiny"):
        train_run(wrong, tmp_path / "run")


@pytest.mark.parametrize("scale", ["smoke", "tiny", "small", "base", "large"])
def test_every_scale_anneals_within_its_steps(scale):
    config = build_recipe("dvae", scale)
    assert config.task.anneal_steps < config.train.max_steps
    assert config.image.randaugment_num_ops == 0


def test_the_papers_numbers():
    config = build_recipe("dvae", "base")
    kl = next(weight for weight in config.weights if weight.name == "kl")
    assert kl.weight * 192 == pytest.approx(6.6)  # Ramesh et al. 2021, appendix A.2
    assert kl.ramp_steps == 5000
    assert (config.task.end_temperature, config.task.anneal_steps) == (1 / 16, 150_000)
    assert (config.train.max_steps, config.train.global_batch_size) == (3_000_000, 512)
    assert config.optim.learning_rate == 1e-4
    assert config.task.init_scale == 0
