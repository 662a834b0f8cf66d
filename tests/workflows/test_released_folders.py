"""A folder of transformers, or its hub id, in place of a model folder of ours."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import triptych
from tests.checkpoint.test_hub import fake_hub
from tests.docs_flava import write_classes, write_released
from triptych.cli.main import main
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransform
from triptych.recipes.config import ModelSource
from triptych.scenes.write import write_scenes
from triptych.serving.inputs import prepare_images
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.frozen import probe_folder
from triptych.workflows.importing import ImportSettings, import_checkpoint
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of, trained_model


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "flava-full"
    write_released(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("world") / "s", 8, num_test=6, formats=("captions",)
    )


@pytest.fixture
def hub(released, monkeypatch):
    """A hub that answers every id with the released folder; the ids that it was asked for."""
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        return str(released)

    fake_hub(monkeypatch, download)
    return asked


def test_eval_ranks_by_the_cosines_of_load(released, world):
    source = source_of(world, "mplug.pretrain", "test")
    found = {m.name: m.value for m in evaluate_model(released, "retrieval", source, rerank_top_k=0)}
    records = read_records(source).records
    engine = triptych.load(released, device="cpu")
    paths = sorted({str(r.image) for r in records})
    images = np.asarray(engine.embed_images(paths))
    texts = np.asarray(engine.embed_texts([r.caption for r in records]))
    best = (texts @ images.T).argmax(axis=1)
    hits = [paths[i] == str(r.image) for i, r in zip(best, records, strict=True)]
    assert found["t2i_r1"] == pytest.approx(np.mean(hits))


def test_probe_and_zero_shot_equal_those_of_the_imported_folder(released, tmp_path, hub):
    classes = tmp_path / "classes"
    write_classes(classes)
    source = DataSourceConfig(path=str(classes))
    own = tmp_path / "own"
    import_checkpoint("flava", released, own, ImportSettings(variant="flava_full"))
    for name in (released, "owner/name"):
        assert evaluate_model(name, "zero_shot", source) == evaluate_model(own, "zero_shot", source)
        assert probe_folder(name, *[source] * 3)[0] == probe_folder(own, *[source] * 3)[0]
    assert set(hub) == {"owner/name"}


def test_an_import_prepares_images_as_the_folder_says(released, tmp_path):
    own, larger = tmp_path / "own", tmp_path / "larger"
    import_checkpoint("flava", released, own, ImportSettings(variant="flava_full"))
    settings = ImportSettings(variant="flava_full", image_size=64)
    import_checkpoint("flava", released, larger, settings)
    for folder, side in ((released, 32), (own, 32), (larger, 64)):
        found = triptych.load(folder, device="cpu").preprocess
        assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
        assert found.image_size == side


def test_transformers_reads_an_export(released, tmp_path):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    import_checkpoint("flava", released, own, ImportSettings(variant="flava_full"))
    assert main(["export", "flava", str(own), str(theirs)]) == 0
    model, info = transformers.FlavaForPreTraining.from_pretrained(theirs, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = load_file(released / "model.safetensors")
    found = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    processor = transformers.FlavaImageProcessorPil.from_pretrained(theirs)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    transform = ImageTransform(triptych.load(own, device="cpu").preprocess, train=False)
    ours = prepare_images([image], [0], transform)[0][0]
    torch.testing.assert_close(pixels, ours, atol=1e-5, rtol=1e-5)


def test_the_command_line_takes_an_id(tmp_path, hub):
    write_classes(tmp_path / "classes")
    scores, data = tmp_path / "scores.json", str(tmp_path / "classes")
    arguments = ["eval", "owner/name", "--task", "zero_shot", "--data", data]
    assert main([*arguments, "--json", str(scores)]) == 0
    assert "zero_shot" in json.dumps(json.loads(scores.read_text()))
    out = tmp_path / "own"
    assert main(["import", "flava", "owner/name", str(out), "--variant", "flava_full"]) == 0
    assert torch.equal(trained_model(out).logit_scale, trained_model("owner/name").logit_scale)


@pytest.mark.parametrize("by_id", [False, True])
def test_a_run_starts_from_it(released, world, tmp_path, hub, by_id):
    start = "owner/name" if by_id else str(released)
    run = small_run("flava.joint", replace(source_of(world, "mplug.pretrain"), kind="pair"),
                    max_steps=1, global_batch_size=4)  # fmt: skip
    source = ModelSource(init_from=start, image_size=64)
    train_run(replace(run, model=source, image=replace(run.image, image_size=64)), tmp_path / "run")
    first, trained = trained_model(released), trained_model(tmp_path / "run" / "model")
    assert trained.image_size == 64  # from 32 px: positions are resized
    before, after = first.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    heads = [name for name in before if name.startswith("mim_head.")]
    assert heads  # on pairs alone, no loss reads this head
    assert all(torch.equal(after[name], before[name]) for name in heads)
    moved = "text_encoder.embedding.word.weight"
    assert 0 < float((after[moved] - before[moved]).abs().max()) < 1e-2
    vocabulary = triptych.load(tmp_path / "run" / "model").tokenizer
    assert vocabulary.vocab_size == triptych.load(released).tokenizer.vocab_size
