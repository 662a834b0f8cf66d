"""Classifiers from data to scores: what is learned from, what is stored, what is predicted."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError, DataError
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.evaluation.classification import (
    compute_auroc,
    compute_f1,
    compute_matthews,
    compute_pearson,
    compute_spearman,
)
from triptych.evaluation.vqa import normalize_answer, vqa_accuracy
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.recipes.scales import SCALES
from triptych.scenes.write import write_scenes
from triptych.tasks.finetuning.image_text_classification import ImageTextClassification
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import CONFIG_FILE, resume_run, train_run

from .published import differing
from .small_runs import small_run, source_of

NAMES = ("classify.answers", "classify.pairs", "classify.texts")
GLUE = "index\tsentence1\tsentence2\tlabel"  # RTE
STS = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
COLORS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "s"
    return write_scenes(folder, 32, formats=("vqa", "snli_ve"))


@pytest.fixture(scope="module")
def answered(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("answers") / "run"
    run = small_run("classify.answers", source_of(world, "mplug.vqa"), log_every_steps=1)
    train_run(run, folder)
    return folder


def pairs_source(world, split="train"):
    images = str(world.split_images(split))
    return DataSourceConfig(path=str(world.snli_ve(split)), image_root=images)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("pairs") / "run"
    train_run(small_run("classify.pairs", pairs_source(world)), folder)
    return folder


def rte_lines(count):
    """The second sentence follows where it names the colour of the first."""
    for i in range(count):
        color, other = COLORS[i % 3], COLORS[(i + i // 3 % 2) % 3]
        label = "entailment" if color == other else "not_entailment"
        yield f"{i}\tthe star is {color}\tit is {other}\t{label}"


@pytest.fixture(scope="module")
def rte(tmp_path_factory):
    path = tmp_path_factory.mktemp("glue") / "dev.tsv"
    path.write_text("\n".join([GLUE, *rte_lines(24)]) + "\n")
    return DataSourceConfig(path=str(path))


@pytest.fixture(scope="module")
def followed(tmp_path_factory, rte):
    folder = tmp_path_factory.mktemp("texts") / "run"
    train_run(small_run("classify.texts", rte), folder)
    return folder


def values_of(found):
    return {value.name: value.value for value in found}


def first_line(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


def test_configs_survive_their_files(tmp_path):
    for name, scale in product(NAMES, SCALES):
        config = build_recipe(name, scale)
        assert (config.recipe, config.scale) == (name, scale)
        save_yaml(config, tmp_path / "run.yaml")
        assert load_yaml(RunConfig, tmp_path / "run.yaml") == config, (name, scale)


# Recipe, field, base, large, source.
PAPER = [
    ("classify.answers", "optim.learning_rate", 3e-5, 1.5e-5, "VLMo, released fine-tuning"),
    ("classify.answers", "optim.head_learning_rate_factor", 20, 20, "VLMo, released"),
    ("classify.answers", "train.global_batch_size", 128, 128, "VLMo, released"),
    ("classify.answers", "task.max_answers", 3129, 3129, "VQAv2's classifiers"),
    ("classify.answers", "task.min_answer_count", 9, 9, "VQAv2's classifiers"),
    ("classify.answers", "task.max_text_tokens", 40, 40, "VLMo, released"),
    ("classify.texts", "optim.learning_rate", 1e-5, 1e-5, "torchmultimodal's FLAVA on QNLI"),
    ("classify.texts", "optim.betas", (0.9, 0.98), (0.9, 0.98), "torchmultimodal"),
    ("classify.texts", "optim.eps", 1e-6, 1e-6, "torchmultimodal"),
    ("classify.texts", "optim.weight_decay", 0.1, 0.1, "torchmultimodal"),
    ("classify.texts", "optim.warmup_steps", 1986, 1986, "torchmultimodal"),
    ("classify.texts", "train.max_steps", 33112, 33112, "torchmultimodal"),
    ("classify.texts", "train.global_batch_size", 32, 32, "torchmultimodal"),
    ("classify.texts", "task.head.dropout", 0.5, 0.5, "torchmultimodal"),
    ("classify.texts", "task.head.hidden_ratio", 1.0, 1.0, "torchmultimodal"),
]


def test_numbers_of_the_papers():
    assert differing(PAPER) == []


def test_the_answers_are_those_of_the_training_data(answered, world):
    config = load_yaml(RunConfig, answered / CONFIG_FILE)
    annotations = json.loads(world.vqa_annotations("train").read_text())["annotations"]
    best = Counter()
    for entry in annotations:
        given = [normalize_answer(answer["answer"]) for answer in entry["answers"]]
        best[max(given, key=lambda answer: (given.count(answer), -given.index(answer)))] += 1
    assert set(config.task.answers) == set(best)
    counts = [best[answer] for answer in config.task.answers]
    assert counts == sorted(counts, reverse=True)
    # A fresh head scores all answers near 0: each costs about ln 2.
    loss = first_line(answered)["loss/vqa"]
    assert loss == pytest.approx(len(best) * math.log(2), rel=0.05)
    last = json.loads((answered / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lr/head"] > last["lr/rest"] > 0


def test_a_classifier_is_stored_beside_its_model(answered):
    stored = load_model_folder(answered / "model")
    assert stored.config["trained_for"] == ["answer_classification"]
    answers = stored.config["task"]["answers"]
    assert stored.head["4.weight"].shape[0] == len(answers)
    assert not any(name.startswith("head") for name in stored.state_dict)


def test_answers_and_their_score_equal_those_of_a_plain_loop(answered, world):
    source = source_of(world, "mplug.vqa", "test")
    records = read_records(source).records
    engine = triptych.load(answered / "model")
    said = [engine.answer(str(r.image), r.question) for r in records]
    assert said == engine.answer([str(r.image) for r in records], [r.question for r in records])
    found = values_of(evaluate_model(answered / "model", "vqa", source))
    expected = [vqa_accuracy(text, r.answers) for text, r in zip(said, records, strict=True)]
    assert found["vqa"] == pytest.approx(np.mean(expected))
    assert set(said) <= set(engine.settings.task["answers"])


def test_a_question_is_answered_as_the_network_scores_it(answered, world):
    """One image through the parts of the model, without the engine's ways."""
    record = read_records(source_of(world, "mplug.vqa", "test")).records[0]
    engine = triptych.load(answered / "model")
    stored = load_model_folder(answered / "model")
    pixels = torch.from_numpy(decode_image(record.image)).double() / 255
    mean, std = (torch.tensor(stored.preprocess[name]) for name in ("mean", "std"))
    image = ((pixels - mean) / std).permute(2, 0, 1)[None].float()
    ids = torch.tensor(engine.tokenizer.encode([record.question.lower()], max_tokens=40))
    with torch.no_grad():
        text = engine.model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        hidden = engine.model.fuse(engine.model.encode_image(image), text).text_tokens[:, 0]
        head = stored.head
        hidden = hidden @ head["0.weight"].T + head["0.bias"]
        hidden = torch.nn.functional.layer_norm(
            hidden, hidden.shape[1:], head["1.weight"], head["1.bias"]
        )
        scores = torch.nn.functional.gelu(hidden) @ head["4.weight"].T + head["4.bias"]
    expected = stored.config["task"]["answers"][int(scores.argmax())]
    assert engine.answer(str(record.image), record.question) == expected


