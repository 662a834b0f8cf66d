"""Every recipe at every scale: its numbers, its config on disk, and a run at scale smoke."""

import json
import math
import re
from dataclasses import replace
from itertools import product

import cv2
import numpy as np
import pytest
import torch

import triptych.workflows.run as run_module
from tests.train.toy import exact_lines
from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.models.families import model_config
from triptych.recipes.config import ModelSource, RunConfig, TokenizerConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.recipes.scales import PAPER_SCALES, SCALES
from triptych.text import Tokenizer
from triptych.workflows.run import CONFIG_FILE, prepare_model, resume_run, train_run

from .published import differing
from .small_runs import small_run, source_of, trained_model

NAMES = (
    "mplug.pretrain",
    "mplug.caption",
    "mplug.scst",
    "mplug.retrieval",
    "mplug.vqa",
    "mplug.grounding",
    "mplug.nlvr2",
    "mplug.snli_ve",
)
FINE_TUNING = NAMES[1:]
COLLECTIONS = ("pretrain_14m", "continue_4m", "vqa_vg", "grounding_mixed", "grounding_second")
ELSEWHERE = {"mplug.hateful_memes", *(f"mplug.{name}" for name in COLLECTIONS)}
"""The classifier of mplug.snli_ve on other texts (test_matrix.py), and the recipes of here on the
paper's collections of data (test_mplug_data.py)."""

