"""FLAVA from files to numbers: stored codes, GLUE and Hateful Memes as published, killed stages."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import triptych
from tests.train.toy import exact_lines
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.models.dvae.model import DVAE, spread_codes
from triptych.models.families import model_config
from triptych.recipes.registry import build_recipe
from triptych.scenes.language import objects_named
from triptych.scenes.write import write_scenes
from triptych.text import Tokenizer
from triptych.workflows import run as workflow
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run
from triptych.workflows.stagewise import (
    STAGES,
    plan_stages,
    resume_stagewise,
    scene_plan,
    train_stagewise,
)
from triptych.workflows.tokenize_images import tokenize_images
from triptych.workflows.trained_model import save_model

from .small_runs import small_run, source_of

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


def write_tokenizer(folder):
    """Write an image tokenizer of random weights that uses many codes."""
    torch.manual_seed(0)
    config = replace(model_config("flava_tiny").codebook, has_decoder=True)
    model = DVAE(config)
    spread_codes(
        model.encoder, 0.8 * torch.rand(64, 3, config.image_size, config.image_size) + 0.1, 4.0
    )
    run = build_recipe("dvae", "smoke")
    save_model(folder, run, model, Tokenizer.without_words(), 0)
    return folder


def test_stored_codes_train_the_joint_stage_as_computed_ones_do(tmp_path):
    files = write_scenes(tmp_path / "scenes", 16, formats=("captions",))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    online = source_of(files, "mplug.pretrain")
    tokenize_images(online, tokenizer, tmp_path / "coded")
    stored = DataSourceConfig(path=str(tmp_path / "coded"))
    kept = [[r.caption for r in read_records(source).records] for source in (online, stored)]
    assert kept[0] == kept[1]  # one order, so one draw of batches, masks and swaps
    for name, source in (("online", online), ("stored", stored)):
        sources = [replace(source, kind=kind, name=kind) for kind in ("pair", "image")]
        run = small_run("flava.joint", *sources, max_steps=6, global_batch_size=4,
                        log_every_steps=1)  # fmt: skip
        task = replace(run.task, image_tokenizer=str(tokenizer), stored_codes=name == "stored")
        train_run(replace(run, task=task, weights=()), tmp_path / name)  # all losses at once
    lines = exact_lines(tmp_path / "online")
    assert {"loss/mim", "loss/mmm_image"} <= set().union(*lines)
    assert exact_lines(tmp_path / "stored") == lines
    first, second = (
        load_file(tmp_path / n / "model/model.safetensors") for n in ("online", "stored")
    )
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def auroc(scores, right):
    """Return the share of (right, wrong) pairs in order, ties counted half, pair by pair."""
    wins = [
        1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
        for i, yes in enumerate(right)
        if yes
        for j, other in enumerate(right)
        if not other
    ]
    return float(np.mean(wins))


def sst2(path, count, start):
    """The word says the label."""
    said = [("awful", 0), ("great", 1), ("dull", 0), ("fine", 1)]
    lines = [
        f"the film number {start + i} is {said[i % 4][0]}\t{said[i % 4][1]}" for i in range(count)
    ]
    path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return DataSourceConfig(path=str(path))


def test_glue_from_its_files_to_its_numbers(tmp_path):
    run = small_run("flava.glue", sst2(tmp_path / "train.tsv", 32, 0), max_steps=25)
    run = replace(run, optim=replace(run.optim, warmup_steps=5))
    train_run(run, tmp_path / "run")
    test = sst2(tmp_path / "dev.tsv", 12, 50)
    found = {m.name: m for m in evaluate_model(tmp_path / "run" / "model", "classification", test)}
    engine = triptych.load(tmp_path / "run" / "model")
    records = read_records(test).records
    shares = [engine.label_texts(record.text)["1"] for record in records]
    right = [record.label == "1" for record in records]
    assert found["auroc"].num_items == 12
    assert found["auroc"].value == pytest.approx(auroc(shares, right))
    assert found["auroc"].value > 0.9


def memes(folder, count, start):
    """A meme is hateful where its words name another colour than the image has."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(start, start + count):
        names = list(COLORS)
        color, said = names[i % 3], names[(i + i // 3 % 2) % 3]
        Image.new("RGB", (64, 64), COLORS[color]).save(folder / "img" / f"{i:05}.png")
        meme = {
            "id": i,
            "img": f"img/{i:05}.png",
            "label": int(color != said),
            "text": f"it is {said}",
        }
        lines.append(json.dumps(meme))
    path = folder / f"{start}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return DataSourceConfig(path=str(path))


def test_hateful_memes_from_their_file_to_auroc(tmp_path):
    run = small_run("flava.hateful_memes", memes(tmp_path, 24, 0), max_steps=6)
    train_run(run, tmp_path / "run")
    test = memes(tmp_path, 12, 60)
    found = {m.name: m for m in evaluate_model(tmp_path / "run" / "model", "classification", test)}
    engine = triptych.load(tmp_path / "run" / "model")
    records = read_records(test).records
    shares = [engine.label(str(r.image), r.text)["1"] for r in records]
    assert found["auroc"].num_items == 12
    assert found["auroc"].value == pytest.approx(auroc(shares, [r.label == 1 for r in records]))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    return scene_plan(folder, "smoke", family="flava", num_threads=1)


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_stagewise(plan, folder)
    return folder


def test_the_scenes_have_close_ups_as_a_second_source_of_pairs(plan, tmp_path):
    runs = plan_stages(plan, tmp_path)
    joint = {s.name: (s.kind, s.ratio) for s in runs["joint"].data.train}
    assert joint == {
        "scenes": ("pair", 4.0),
        "close_ups": ("pair", 4.0),
        "image": ("image", 1.0),
        "text": ("text", 1.0),
    }
    scenes, close_ups = (
        [len(objects_named(r.caption or "")) for r in read_records(source).records]
        for source in plan.pairs
    )
    assert (len(scenes), len(close_ups)) == (48, 24)
    assert max(scenes) > 1 and set(close_ups) == {1}
    for stage in ("image_tokenizer", "image"):
        assert [s.path for s in runs[stage].data.train] == [plan.pairs[0].path]


@pytest.mark.parametrize("stopped", STAGES["flava"])
def test_a_stage_that_is_killed_goes_on_and_loses_nothing(
    plan, done, tmp_path, monkeypatch, stopped
):
    folder, train = tmp_path / "run", workflow.train_run

    def killed(config, run_folder, **options):
        if run_folder.name != stopped:
            return train(config, run_folder, **options)
        short = replace(config.train, checkpoint_every_steps=2, keep_checkpoints=3)
        train(replace(config, train=short), run_folder, **options)
        shutil.rmtree(run_folder / "model")  # as if killed after two steps
        for checkpoint in (run_folder / "checkpoints").iterdir():
            if checkpoint.name != "step_2":
                shutil.rmtree(checkpoint)
        assert (run_folder / "checkpoints" / "step_2").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train_run", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stagewise(plan, folder)
    monkeypatch.setattr(workflow, "train_run", train)
    resume_stagewise(folder)
    found, expected = (load_file(f / "joint" / "model/model.safetensors") for f in (folder, done))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
