"""VLMo's recipes: the numbers of the released configs, and small runs of each stage."""

from dataclasses import replace

import pytest
import torch

from triptych.core.errors import CapabilityError, ConfigError
from triptych.data.source import DataSourceConfig
from triptych.models.families import model_config
from triptych.models.vlmo.convert import key_table
from triptych.recipes.config import ModelSource
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.recipes.scales import SCALES
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.text import Tokenizer
from triptych.workflows.run import prepare_model, train_run

from .published import differing
from .small_runs import small_run, source_of, trained_model

# Recipe, field, base, large, source: "code" is the folder vlmo of microsoft/unilm, "beit" its
# folder beit, "readme" that of vlmo, "paper" arXiv:2111.02358.
NUMBERS = [
    ("vision", "train.global_batch_size", 2048, 2048, "beit: 16 nodes of 8"),
    ("vision", "optim.learning_rate", 1.5e-3, 1.5e-3, "beit"),
    ("vision", "optim.warmup_steps", 10_000, 10_000, "beit: warmup_steps"),
    ("vision", "optim.weight_decay", 0.05, 0.05, "beit"),
    ("vision", "optim.betas", (0.9, 0.999), (0.9, 0.999), "beit: opt_betas"),
    ("vision", "optim.min_learning_rate", 1e-5, 1e-5, "beit: min_lr"),
    ("vision", "train.max_grad_norm", 3.0, 3.0, "beit: clip_grad"),
    ("language", "train.max_steps", 200_000, 200_000, "readme: step200k"),
    ("language", "train.global_batch_size", 1024, 1024, "code"),
    ("language", "optim.learning_rate", 2e-4, 2e-4, "code: task_textmlm_base"),
    ("language", "captions.max_text_tokens", 196, 196, "code: max_text_len"),
    ("pretrain", "train.max_steps", 200_000, 200_000, "code: step200k"),
    ("pretrain", "train.global_batch_size", 1024, 1024, "code"),
    ("pretrain", "optim.learning_rate", 2e-4, 5e-5, "code: task_mlm_itm_itc_base, _large"),
    ("pretrain", "optim.warmup_steps", 2500, 2500, "code"),
    ("pretrain", "optim.weight_decay", 0.01, 0.01, "code"),
    ("pretrain", "optim.betas", (0.9, 0.98), (0.9, 0.98), "code: AdamW"),
    ("pretrain", "optim.decay", "linear", "linear", "code: decay_power 1"),
    ("pretrain", "optim.min_learning_rate", 0.0, 0.0, "code: end_lr"),
    ("pretrain", "train.max_grad_norm", None, None, "code: none is set"),
    ("pretrain", "captions.max_text_tokens", 40, 40, "code: max_text_len"),
    ("pretrain", "captions.max_words", None, None, "code: captions are read as they are"),
    ("language", "captions.max_words", None, None, "code: captions are read as they are"),
    ("pretrain", "captions.whole_word", True, True, "code: whole_word_masking"),
    ("pretrain", "captions.mlm_probability", 0.15, 0.15, "code: mlm_prob"),
    ("pretrain", "task.fused_itc", True, True, "code: itc_vl"),
    ("pretrain", "image.mean", (0.5,) * 3, (0.5,) * 3, "code: inception_normalize"),
    ("retrieval", "train.max_steps", 3000, 3000, "code: finetune_irtr_coco"),
    ("retrieval", "train.global_batch_size", 3072, 3072, "code"),
    ("retrieval", "optim.warmup_steps", 300, 300, "code"),
    ("retrieval", "optim.learning_rate", 3e-5, 2e-5, "code"),
    ("retrieval", "model.image_size", 384, 384, "code"),
    ("retrieval", "model.drop_path", 0.2, 0.2, "code"),
    ("vqa", "train.global_batch_size", 128, 128, "code: finetune_vqa"),
    ("vqa", "optim.learning_rate", 3e-5, 1.5e-5, "code"),
    ("vqa", "optim.head_learning_rate_factor", 20, 20, "code: lr_mult"),
    ("vqa", "model.image_size", 480, 480, "code: image480"),
    ("vqa", "model.drop_path", 0.15, 0.15, "code"),
    ("nlvr2", "train.global_batch_size", 128, 128, "code: finetune_nlvr2"),
    ("nlvr2", "optim.learning_rate", 5e-5, 3e-5, "code"),
    ("nlvr2", "model.image_size", 384, 384, "code: image384"),
    ("nlvr2", "model.drop_path", 0.1, 0.15, "code"),
]
NAMES = sorted({row[0] for row in NUMBERS} | {"snli_ve", "hateful_memes"})