# Field, base, large, source. "yaml": pretrain_mplug_base.yaml and pretrain_mplug_large.yaml of
# X-PLUG/mPLUG; "paper": arXiv:2205.12005, section 5.1; "code": the released models.
PRETRAINING = [
    ("model.name", "mplug_base_patch16_256", "mplug_large_patch14_224", "yaml: image_res"),
    ("train.global_batch_size", 1024, 1024, "paper"),
    ("optim.learning_rate", 1e-4, 5e-5, "yaml: lr1"),
    ("optim.vision_learning_rate", 1e-5, 5e-6, "yaml: lr2"),
    ("optim.weight_decay", 0.02, 0.02, "yaml: weight_decay"),
    ("optim.betas", (0.9, 0.999), (0.9, 0.999), "torch's, which the code keeps"),
    ("optim.warmup_steps", 1000, 1000, "paper (yaml: 20 units of 100)"),
    ("optim.warmup_learning_rate", 1e-6, 1e-6, "yaml: warmup_lr"),
    ("optim.min_learning_rate", 1e-6, 1e-6, "paper (yaml of large: 2e-6)"),
    ("task.queue_size", 65536, 65536, "paper"),
    ("task.momentum", 0.995, 0.995, "paper"),
    ("task.alpha", 0.4, 0.4, "yaml: alpha"),
    ("task.distill_mlm", True, True, "derived code: the teacher's words, mixed in by alpha"),
    ("task.distill_prefix_lm", True, True, "derived code: its decoder's, meant to be mixed in"),
    ("task.temperature", 0.07, 0.07, "yaml: temp"),
    ("task.min_temperature", 0.001, 0.001, "code: clamp"),
    ("task.max_temperature", 0.5, 0.5, "code: clamp"),
    ("image.crop_scale", (0.2, 1.0), (0.2, 1.0), "code: RandomResizedCrop"),
    ("image.flip_probability", 0.5, 0.5, "code: RandomHorizontalFlip"),
    ("image.randaugment_num_ops", 2, 2, "code: RandomAugment(2, 7)"),
    ("image.randaugment_magnitude", 7, 7, "code: RandomAugment(2, 7)"),
    ("captions.mlm_probability", 0.15, 0.15, "paper"),
    ("captions.max_words", 30, 30, "code: pre_caption"),
    ("captions.empty_prefix_probability", 0, 0, "code: any split, each caption its own"),
    ("tokenizer.vocab_size", 30522, 30522, "bert-base-uncased"),
    ("weights", (), (), "code: the sum of the four losses"),
]
# Recipe, field, base, large, source: the paper's appendix, or the released fine-tuning configs.
FINE_TUNED = [
    *((name, "optim.weight_decay", 0.05, 0.05, "paper, appendix") for name in FINE_TUNING),
    ("mplug.caption", "model.image_size", 336, 336, "paper, appendix"),
    ("mplug.caption", "train.global_batch_size", 256, 256, "paper, appendix"),
    ("mplug.caption", "optim.learning_rate", 1e-5, 1e-5, "paper, appendix"),
    ("mplug.caption", "optim.vision_learning_rate", 5e-6, 5e-6, "caption yaml: lr2"),
    ("mplug.caption", "optim.warmup_steps", 400, 400, "caption yaml: 4 units of 100"),
    ("mplug.caption", "task.beam.num_beams", 10, 10, "paper, section 5.2.2"),
    ("mplug.caption", "task.beam.max_tokens", 20, 20, "paper, section 5.2.2"),
    ("mplug.scst", "model.image_size", 336, 336, "paper, appendix"),
    ("mplug.scst", "optim.learning_rate", 8e-7, 8e-7, "paper, appendix"),
    ("mplug.scst", "task.captioning.beam.num_beams", 10, 10, "paper, section 5.2.2"),
    ("mplug.scst", "task.max_tokens", 20, 20, "paper, section 5.2.2"),
    ("mplug.retrieval", "model.image_size", 336, 336, "paper, appendix"),
    ("mplug.retrieval", "train.global_batch_size", 1024, 1024, "retrieval yaml: 8 x 128"),
    ("mplug.retrieval", "optim.learning_rate", 1e-5, 1e-5, "retrieval yaml: lr1"),
    ("mplug.retrieval", "optim.vision_learning_rate", 2e-6, 2e-6, "retrieval yaml: lr2"),
    ("mplug.retrieval", "optim.warmup_steps", 100, 100, "retrieval yaml: 1 unit of 100"),
    ("mplug.retrieval", "task.queue_size", 65536, 65536, "retrieval yaml: queue_size"),
    ("mplug.retrieval", "task.momentum", 0.995, 0.995, "retrieval yaml: momentum"),
    ("mplug.retrieval", "task.alpha", 0.4, 0.4, "retrieval yaml: alpha"),
    ("mplug.vqa", "model.image_size", 512, 504, "paper, appendix; 504 is no multiple of 16"),
    ("mplug.vqa", "train.global_batch_size", 1024, 2048, "vqa yamls: 8 x 128 and 8 x 256"),
    ("mplug.vqa", "optim.learning_rate", 3e-5, 3e-5, "vqa yaml: lr1"),
    ("mplug.vqa", "optim.vision_learning_rate", 5e-6, 5e-6, "vqa yaml: lr2"),
    ("mplug.vqa", "optim.warmup_steps", 400, 400, "vqa yaml: 4 units of 100"),
    ("mplug.vqa", "task.beam.num_beams", 5, 5, "vqa code"),
    ("mplug.vqa", "task.beam.min_tokens", 1, 1, "vqa code"),
    ("mplug.vqa", "task.beam.max_tokens", 10, 10, "vqa code"),
    ("mplug.vqa", "lengths.question", 80, 80, "vqa yaml: max_input_length"),
    ("mplug.grounding", "model.image_size", 336, 336, "grounding yaml: image_res"),
    ("mplug.grounding", "train.global_batch_size", 192, 192, "grounding yaml: 8 x 24"),
    ("mplug.grounding", "optim.learning_rate", 2e-5, 2e-5, "grounding yaml: lr1"),
    ("mplug.grounding", "optim.vision_learning_rate", 5e-6, 5e-6, "grounding yaml: lr2"),
    ("mplug.grounding", "optim.warmup_steps", 2000, 2000, "grounding yaml: 20 units of 100"),
    ("mplug.grounding", "task.num_bins", 337, 337, "grounding code: 336 px"),
    ("mplug.grounding", "task.start_unused", 339, 339, "grounding code: [unused339]"),
    ("mplug.grounding", "task.first_bin_unused", 340, 340, "grounding code: [unused340]"),
    ("mplug.grounding", "task.length_and_overlap_weighting", True, True, "grounding code"),
    ("mplug.grounding", "lengths.phrase", 20, 20, "grounding code: max_query_len"),
    ("mplug.grounding", "image.crop_scale", None, None, "grounding code: boxes stay whole"),
    ("mplug.nlvr2", "model.image_size", 336, 336, "paper, appendix"),
    ("mplug.nlvr2", "train.global_batch_size", 128, 128, "ALBEF's NLVR.yaml: 8 x 16"),
    ("mplug.nlvr2", "optim.learning_rate", 2e-5, 2e-5, "ALBEF's NLVR.yaml: lr"),
    ("mplug.nlvr2", "task.swap_probability", 0.5, 0.5, "released dataset code"),
    ("mplug.nlvr2", "task.head.activation", "relu", "relu", "ALBEF's and BLIP's cls_head"),
    ("mplug.snli_ve", "model.image_size", 336, 336, "paper, appendix"),
    ("mplug.snli_ve", "train.global_batch_size", 256, 256, "ALBEF's VE.yaml: 8 x 32"),
    ("mplug.snli_ve", "optim.learning_rate", 2e-5, 2e-5, "ALBEF's VE.yaml: lr"),
    ("mplug.snli_ve", "task.with_premise", True, True, "paper, section 5.2.5"),
    ("mplug.snli_ve", "task.labels", *(("contradiction", "neutral", "entailment"),) * 2, "code"),
    ("classify.images", "train.global_batch_size", 1024, 1024, "BEiT's page on fine-tuning"),
    ("classify.images", "optim.learning_rate", 4e-3, 1e-3, "the same, models without labels"),
    ("classify.images", "optim.layer_decay", 0.65, 0.75, "the same"),
    ("classify.images", "optim.weight_decay", 0.05, 0.05, "the same"),
    ("classify.images", "task.mixup", 0.8, 0.8, "the same"),
    ("classify.images", "task.cutmix", 1.0, 1.0, "the same"),
    ("classify.images", "model.image_size", 224, 224, "the same"),
    ("vlmo.segmentation", "model.image_size", 512, 512, "BEiT's upernet_beit_base_12_512"),
    ("vlmo.segmentation", "model.drop_path", 0.1, 0.2, "and its upernet_beit_large_24_512"),
    ("vlmo.segmentation", "optim.learning_rate", 3e-5, 2e-5, "the same"),
    ("vlmo.segmentation", "optim.layer_decay", 0.9, 0.95, "the same"),
    ("vlmo.segmentation", "optim.warmup_steps", 1500, 1500, "the same"),
    ("vlmo.segmentation", "train.global_batch_size", 16, 16, "the same: 8 x 2"),
    ("vlmo.segmentation", "train.max_steps", 160_000, 160_000, "the same: schedule_160k"),
    ("vlmo.segmentation", "task.channels", 768, 1024, "the same"),
    ("segment.images", "model.image_size", 512, 504, "504 is a multiple of 14"),
]
# Epochs over samples, at a batch of base and of large: what the steps come from, within 1 %.
STEPS = [
    ("mplug.pretrain", 30, 14_000_000, 1024, 1024),  # paper: 30 epochs of 14 M images
    ("mplug.caption", 5, 567_000, 256, 256),  # paper: 5 epochs of COCO's 113 K / 567 K
    ("mplug.scst", 5, 113_000, 256, 256),  # paper: 5 more epochs, here of images
    ("mplug.nlvr2", 10, 86_373, 128, 128),  # ALBEF: 10 epochs of NLVR2
    ("mplug.snli_ve", 5, 529_527, 256, 256),  # ALBEF: 5 epochs of SNLI-VE
    ("mplug.retrieval", 8, 567_000, 1024, 1024),  # released: 8 epochs of COCO
    ("mplug.vqa", 8, 443_757 + 214_354, 1024, 2048),  # released: 8 epochs; VQAv2 train and val
    ("mplug.grounding", 120, 120_624, 192, 192),  # released: 120 epochs; RefCOCO train
]