def test_a_list_that_answers_does_not_read_choices(answered, world):
    engine = triptych.load(answered / "model")
    image = next(world.split_images("test").iterdir())
    with pytest.raises(DataError, match="answers from its own list"):
        engine.answer(str(image), "what color is it?", choices=["red"])


def test_labels_and_scores_of_pairs_equal_those_of_a_plain_loop(judged, world):
    source = pairs_source(world, "test")
    config = load_yaml(RunConfig, judged / CONFIG_FILE)
    assert config.task.labels == ("contradiction", "entailment", "neutral")
    assert first_line(judged)["loss/classification"] == pytest.approx(math.log(3), rel=0.1)
    records = read_records(source).records
    engine = triptych.load(judged / "model")
    shares = [engine.label(str(r.image), r.hypothesis) for r in records]
    assert all(math.isclose(sum(row.values()), 1, rel_tol=1e-5) for row in shares)
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in shares)
    hits = [next(iter(row)) == r.label for row, r in zip(shares, records, strict=True)]
    found = values_of(evaluate_model(judged / "model", "classification", source))
    assert found["accuracy"] == pytest.approx(np.mean(hits))
    assert set(found) == {"accuracy", *(f"accuracy/{label}" for label in config.task.labels)}


def test_two_classes_have_areas_and_correlations_too(followed, rte):
    config = load_yaml(RunConfig, followed / CONFIG_FILE)
    assert config.task.labels == ("entailment", "not_entailment")
    records = read_records(rte).records
    engine = triptych.load(followed / "model")
    premises, hypotheses = [r.premise for r in records], [r.hypothesis for r in records]
    shares = engine.label_texts(premises, hypotheses)
    assert shares[3] == pytest.approx(engine.label_texts(premises[3], hypotheses[3]), rel=1e-4)
    scores = [row["not_entailment"] for row in shares]
    guesses = [next(iter(row)) == "not_entailment" for row in shares]
    right = [r.label == "not_entailment" for r in records]
    found = values_of(evaluate_model(followed / "model", "classification", rte))
    assert found["accuracy"] == pytest.approx(np.mean(np.array(guesses) == np.array(right)))
    assert found["auroc"] == pytest.approx(compute_auroc(scores, right))
    assert found["f1"] == pytest.approx(compute_f1(guesses, right))
    assert found["matthews"] == pytest.approx(compute_matthews(guesses, right))