def test_base_and_large_have_the_released_numbers():
    assert differing((f"vlmo.{name}", *row) for name, *row in NUMBERS) == []


def test_weights_are_those_of_the_released_step():
    weights = {w.name: w.weight for w in build_recipe("vlmo.pretrain", "base").weights}
    assert weights == {"itc": 1.0, "itm": 1.0, "mlm": 0.25}
    assert {w.name for w in build_recipe("vlmo.retrieval", "base").weights} == {"itc"}


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_names_a_model_that_fits_its_lengths(name):
    assert f"vlmo.{name}" in RECIPES
    for scale in SCALES:
        run = build_recipe(f"vlmo.{name}", scale)
        model = model_config(run.model.name, image_size=run.model.image_size)
        assert model.max_text_tokens >= run.captions.max_text_tokens
        assert (run.recipe, run.scale) == (f"vlmo.{name}", scale)
    with pytest.raises(ConfigError, match="huge"):
        build_recipe(f"vlmo.{name}", "huge")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    formats = ("captions", "vqa", "text")
    write_scenes(folder, 24, num_val=2, num_test=4, num_compositional=2, formats=formats)
    return SceneFiles(folder)


def test_language_then_pairs_then_answers(scenes, tmp_path):
    corpus = DataSourceConfig(path=str(scenes.corpus), reader="text")
    run = small_run("vlmo.language", corpus, max_steps=2)
    train_run(run, tmp_path / "language")
    first = trained_model(tmp_path / "language" / "model")

    start = ModelSource(init_from=str(tmp_path / "language" / "model"))
    pairs = small_run("vlmo.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=2)
    train_run(_starting(pairs, start), tmp_path / "pretrain")
    second = trained_model(tmp_path / "pretrain" / "model")
    assert second.config == first.config
    assert not torch.equal(second.class_embedding, first.class_embedding)
    assert torch.equal(second.mask_token, first.mask_token)

    start = ModelSource(init_from=str(tmp_path / "pretrain" / "model"), drop_path=0.3)
    answers = small_run("vlmo.vqa", source_of(scenes, "mplug.vqa"), max_steps=2)
    train_run(_starting(answers, start), tmp_path / "vqa")
    third = trained_model(tmp_path / "vqa" / "model")
    assert third.config.drop_path == 0.3
    assert (tmp_path / "vqa" / "model" / "head.safetensors").is_file()


def _starting(run, source):
    return replace(run, model=source)


def test_a_model_that_skips_no_branches_refuses_to_skip(tmp_path):
    tokenizer = Tokenizer.train(["a red dog"], 200)
    run = build_recipe("mplug.pretrain", "smoke")
    run = _starting(run, ModelSource(name="mplug_tiny", drop_path=0.1))
    with pytest.raises(ConfigError, match="drop_path"):
        prepare_model(run, tokenizer)


def test_the_vision_stage_asks_for_an_image_tokenizer(scenes, tmp_path):
    run = small_run("vlmo.vision", source_of(scenes, "mplug.pretrain"), max_steps=1)
    with pytest.raises(ConfigError, match="image_tokenizer"):
        train_run(run, tmp_path / "vision")


def test_exporting_a_small_variant_says_why_it_cannot():
    with pytest.raises(CapabilityError, match="stem"):
        key_table(model_config("vlmo_tiny"))