ENCODER_ONLY = (
    *("decoder", "image_projection", "text_projection", "itm_head", "mlm_head"),
    "fusion.image_norm",
)
UNREAD = {
    "mplug.pretrain": (),
    "mplug.caption": ("image_projection", "text_projection", "itm_head", "mlm_head"),
    "mplug.scst": ("image_projection", "text_projection", "itm_head", "mlm_head"),
    "mplug.retrieval": ("decoder", "mlm_head", "fusion.image_norm"),
    "mplug.vqa": ("image_projection", "text_projection", "itm_head", "mlm_head"),
    "mplug.grounding": ("image_projection", "text_projection", "itm_head", "mlm_head"),
    "mplug.nlvr2": ENCODER_ONLY,
    "mplug.snli_ve": ENCODER_ONLY,
}
"""Modules without a gradient: what another objective reads, and ITM reads text states alone."""

LOG_2, LOG_8 = math.log(2), math.log(8)


def test_all_recipes_are_tried_here():
    own = {name for name in RECIPES.names() if name.startswith("mplug.")}
    assert {*NAMES, *ELSEWHERE} == own
    assert set(NAMES) == {*UNREAD}


def test_configs_survive_their_files(tmp_path):
    for name, scale in product(NAMES, SCALES):
        config = build_recipe(name, scale)
        assert (config.recipe, config.scale) == (name, scale)
        save_yaml(config, tmp_path / "run.yaml")
        assert load_yaml(RunConfig, tmp_path / "run.yaml") == config, (name, scale)


