"""FLAVA's recipes: numbers with their sources, each stage, resuming of the mixture, evaluation."""

import json
from dataclasses import replace

import pytest
import torch

from tests.train.toy import exact_lines
from triptych.core.errors import ConfigError
from triptych.data.source import DataSourceConfig
from triptych.models.families import model_config
from triptych.recipes.config import ModelSource
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.recipes.scales import SCALES
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining import image_tokenizer
from triptych.train.validation import ValidationConfig
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import resume_run, train_run
from triptych.workflows.stagewise import (
    JOINT_RATIOS,
    StagewisePlan,
    is_stagewise,
    last_stage,
    plan_stages,
)

from .published import differing
from .small_runs import small_run, source_of, trained_model

# Recipe, field, base, large, source: "seed" is a published summary of the paper, "tmm" is
# torchmultimodal's flava example, "beit" is the folder beit of microsoft/unilm.
NUMBERS = [
    ("image", "train.global_batch_size", 2048, 2048, "beit"),
    ("image", "optim.learning_rate", 1.5e-3, 1.5e-3, "beit"),
    ("image", "train.max_grad_norm", 3.0, 3.0, "beit"),
    ("text", "task.max_text_tokens", 512, 512, "tmm: unimodal text"),
    ("joint", "train.global_batch_size", 8192, 8192, "seed"),
    ("joint", "train.micro_batch_size", None, None, "seed: GC's negatives are the batch's"),
    ("joint", "task.chunk_size", 128, 128, "our own: memory, no number changes"),
    ("joint", "optim.learning_rate", 1e-3, 1e-3, "seed"),
    ("joint", "optim.warmup_steps", 10_000, 10_000, "seed"),
    ("joint", "optim.weight_decay", 0.1, 0.1, "seed"),
    ("joint", "optim.betas", (0.9, 0.999), (0.9, 0.999), "tmm"),
    ("joint", "train.max_steps", 100_000, 100_000, "tmm: max_steps of its config"),
    ("joint", "task.swap_probability", 0.1, 0.1, "tmm: itm_probability"),
    ("joint", "task.max_logit_scale", 4.6052, 4.6052, "tmm, transformers"),
    ("joint", "task.contrastive", "global", "global", "seed"),
    ("joint", "captions.max_text_tokens", 77, 77, "tmm"),
    ("joint", "captions.mlm_probability", 0.15, 0.15, "seed"),
    ("joint", "captions.whole_word", True, True, "tmm: captions"),
    ("joint", "image.crop_scale", (0.9, 1.0), (0.9, 1.0), "tmm"),
    ("joint", "image.flip_probability", 0.0, 0.0, "tmm"),
    ("joint", "weights", (), (), "tmm: six losses of weight 1"),
    ("glue", "train.max_steps", 33_112, 33_112, "tmm: qnli"),
    ("glue", "train.global_batch_size", 32, 32, "tmm: qnli"),
    ("glue", "optim.learning_rate", 1e-5, 1e-5, "tmm: qnli"),
    ("glue", "optim.warmup_steps", 1_986, 1_986, "tmm: qnli"),
    ("glue", "optim.weight_decay", 0.1, 0.1, "tmm: qnli"),
    ("glue", "optim.betas", (0.9, 0.98), (0.9, 0.98), "tmm: qnli"),
    ("glue", "optim.eps", 1e-6, 1e-6, "tmm: qnli"),
    ("glue", "task.head.activation", "relu", "relu", "tmm: MLP 768-768-C"),
    ("glue", "task.head.dropout", 0.5, 0.5, "tmm: MLP 768-768-C"),
]
NAMES = (
    "image", "text", "joint", "retrieval", "vqa", "nlvr2", "snli_ve", "hateful_memes", "glue",
)  # fmt: skip


