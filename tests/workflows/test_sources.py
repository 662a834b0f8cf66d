"""Runs on several sources: joined, or drawn by their ratios, and resumed."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.train.toy import exact_lines
from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.config import load_yaml
from triptych.core.errors import ConfigError, DataError
from triptych.core.outputs import BatchKind
from triptych.data.mixture import SourceOrder
from triptych.data.skips import SkipLog
from triptych.data.source import DataSourceConfig, parts_note
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.tasks.finetuning.captioning import Captioning
from triptych.text import Tokenizer
from triptych.train.interrupts import TrainingInterrupted
from triptych.train.sources import BatchSource
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import CONFIG_FILE, resume_run, train_run
from triptych.workflows.sources import ReadSource, TrainingData, read_training_data, training_loader

from .small_runs import small_run, source_of

RATIOS = (1.0, 1.0)


@pytest.fixture(scope="module")
def sources(scenes, tmp_path_factory):
    """The scenes' captions, and a manifest with the same stem that names three of the images."""
    first = source_of(scenes, "mplug.caption")
    images = sorted(scenes.split_images("train").iterdir())[:3]
    path = tmp_path_factory.mktemp("more") / f"{scenes.karpathy.stem}.jsonl"
    lines = [{"image": str(p), "caption": f"image {n}"} for n, p in enumerate(images)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return first, DataSourceConfig(path=str(path))


def drawn_run(sources, **train):
    with_ratios = [replace(s, ratio=ratio) for s, ratio in zip(sources, RATIOS, strict=True)]
    settings = {"max_steps": 6, "log_every_steps": 1, "checkpoint_every_steps": 3} | train
    run = small_run("mplug.caption", *with_ratios, **settings)
    return replace(run, model=replace(run.model, image_size=32))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("drawn") / "run"
    train_run(drawn_run(sources), folder)
    return folder


def test_a_file_of_several_parts_that_is_read_whole_says_so(scenes, tmp_path, capsys):
    whole = replace(source_of(scenes, "mplug.caption"), split=None)
    train_run(small_run("mplug.caption", whole, max_steps=1), tmp_path / "whole")
    said = " ".join(capsys.readouterr().out.split())
    note = parts_note(whole.path, ("compositional", "test", "train", "val"))
    assert note in said
    assert "holds the parts compositional, test, train, val, and all of them are read" in note
    told = []
    evaluate_model(tmp_path / "whole" / "model", "caption", whole, limit=2, on_skipped=told.append)
    assert told == [note]
    train_run(
        small_run("mplug.caption", replace(whole, split="val"), max_steps=1), tmp_path / "val"
    )
    assert "all of them" not in capsys.readouterr().out


def test_steps_of_each_source_are_counted_under_its_name(drawn, sources):
    order = SourceOrder(RATIOS, seed=0)
    steps = [order.at(step) for step in range(6)]
    assert set(steps) == {0, 1}
    stem = sources[0].path.split("/")[-1].removesuffix(".json")
    names = [stem, f"{stem}_2"]  # of one stem: told apart by a number
    for line in exact_lines(drawn):
        counts = Counter(steps[: line["step"]])
        assert [line[f"source/{name}/steps"] for name in names] == [counts[0], counts[1]]
        name = names[steps[line["step"] - 1]]
        assert line[f"source/{name}/caption"] == line["loss/caption"]


def test_an_interrupted_run_goes_on_bitwise(tmp_path, drawn, sources, monkeypatch):
    def interrupt(task, step):
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Captioning, "after_step", interrupt)
        with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
            train_run(drawn_run(sources), tmp_path / "run")
    config = load_yaml(RunConfig, tmp_path / "run" / CONFIG_FILE)
    assert [source.ratio for source in config.data.train] == list(RATIOS)
    assert resume_run(tmp_path / "run").step == 6
    assert exact_lines(tmp_path / "run") == exact_lines(drawn)
    found = load_model_folder(tmp_path / "run" / "model").state_dict
    expected = load_model_folder(drawn / "model").state_dict
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_ratios_sources_are_one_dataset(tmp_path, sources):
    config = small_run("mplug.caption", *sources)
    data = read_training_data(config, tmp_path)
    assert data.batch_sources(Plain()) == ()
    assert len(data.records) == 32 * 2 + 3
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        read_training_data(replace(config, data=replace(config.data, train=())), tmp_path)