def test_models_and_texts_fit_each_other():
    for name, scale in product(NAMES, SCALES):
        config = build_recipe(name, scale)
        size = model_config(config.model.name, image_size=config.model.image_size)
        lengths = config.lengths
        texts = (config.captions.max_text_tokens, lengths.question, lengths.answer, lengths.phrase)
        assert max(texts) <= size.text.max_positions, (name, scale)
        assert size.vision.image_size % size.vision.patch_size == 0, (name, scale)


def test_the_coordinates_of_grounding_fit_the_tokenizer():
    for scale in SCALES:
        config = build_recipe("mplug.grounding", scale)
        tokens = config.task.first_bin_unused + config.task.num_bins
        assert max(tokens, config.task.start_unused + 1) <= config.tokenizer.num_unused, scale
        # BERT's vocabulary has [unused0] to [unused993].
        assert tokens <= 994 or scale not in PAPER_SCALES, scale


def test_pretraining_has_the_published_numbers():
    assert differing(("mplug.pretrain", *row) for row in PRETRAINING) == []


def test_fine_tuning_has_the_published_numbers():
    assert differing(FINE_TUNED) == []


@pytest.mark.parametrize(("name", "epochs", "samples", "base", "large"), STEPS)
def test_published_epochs_give_the_steps(name, epochs, samples, base, large):
    assert {step[0] for step in STEPS} == {*NAMES}
    for scale, batch in zip(PAPER_SCALES, (base, large)):
        train = build_recipe(name, scale).train
        assert train.global_batch_size == batch
        assert train.max_steps == pytest.approx(epochs * samples / batch, rel=0.01)


@pytest.mark.parametrize(("name", "pairs"), [("pretrain", 14_000_000), ("retrieval", 567_000)])
def test_the_teacher_comes_in_over_one_epoch(name, pairs):
    for scale in PAPER_SCALES:  # released: alpha · min(1, i / len(loader)) in epoch 0
        ramp = build_recipe(f"mplug.{name}", scale).task.alpha_ramp_steps
        assert ramp == pytest.approx(pairs / 1024, rel=0.001)


def test_unknown_names_are_errors_that_help():
    with pytest.raises(ConfigError, match=r"mplug.pretrian.*mplug.pretrain"):
        build_recipe("mplug.pretrian", "tiny")
    with pytest.raises(ConfigError, match="scale = 'huge': must be one of smoke, tiny"):
        build_recipe("mplug.pretrain", "huge")