def test_base_and_large_have_the_published_numbers():
    assert differing((f"flava.{name}", *row) for name, *row in NUMBERS) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_names_a_model_that_fits_its_lengths(name):
    assert f"flava.{name}" in RECIPES
    for scale in SCALES:
        run = build_recipe(f"flava.{name}", scale)
        model = model_config(run.model.name, image_size=run.model.image_size)
        longest = max(run.captions.max_text_tokens, getattr(run.task, "max_text_tokens", 0))
        assert model.text.max_positions >= longest
        assert (run.recipe, run.scale) == (f"flava.{name}", scale)
    with pytest.raises(ConfigError, match="huge"):
        build_recipe(f"flava.{name}", "huge")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    formats = ("captions", "vqa", "text")
    write_scenes(folder, 24, num_val=2, num_test=8, num_compositional=2, formats=formats)
    return SceneFiles(folder)


def _mixture(files):
    pairs = source_of(files, "mplug.pretrain")
    texts = DataSourceConfig(path=str(files.corpus), reader="text")
    return (
        replace(pairs, kind="pair", ratio=2.0, name="pairs"),
        replace(pairs, kind="image", ratio=1.0, name="images"),
        replace(texts, kind="text", ratio=1.0, name="texts"),
    )


@pytest.fixture(scope="module")
def joint(files, tmp_path_factory):
    """A run of the joint stage, ten steps of four samples."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    run = small_run("flava.joint", *_mixture(files), max_steps=10, global_batch_size=4,
                    log_every_steps=1)  # fmt: skip
    train_run(run, folder)
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_of_one_source_and_of_its_losses(joint):
    of_kind = {
        "pairs": {"gc", "itm", "mmm_image", "mmm_text"},
        "images": {"mim"},
        "texts": {"mlm"},
    }
    lines = _lines(joint)
    drawn = []
    for line in lines:
        losses = {name.removeprefix("loss/") for name in line if name.startswith("loss/")}
        (source,) = {name.split("/")[1] for name in line if name.startswith("source/")
                     and not name.endswith("/steps")}  # fmt: skip
        assert losses - {"total"} <= of_kind[source]
        drawn.append(source)
    assert set(drawn) == set(of_kind)
    counts = {name: lines[-1][f"source/{name}/steps"] for name in of_kind}
    assert counts == {name: drawn.count(name) for name in of_kind}


def test_an_interrupted_mixture_goes_on_bitwise(files, joint, tmp_path):
    run = small_run("flava.joint", *_mixture(files), max_steps=10, global_batch_size=4,
                    log_every_steps=1, checkpoint_every_steps=4)  # fmt: skip
    folder = tmp_path / "run"
    train_run(run, folder)
    shortened = sorted((folder / "checkpoints").iterdir(), key=lambda p: int(p.name[5:]))
    for path in shortened[1:]:  # as if it had stopped after its first checkpoint that is kept
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    resume_run(folder)
    assert exact_lines(folder) == exact_lines(joint)
    mine, theirs = trained_model(folder / "model"), trained_model(joint / "model")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name


def test_a_validated_mixture_trains_bitwise_the_same(files, joint, tmp_path):
    """By the losses of each kind of batch, on images and texts that are held out."""
    run = small_run("flava.joint", *_mixture(files), max_steps=10, global_batch_size=4,
                    log_every_steps=1)  # fmt: skip
    apart = source_of(files, "mplug.pretrain", "test")
    corpus = DataSourceConfig(path=str(files.corpus), reader="text", kind="text", name="texts")
    held_out = (replace(apart, kind="pair"), replace(apart, kind="image", name="images"), corpus)
    run = replace(run, data=replace(run.data, val=held_out))
    run = replace(run, validation=ValidationConfig(task="losses", every_steps=5))
    train_run(run, tmp_path / "run")
    mine, theirs = trained_model(tmp_path / "run" / "model"), trained_model(joint / "model")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name
    line = next(line for line in _lines(tmp_path / "run") if "val/loss/total" in line)
    names = {"gc", "itm", "mmm_image", "mmm_text", "mim", "mlm", "total"}
    assert line.keys() == {"step", *(f"val/loss/{name}" for name in names)}


def test_image_then_text_then_answers(files, tmp_path):
    pairs = source_of(files, "mplug.pretrain")
    train_run(small_run("flava.image", pairs, max_steps=2), tmp_path / "image")
    first = trained_model(tmp_path / "image" / "model")
    settings = json.loads((tmp_path / "image" / "model" / "config.json").read_text())
    assert settings["trained_for"] == ["vision"]

    corpus = DataSourceConfig(path=str(files.corpus), reader="text")
    run = small_run("flava.text", corpus, max_steps=2)
    start = ModelSource(init_from=str(tmp_path / "image" / "model"))
    train_run(replace(run, model=start), tmp_path / "text")
    second = trained_model(tmp_path / "text" / "model")
    same, other = [], []
    for name, tensor in second.state_dict().items():
        moved = not torch.equal(first.state_dict()[name], tensor)
        (other if moved else same).append(name.split(".")[0])
    assert set(other) == {"text_encoder", "mlm_head"}  # and nothing that no loss reads
    assert {"visual_encoder", "mim_head", "fusion", "codebook"} <= set(same)

    start = ModelSource(init_from=str(tmp_path / "text" / "model"))
    run = small_run("flava.vqa", source_of(files, "mplug.vqa"), max_steps=2)
    train_run(replace(run, model=start), tmp_path / "vqa")
    found = evaluate_model(tmp_path / "vqa" / "model", "vqa", source_of(files, "mplug.vqa", "test"))
    assert found[0].num_items > 0


def test_a_joint_model_is_scored_by_both_ways_of_retrieval(files, joint):
    source = source_of(files, "mplug.pretrain", "test")
    found = {m.name: m.value for m in evaluate_model(joint / "model", "retrieval", source)}
    assert {"i2t_r1", "t2i_r1", "i2t_r1_itm", "t2i_r1_itm"} <= set(found)
    assert found["i2t_r10"] <= 1.0


def test_codes_of_a_trained_tokenizer_become_the_models_own(files, tmp_path):
    pairs = source_of(files, "mplug.pretrain")
    dvae = small_run("dvae", pairs, max_steps=2)
    train_run(replace(dvae, model=replace(dvae.model, image_size=32)), tmp_path / "dvae")
    run = small_run("flava.image", pairs, max_steps=1)
    task = replace(run.task, image_tokenizer=str(tmp_path / "dvae" / "model"))
    train_run(replace(run, task=task), tmp_path / "image")
    tokenizer = image_tokenizer.load(tmp_path / "dvae" / "model").encoder.state_dict()
    codebook = trained_model(tmp_path / "image" / "model").codebook.state_dict()
    assert all(torch.equal(codebook[name], tensor) for name, tensor in tokenizer.items())
    large = replace(run, task=task, model=ModelSource(name="flava_small"))
    with pytest.raises(ConfigError, match="image tokenizer's num_codes = 256: must be the model"):
        train_run(large, tmp_path / "other")


def test_stages_follow_each_other(tmp_path):
    source = DataSourceConfig(path="my.jsonl")
    texts = DataSourceConfig(path="corpus.txt", reader="text")
    plan = StagewisePlan(family="flava", scale="smoke", pairs=(source,), texts=(texts,))
    runs = plan_stages(plan, tmp_path)
    assert list(runs) == ["image_tokenizer", "image", "text", "joint"]
    assert [run.recipe for run in runs.values()] == ["dvae", "flava.image", "flava.text",
                                                     "flava.joint"]  # fmt: skip
    assert runs["image_tokenizer"].model.image_size == 32
    assert runs["image"].task.image_tokenizer == str(tmp_path / "image_tokenizer" / "model")
    assert runs["joint"].model.init_from == str(tmp_path / "text" / "model")
    kinds = [(s.path, s.kind, s.ratio, s.name) for s in runs["joint"].data.train]
    assert kinds == [
        ("my.jsonl", "pair", JOINT_RATIOS["pair"], "pair"),
        ("my.jsonl", "image", JOINT_RATIOS["image"], "image"),
        ("corpus.txt", "text", JOINT_RATIOS["text"], "text"),
    ]
    assert runs["text"].data.train == (texts,)
    assert not is_stagewise(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "joint.yaml").write_text("")
    assert is_stagewise(tmp_path)
    assert last_stage(tmp_path) == tmp_path / "joint"
    with pytest.raises(ConfigError, match="family"):
        StagewisePlan(family="mplug", scale="smoke", pairs=(source,))
