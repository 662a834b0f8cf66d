"""Images classified, segmented: trained for a few steps, stored, scored and served."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import triptych
from triptych.cli.main import main
from triptych.core.errors import CapabilityError, DataError
from triptych.data.manifest import read_records
from triptych.data.masks import decode_mask
from triptych.data.records import ImageSource
from triptych.scenes.write import write_scenes
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run
from triptych.workflows.scene_data import format_source

from .small_runs import small_run

MODELS = ("mplug_tiny", "vlmo_tiny", "flava_tiny")


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "s"
    return write_scenes(folder, 40, num_test=40, formats=("classes", "masks"))


def trained(recipe, world, kind, folder, model, **task):
    run = small_run(recipe, format_source(world, kind, "train"), max_steps=2)
    run = replace(run, model=replace(run.model, name=model, image_size=64))
    train_run(replace(run, task=replace(run.task, **task)), folder)
    return folder / "model"


@pytest.fixture(scope="module")
def classifier(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c") / "run"
    shape = {"label_pattern": "_(.+)$"}
    return trained("classify.images", world, "classes", folder, "vlmo_tiny", **shape)


@pytest.fixture(scope="module", params=MODELS)
def segmenter(request, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s") / "run"
    head = {"head": "linear"} if request.param == "flava_tiny" else {"channels": 16}
    return trained("segment.images", world, "masks", folder, request.param, **head)


def test_classes_are_learned_stored_scored_and_served(classifier, world, capsys):
    stored = json.loads((classifier / "config.json").read_text())
    labels = stored["task"]["labels"]
    assert stored["trained_for"] == ["image_classification"]
    assert set(labels) <= {"circle", "square", "triangle", "star", "cross", "heart"}
    source = format_source(world, "classes", "test")
    kept = []
    values = evaluate_model(classifier, "image_classification", source, keep=kept.append)
    found = {value.name: value.value for value in values}
    truth = [str(r.label).split("_")[1] for r in read_records(source).records]
    texts = [text for batch in kept for text in batch.texts]
    hits = [a == b for a, b in zip(texts, truth, strict=True)]
    assert found["image_classification"] == pytest.approx(np.mean(hits))
    shares = [np.mean([h for h, t in zip(hits, truth, strict=True) if t == c]) for c in set(truth)]
    assert found["image_classification_per_class"] == pytest.approx(np.mean(shares))
    assert ("image_classification_top5" in found) == (len(labels) > 5)
    image = str(read_records(source).records[0].image)
    engine = triptych.load(classifier, precision="fp32")
    (shares,) = engine.classify([image])
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(shares) == set(labels)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert main(["classify", str(classifier), image, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == list(shares)[:2]
    with pytest.raises(DataError, match="has its own classes: omit the labels"):
        engine.classify(image, ["a", "b"])
    with pytest.raises(CapabilityError, match=r"vlmo.segmentation --data"):
        engine.segment(image)


@pytest.mark.parametrize("model", ["mplug_tiny", "flava_tiny"])
def test_other_families_learn_classes(world, tmp_path, model):
    folder = trained("classify.images", world, "classes", tmp_path / "run", model)
    values = evaluate_model(folder, "image_classification", format_source(world, "classes", "test"))
    assert values[0].num_items == 8


def test_masks_are_learned_stored_scored_and_served(segmenter, world, tmp_path, capsys):
    stored = json.loads((segmenter / "config.json").read_text())
    assert stored["task"]["classes"][0] == "background"
    assert len(stored["task"]["classes"]) == 7
    source = format_source(world, "masks", "test")
    records = read_records(source).records
    values = evaluate_model(segmenter, "segmentation", source)
    found = {value.name: value for value in values}
    engine = triptych.load(segmenter)
    masks = engine.segment([str(record.image) for record in records])
    truths = [decode_mask(record.mask) for record in records]
    right = sum(int((m == t).sum()) for m, t in zip(masks, truths, strict=True))
    assert found["pixel_accuracy"].value == pytest.approx(right / (40 * 64 * 64))
    out, image = tmp_path / "mask.png", str(records[0].image)
    Image.open(image).resize((31, 47)).save(tmp_path / "small.png")
    capsys.readouterr()
    small = str(tmp_path / "small.png")
    assert main(["segment", str(segmenter), small, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = decode_mask(ImageSource(str(out)))
    assert written.shape == (47, 31)
    np.testing.assert_array_equal(written, engine.segment(small))
    shares = {name: (written == k).mean() for k, name in enumerate(stored["task"]["classes"])}
    assert told["shares"] == {n: pytest.approx(s, abs=1e-5) for n, s in shares.items() if s}
    assert main(["segment", str(segmenter), image, "--out", str(tmp_path / "m.jpg")]) == 2
    assert "masks are written as PNG" in capsys.readouterr().err


def test_a_bad_mask_is_replaced_in_training_and_named_in_scores(world, tmp_path):
    lines = world.masks("train").read_text().splitlines()
    bad = json.loads(lines[0]) | {"mask": "masks/none.png"}
    lines[0] = json.dumps(bad)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    source = format_source(world, "masks", "train")
    source = replace(source, path=str(manifest))
    run = small_run("segment.images", source, max_steps=6)
    run = replace(
        run, model=replace(run.model, image_size=64), data=replace(run.data, max_bad_share=0.1)
    )
    train_run(replace(run, task=replace(run.task, head="linear")), tmp_path / "run")
    listed = (tmp_path / "run" / "skipped.jsonl").read_text()
    assert "masks/none.png: there is no such file" in listed
    model = tmp_path / "run" / "model"
    with pytest.raises(DataError, match=r"none.png: there is no such file"):
        evaluate_model(model, "segmentation", source)
    value = evaluate_model(model, "segmentation", source, max_bad_share=0.1)[0]
    assert value.num_items == 39
    assert "1 of 40 samples skipped" in value.protocol