def _largest_gradients(monkeypatch):
    """Return a dict that training fills: parameter name to its largest gradient so far."""
    largest = {}

    def build_task(*arguments):
        task = build(*arguments)
        for name, parameter in task.modules.named_parameters():
            if parameter.requires_grad:
                largest[name] = 0.0
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: largest.update(
                        {name: max(largest[name], float(p.grad.abs().max()))}
                    )
                )
        return task

    build = run_module.build_task
    monkeypatch.setattr(run_module, "build_task", build_task)
    return largest


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_trains_every_parameter_that_is_not_listed(tmp_path, scenes, monkeypatch, name):
    largest = _largest_gradients(monkeypatch)
    result = train_run(small_run(name, source_of(scenes, name), log_every_steps=1), tmp_path)
    unread = tuple(f"model.{module}." for module in UNREAD[name])
    still = {parameter for parameter, value in largest.items() if value == 0}
    assert still == {parameter for parameter in largest if parameter.startswith(unread)}
    assert len(largest) > 200 and result.step == 4
    if name == "mplug.scst":  # its loss is no number to expect: see the tests of the task
        return
    before = exact_lines(tmp_path)[0]  # a model that knows nothing yet
    vocab_size = Tokenizer.load(tmp_path / "model").vocab_size
    words = math.log(vocab_size)  # nats of a token among equally likely ones
    expected = {
        "mplug.pretrain": {"itc": LOG_8, "prefix_lm": words},
        "mplug.caption": {"caption": words},
        "mplug.retrieval": {"itc": LOG_8, "itm": LOG_2},
        "mplug.vqa": {"vqa": 2 * words},  # one word and [SEP]
        "mplug.grounding": {"box": words},
        "mplug.nlvr2": {"classification": LOG_2},
        "mplug.snli_ve": {"classification": math.log(3)},
    }[name]
    losses = {key.removeprefix("loss/"): v for key, v in before.items() if key.startswith("loss/")}
    assert losses.pop("total") == pytest.approx(sum(losses.values()), rel=1e-5)
    for name, value in expected.items():  # logits of a fresh ITM head have a deviation of 0.6
        assert losses.pop(name) == pytest.approx(value, rel=0.25 if name == "itm" else 0.12)
    assert not losses


def test_pretraining_at_smoke_uses_all_objectives(pretrained):
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    seen = {key for line in lines for key in line if key.startswith("loss/")}
    assert seen == {f"loss/{name}" for name in ("itc", "itm", "mlm", "prefix_lm", "total")}


def test_a_run_leaves_its_resolved_config_and_a_whole_model_folder(pretrained):
    config = load_yaml(RunConfig, pretrained / CONFIG_FILE)
    assert config.image.image_size == 64
    stored = load_model_folder(pretrained / "model")
    assert stored.config["trained_for"] == ["pretraining"]
    assert stored.preprocess["image_size"] == 64
    model = trained_model(pretrained / "model")
    assert model.config.text.vocab_size == Tokenizer.load(stored.tokenizer_path).vocab_size
    suffixes = {path.suffix for path in (pretrained / "model").iterdir()}
    assert suffixes == {".json", ".md", ".safetensors", ""}  # nothing pickled


@pytest.mark.slow
def test_numbers_depend_on_the_seeds_and_not_on_the_workers(tmp_path, scenes):
    config = small_run("mplug.caption", source_of(scenes, "mplug.caption"), log_every_steps=1)
    first = _losses(config, tmp_path / "first")
    workers = replace(config, data=replace(config.data, num_workers=2))
    assert _losses(workers, tmp_path / "workers") == first
    order = replace(config, data=replace(config.data, seed=1))
    assert _losses(order, tmp_path / "order")[0] != first[0]
    weights = replace(config, train=replace(config.train, seed=1))
    assert _losses(weights, tmp_path / "weights")[0] != first[0]


def _losses(config, folder):
    train_run(config, folder)
    return [line["loss/total"] for line in exact_lines(folder)]


def test_a_run_folder_in_use_is_an_error_that_says_how_to_resume(pretrained, scenes):
    before = {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()}
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"))
    with pytest.raises(ConfigError, match=re.escape(f"triptych train {pretrained} --resume")):
        train_run(config, pretrained)
    assert before == {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()}


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.yaml is missing; .* without --resume"):
        resume_run(tmp_path)


