"""VLMo's stages in a row: each starts from the one before, and a stop anywhere loses nothing."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import CheckpointError, ConfigError, DataError, TriptychError
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.workflows import run as workflow
from triptych.workflows.stagewise import (
    STAGES,
    StagewisePlan,
    last_stage,
    plan_stages,
    resume_stagewise,
    scene_plan,
    train_stagewise,
)

NAMES = list(STAGES["vlmo"])


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return scene_plan(tmp_path_factory.mktemp("scenes") / "data", "smoke", num_threads=1)


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_stagewise(plan, folder)
    return folder


def weights(folder, stage):
    return load_file(folder / stage / "model" / "model.safetensors")


def test_every_stage_has_a_model_that_starts_from_the_one_before(done):
    vision, language, pretrain = (weights(done, stage) for stage in NAMES[1:])
    frozen = "trunk.blocks.0.attention.qkv.weight"
    assert torch.equal(language[frozen], vision[frozen])  # stage 2 leaves the attention as it is
    assert not torch.equal(pretrain[frozen], language[frozen])
    words = "text_embedding.word.weight"
    assert not torch.equal(language[words], vision[words])
    assert torch.equal(pretrain["mask_token"], vision["mask_token"])
    runs = {stage: load_yaml(RunConfig, done / stage / "config.yaml") for stage in NAMES[1:]}
    assert runs["vision"].task.image_tokenizer == str(done / "image_tokenizer" / "model")
    assert [runs[s].model.init_from for s in NAMES[2:]] == [
        str(done / stage / "model") for stage in NAMES[1:3]
    ]
    assert runs["language"].data.train[0].reader == "text"
    tokenizers = {(done / s / "model" / "tokenizer.json").read_text() for s in NAMES[1:]}
    assert len(tokenizers) == 1


@pytest.mark.parametrize("stopped", NAMES)
def test_a_stop_between_or_within_stages_loses_nothing(plan, done, tmp_path, monkeypatch, stopped):
    folder = tmp_path / "run"
    train = workflow.train_run

    def stop(config, run_folder, **options):
        if run_folder.name != stopped:
            return train(config, run_folder, **options)
        # the process is killed after two steps: there is a checkpoint and no model
        short = replace(config.train, checkpoint_every_steps=2)
        train(replace(config, train=short), run_folder, **options)
        for path in (run_folder / "model").iterdir():
            path.unlink()
        (run_folder / "model").rmdir()
        for path in sorted((run_folder / "checkpoints" / "step_4").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (run_folder / "checkpoints" / "step_4").rmdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train_run", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stagewise(plan, folder)
    monkeypatch.setattr(workflow, "train_run", train)
    resume_stagewise(folder)
    found, expected = weights(folder, "pretrain"), weights(done, "pretrain")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_given_image_tokenizer_is_not_trained(plan, tmp_path):
    runs = plan_stages(replace(plan, image_tokenizer="some/dvae"), tmp_path)
    assert list(runs) == NAMES[1:]
    assert runs["vision"].task.image_tokenizer == "some/dvae"


def test_the_image_tokenizer_sees_one_code_a_patch(plan, tmp_path):
    run = plan_stages(plan, tmp_path)["image_tokenizer"]
    assert run.model.image_size == 32  # 64 px in patches of 16, 8 px a code


def test_without_texts_the_captions_are_read(plan, tmp_path):
    runs = plan_stages(replace(plan, texts=()), tmp_path)
    assert runs["language"].data.train == plan.pairs


def test_what_cannot_be_is_refused(plan, done, tmp_path):
    with pytest.raises(ConfigError, match="--resume"):
        train_stagewise(plan, done)
    with pytest.raises(CheckpointError, match="no stages"):
        resume_stagewise(tmp_path)
    with pytest.raises(ConfigError, match="--data"):
        scene_plan(tmp_path, "base")
    with pytest.raises(ConfigError, match="seed = -1"):
        scene_plan(tmp_path / "data", "smoke", seed=-1)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match="pairs"):
        StagewisePlan(scale="smoke", pairs=())


def test_scenes_of_another_seed_or_scale_are_not_taken(tmp_path):
    plan = scene_plan(tmp_path / "data", "smoke", seed=1)
    assert scene_plan(tmp_path / "data", "smoke", seed=1) == plan
    with pytest.raises(ConfigError, match="48 scenes of seed 1, and this run needs 48 of seed 2"):
        scene_plan(tmp_path / "data", "smoke", seed=2)
    with pytest.raises(ConfigError, match="48 scenes of seed 1, and this run needs 24,000 of"):
        scene_plan(tmp_path / "data", "tiny", seed=1)


@pytest.mark.parametrize(
    ("field", "line", "message"),
    [
        ("pairs", {"image": "a.jpg", "question": "why?", "answers": ["so"]}, "image and a capt"),
        ("texts", {"image": "a.jpg"}, "given as texts: no record has a text"),
        ("images", {"text": "a word"}, "given as images: no record has an image"),
    ],
)
def test_what_a_later_stage_lacks_is_said_before_the_first(plan, tmp_path, field, line, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(line) + "\n")
    wrong = replace(plan, **{field: (DataSourceConfig(path=str(path)),)})
    with pytest.raises(DataError, match=message):
        train_stagewise(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_is_not_there_leaves_no_folder(plan, tmp_path):
    for field in ("image_tokenizer", "text_tokenizer"):
        with pytest.raises(TriptychError, match="nowhere"):
            train_stagewise(replace(plan, **{field: "nowhere"}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_plans_are_whole_before_the_first_stage(plan, done):
    for stage, config in plan_stages(plan, done).items():
        path = done / "stages" / f"{stage}.yaml"
        assert load_yaml(RunConfig, path) == config
        save_yaml(config, path)


def test_dino_stands_for_mim_and_the_joint_stage_takes_the_image_tokenizer(plan, tmp_path):
    chosen = replace(plan, family="flava", image_objective="dino")
    runs = plan_stages(chosen, tmp_path)
    assert [run.recipe for run in runs.values()] == ["dvae", "dino", "flava.text", "flava.joint"]
    usual = plan_stages(replace(plan, family="flava"), tmp_path)
    assert runs["image"].model == usual["image"].model
    assert runs["image"].data == usual["image"].data
    codes = str(tmp_path / "image_tokenizer" / "model")
    assert (usual["image"].task.image_tokenizer, usual["joint"].task.image_tokenizer) == (codes, "")
    assert runs["joint"].task.image_tokenizer == codes
    assert runs["text"].model.init_from == str(tmp_path / "image" / "model")
    given = plan_stages(replace(chosen, image_tokenizer="some/dvae"), tmp_path)
    assert list(given) == ["image", "text", "joint"]
    assert given["joint"].task.image_tokenizer == "some/dvae"
    large = plan_stages(replace(chosen, scale="large"), tmp_path)
    assert large["image"].model.name == build_recipe("flava.joint", "large").model.name


def test_vlmo_has_no_dino_stage(tmp_path):
    with pytest.raises(ConfigError, match="image_objective"):
        scene_plan(tmp_path / "data", "smoke", image_objective="dino")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_stages_with_dino_go_on_after_a_stop_and_end_with_the_tokenizers_codes(
    plan, tmp_path, monkeypatch
):
    train = workflow.train_run

    def stop(config, run_folder, **options):
        if run_folder.name == "text":
            raise KeyboardInterrupt
        return train(config, run_folder, **options)

    chosen = replace(plan, family="flava", image_objective="dino")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workflow, "train_run", stop)
        train_stagewise(chosen, tmp_path)
    assert (tmp_path / "image" / "model").is_dir()
    resume_stagewise(tmp_path)
    assert last_stage(tmp_path) == tmp_path / "joint"
    codes = weights(tmp_path, "image_tokenizer")
    joint, image = weights(tmp_path, "joint"), weights(tmp_path, "image")
    mine = {n.removeprefix("codebook."): t for n, t in joint.items() if n.startswith("codebook.")}
    assert mine
    assert all(torch.equal(tensor, codes[f"encoder.{name}"]) for name, tensor in mine.items())
    assert not all(torch.equal(image[f"codebook.{name}"], tensor) for name, tensor in mine.items())