def test_numbers_are_predicted_where_labels_are_numbers(tmp_path):
    path = tmp_path / "train.tsv"
    rows = [f"{i}\tg\tf\t1\t1\ts\ts\ta star\ta {COLORS[i % 3]} star\t{i % 6}.5" for i in range(12)]
    rows = [row.replace("5.5", "5.0") for row in rows]
    path.write_text("\n".join([STS, *rows]) + "\n")
    source = DataSourceConfig(path=str(path))
    train_run(small_run("classify.texts", source), tmp_path / "run")
    config = load_yaml(RunConfig, tmp_path / "run" / CONFIG_FILE)
    assert (config.task.target, config.task.labels) == ("number", ())
    engine = triptych.load(tmp_path / "run" / "model")
    records = read_records(source).records
    values = [engine.label_texts(r.premise, r.hypothesis)["value"] for r in records]
    truth = [r.label for r in records]
    found = values_of(evaluate_model(tmp_path / "run" / "model", "classification", source))
    assert found == pytest.approx(
        {
            "pearson": compute_pearson(values, truth),
            "spearman": compute_spearman(values, truth),
        },
        abs=1e-4,
    )


def test_a_run_from_a_folder_takes_its_model_and_a_fresh_head(tmp_path, judged, world):
    source = source_of(world, "mplug.vqa")
    run = small_run("classify.answers", source)
    run = replace(run, model=replace(run.model, init_from=str(judged / "model")))
    run = replace(run, optim=replace(run.optim, learning_rate=1e-12, vision_learning_rate=1e-12,
                                     warmup_learning_rate=0.0, min_learning_rate=0.0))  # fmt: skip
    train_run(run, tmp_path / "run")
    before = load_model_folder(judged / "model").state_dict
    after = load_model_folder(tmp_path / "run" / "model").state_dict
    name = "text_encoder.embedding.word.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


def test_an_interrupted_run_goes_on_bitwise(tmp_path, judged, world, monkeypatch):
    def interrupt(task, step):
        if step == 3:
            raise KeyboardInterrupt

    run = small_run("classify.pairs", pairs_source(world), checkpoint_every_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(ImageTextClassification, "after_step", interrupt)
        with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
            train_run(run, tmp_path / "run")
    assert resume_run(tmp_path / "run").step == 4
    for part in ("state_dict", "head"):
        found = getattr(load_model_folder(tmp_path / "run" / "model"), part)
        expected = getattr(load_model_folder(judged / "model"), part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_a_folder_was_not_trained_for_is_refused(answered, judged, rte, tmp_path):
    with pytest.raises(CapabilityError, match=r"classify\.pairs --data \S+ --init-from"):
        evaluate_model(answered / "model", "classification", rte)
    with pytest.raises(CapabilityError, match="does not teach `label_texts`"):
        triptych.load(judged / "model").label_texts("a text")
    with pytest.raises(CapabilityError, match="does not teach `answer`"):
        triptych.load(judged / "model").answer("x.png", "why?")


def test_a_head_that_is_missing_is_named(answered, world, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (answered / "model").iterdir():
        if path.name not in ("head.safetensors", "SHA256SUMS"):
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"head\.safetensors does not fit"):
        triptych.load(folder)
    with pytest.raises(CheckpointError, match=r"head\.safetensors does not fit"):
        evaluate_model(folder, "vqa", source_of(world, "mplug.vqa", "test"))


def test_too_few_classes_or_answers_are_named(tmp_path, world):
    source = source_of(world, "mplug.vqa")
    run = small_run("classify.answers", source)
    often = replace(run, task=replace(run.task, min_answer_count=10_000))
    with pytest.raises(DataError, match="no answer belongs to 10000 questions"):
        train_run(often, tmp_path / "a")
    long = replace(run, task=replace(run.task, max_text_tokens=10_000))
    with pytest.raises(ConfigError, match=r"10000 tokens .*task\.max_text_tokens"):
        train_run(long, tmp_path / "b")


@pytest.mark.slow
def test_pairs_and_answers_are_learned(tmp_path):
    """Plain colours: 90 steps are enough to name them, and to tell a right name from a wrong."""
    lines = {"vqa": [], "memes": []}
    for number in range(24):
        color = COLORS[number % 3]
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., number % 3] = 120 + 5 * number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        said = COLORS[(number + number // 3 % 2) % 3]
        lines["vqa"].append(
            {"image": f"{number}.png", "question": "which color?", "answers": [color]}
        )
        lines["memes"].append(
            {"id": number, "img": f"{number}.png", "text": f"it is {said}",
             "label": int(said == color)}
        )  # fmt: skip
    for name, entries in lines.items():
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (tmp_path / f"{name}.jsonl").write_text(text)
    scores = {}
    for name, recipe in (("vqa", "classify.answers"), ("memes", "classify.pairs")):
        source = DataSourceConfig(path=str(tmp_path / f"{name}.jsonl"))
        run = small_run(recipe, source, max_steps=90, global_batch_size=12)
        run = replace(run, model=replace(run.model, image_size=32),
                      optim=replace(run.optim, warmup_steps=10))  # fmt: skip
        if name == "memes":
            run = replace(run, task=replace(run.task, text_field="text"))
        train_run(run, tmp_path / name)
        task = "vqa" if name == "vqa" else "classification"
        scores |= values_of(evaluate_model(tmp_path / name / "model", task, source))
    assert scores["vqa"] == 1.0
    assert scores["auroc"] > 0.95