def test_evaluation_is_refused_where_the_task_has_none(tmp_path, scenes, capsys):
    source = source_of(scenes, "mplug.pretrain")
    config = small_run("mplug.pretrain", source, max_steps=1, evaluate_every_steps=2)
    with pytest.raises(ConfigError, match=r"evaluate_every_steps = 2: mplug.pretrain .*omit it"):
        train_run(config, tmp_path)
    assert "training on" not in capsys.readouterr().out
    train_run(small_run("dvae", source, max_steps=2, evaluate_every_steps=1), tmp_path / "dvae")
    lines = (tmp_path / "dvae" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["step"] for line in found if "eval/codes_used" in line] == [1, 2]


def test_a_run_without_data_says_how_to_name_it(tmp_path):
    with pytest.raises(ConfigError, match=r"data.train is empty.*--data PATH"):
        train_run(small_run("mplug.caption"), tmp_path)


@pytest.mark.parametrize(
    ("tokenizer", "error", "message"),
    [
        (TokenizerConfig(num_unused=33), DataError, r"33 unused tokens.*larger num_unused"),
        (TokenizerConfig(vocab_size=60), ConfigError, r"vocab_size = 60: must be at least 135"),
    ],
)
def test_a_vocabulary_too_small_for_the_bins_is_an_error(
    tmp_path, scenes, tokenizer, error, message
):
    """33 bins and a start token need [unused0] to [unused33]."""
    config = small_run("mplug.grounding", source_of(scenes, "mplug.grounding"))
    with pytest.raises(error, match=message):
        train_run(replace(config, tokenizer=tokenizer), tmp_path)
    assert not (tmp_path / CONFIG_FILE).exists()  # the folder is free for a better try


def test_texts_longer_than_the_position_table_are_an_error(tmp_path, scenes):
    config = small_run("mplug.caption", source_of(scenes, "mplug.caption"))
    config = replace(config, captions=replace(config.captions, max_text_tokens=65))
    with pytest.raises(ConfigError, match=r"65 tokens but the model reads 64"):
        train_run(config, tmp_path)


@pytest.fixture(scope="module")
def larger(tmp_path_factory, pretrained, scenes):
    """A captioning run that began from the pre-trained model, at 96 px instead of 64."""
    folder = tmp_path_factory.mktemp("larger") / "run"
    config = small_run("mplug.caption", source_of(scenes, "mplug.caption"), max_steps=1)
    model = ModelSource(init_from=str(pretrained / "model"), image_size=96)
    train_run(replace(config, model=model), folder)
    return folder


def test_another_image_size_resizes_the_positions_and_nothing_else(pretrained, larger):
    """OpenCV's INTER_LINEAR samples pixel centres, without antialiasing, as the paper's code."""
    config = load_yaml(RunConfig, larger / CONFIG_FILE)
    tokenizer = Tokenizer.load(pretrained / "model")
    old = trained_model(pretrained / "model").state_dict()
    new = prepare_model(config, tokenizer).state_dict()
    name = "visual_encoder.position_embedding"
    table = old.pop(name).numpy()
    grid = cv2.resize(table[1:].reshape(4, 4, -1), (6, 6), interpolation=cv2.INTER_LINEAR)
    expected = np.concatenate([table[:1], grid.reshape(36, -1)])
    np.testing.assert_allclose(new.pop(name).numpy(), expected, atol=1e-6)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_fine_tuned_folder_holds_the_new_size_and_the_old_words(pretrained, larger):
    stored = load_model_folder(larger / "model")
    assert stored.preprocess["image_size"] == stored.config["model"]["vision"]["image_size"] == 96
    assert stored.config["trained_for"] == ["captioning"]
    old_words = load_model_folder(pretrained / "model").tokenizer_path.read_bytes()
    assert stored.tokenizer_path.read_bytes() == old_words


def test_a_size_that_no_patches_fill_is_an_error(tmp_path, pretrained, scenes):
    config = small_run("mplug.caption", source_of(scenes, "mplug.caption"))
    model = ModelSource(init_from=str(pretrained / "model"), image_size=70)
    with pytest.raises(ConfigError, match="image_size = 70"):
        train_run(replace(config, model=model), tmp_path)