class Plain:
    batch_keys = frozenset({"image"})
    objective_names = frozenset({"x"})


class Mixed(Plain):
    batch_kinds = {  # noqa: RUF012 - a constant
        "pair": BatchKind(frozenset({"image"}), frozenset({"x"})),
        "image": BatchKind(frozenset({"image"}), frozenset({"x"})),
        "text": BatchKind(frozenset({"text"}), frozenset({"x"})),
    }


def read(tmp_path, name, entry, **settings):
    path = tmp_path / name
    path.write_text(json.dumps(entry) if isinstance(entry, dict) else entry)
    return DataSourceConfig(path=str(path), **settings)


def test_kinds_are_those_of_the_first_record_unless_they_are_said(tmp_path, sources):
    labelled = {"image": str(sources[1].path), "label": "cat"}
    found = (
        sources[1],
        read(tmp_path, "labels.jsonl", labelled),
        read(tmp_path, "corpus.txt", "a text\n"),
        replace(sources[1], kind="image", ratio=0.5, name="own"),
    )
    data = read_training_data(small_run("flava.joint", *found), tmp_path / "run")
    stem = data.sources[0].name
    assert data.batch_sources(Mixed()) == (
        BatchSource(name=stem, kind="pair"),
        BatchSource(name="labels", kind="image"),
        BatchSource(name="corpus", kind="text"),
        BatchSource(name="own", kind="image"),
    )
    assert all(source.kind is None for source in data.batch_sources(Plain()))
    unknown = read(
        tmp_path, "statements.jsonl", {"premise": "a", "hypothesis": "b", "label": "neutral"}
    )
    only = read_training_data(small_run("classify.texts", unknown), tmp_path / "b")
    with pytest.raises(ConfigError, match="set kind to pair, image or text"):
        only.batch_sources(Mixed())


def test_each_kind_has_its_own_collator(tmp_path, sources):
    """Batches of a mixed task: the collator that is asked for by each source's kind."""
    config = small_run("mplug.caption", *sources)
    asked = []

    class Nothing:
        needs_boxes = False

        def text_sample(self, record, rng):
            return 0

        def batch(self, samples):
            return {"text": torch.zeros(len(samples))}

    def collator_of(kind):
        asked.append(kind)
        return Nothing()

    data = read_training_data(config, tmp_path)
    labels = data.batch_sources(Mixed())
    batches = iter(training_loader(config, data, labels, collator_of, 0))
    order = SourceOrder((1.0, 1.0), seed=0)
    assert [int(next(batches)["source"]) for _ in range(8)] == [order.at(s) for s in range(8)]
    batches.close()
    assert asked == ["pair", "pair"]


def test_a_source_without_records_is_named(tmp_path):
    empty = ReadSource(DataSourceConfig(path="x.jsonl"), "x", [])
    data = TrainingData((empty,), SkipLog(None, 1))
    with pytest.raises(DataError, match="no record"):
        training_loader(small_run("mplug.caption"), data, (), lambda kind: None, 0)


@pytest.mark.parametrize("ratio", [-1.0, float("nan"), float("inf")])
def test_a_ratio_is_a_number_of_at_least_nothing(ratio):
    with pytest.raises(ConfigError, match="ratio"):
        DataSourceConfig(path="x", ratio=ratio)


@pytest.mark.parametrize("recipe", ["flava.text", "vlmo.language", "classify.texts"])
def test_long_texts_of_language_stages_lose_nothing(tmp_path, recipe):
    sentences = [f"sentence number {number} has eight words in it." for number in range(40)]
    path = tmp_path / "texts.jsonl"
    label = {"label": "news"} if recipe == "classify.texts" else {}
    path.write_text(json.dumps({"text": " ".join(sentences)} | label))
    config = build_recipe(recipe, "smoke")
    source = DataSourceConfig(path=str(path))
    config = replace(config, data=replace(config.data, train=(source,)))
    data = read_training_data(config, tmp_path / "run")
    texts = [record.text for record in data.records]
    assert " ".join(texts) == " ".join(sentences)
    if label:  # a class is that of the whole text
        assert len(texts) == 1
        return
    length = getattr(config.task, "max_text_tokens", config.captions.max_text_tokens)
    tokenizer = Tokenizer.train(texts, 200)
    assert len(texts) > 4
    assert all(len(tokenizer.encode_words(text)[0]) + 2 <= length for text in texts)
