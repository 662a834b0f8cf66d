"""Stored codes against those that training computes, and what a wrong store is told."""

import json
from dataclasses import replace

import pytest
import torch

from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data.collate.image import MaskedImageCollator
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE, spread_codes
from triptych.recipes.registry import build_recipe
from triptych.tasks.pretraining import image_tokenizer
from triptych.tasks.pretraining.flava import check_codes
from triptych.text import Tokenizer
from triptych.workflows.scene_data import scene_source
from triptych.workflows.tokenize_images import tokenize_images
from triptych.workflows.trained_model import save_model

WHOLE = ImageTransformConfig(
    image_size=64, crop_scale=None, flip_probability=0.0, randaugment_num_ops=0
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A model folder with a tokenizer of random weights that uses many codes."""
    torch.manual_seed(0)
    config = DVAEConfig(image_size=32, num_codes=40, hidden_dim=8, blocks_per_group=1, code_dim=4)
    model = DVAE(config)
    spread_codes(model.encoder, 0.8 * torch.rand(64, 3, 32, 32) + 0.1, 4.0)
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    run = build_recipe("dvae", "smoke")
    save_model(folder, run, model, Tokenizer.without_words(), 0)
    return folder


def codes_by_image(records, collator):
    """Return the codes, or the tokenizer's view, that a loader gives, by the record's caption."""
    loader = build_loader(
        records, collator, ImageTransform(WHOLE, train=True), seed=0, local_batch_size=8, train=True
    )
    batches = iter(loader)
    found = [next(batches) for _ in range(len(records) // 8)]
    batches.close()
    codes = {}
    for batch in found:
        tensor = batch.get("image_codes", batch.get("codebook_image"))
        for row, index in enumerate(batch["index"].tolist()):
            codes[records[index].caption] = tensor[row]
    return codes


def test_stored_codes_equal_those_of_training(scenes, tokenizer, tmp_path):
    source = scene_source(scenes, "caption", "train")
    found = tokenize_images(source, tokenizer, tmp_path / "shards", samples_per_shard=10)
    records = read_records(source).records
    assert found.num_images == 32
    assert found.num_records == len(records)
    assert found.num_skipped == 0
    assert sorted(p.name for p in (tmp_path / "shards").glob("*.tar")) == [
        f"00000{i}.tar" for i in range(4)
    ]
    stored = read_records(DataSourceConfig(path=str(tmp_path / "shards"))).records
    assert sorted(r.caption for r in stored) == sorted(r.caption for r in records)
    model = image_tokenizer.load(tokenizer)
    online = codes_by_image(records, MaskedImageCollator(WHOLE, patch_size=16, codebook_size=32))
    offline = codes_by_image(stored, MaskedImageCollator(WHOLE, patch_size=16, codebook_size=None))
    common = online.keys() & offline.keys()
    assert len(common) > 40
    for caption in common:
        assert torch.equal(offline[caption], model.codes(online[caption][None])[0])
    assert torch.cat(list(offline.values())).unique().numel() > 5


def test_the_command_says_what_it_wrote(scenes, tokenizer, tmp_path, capsys):
    out = tmp_path / "shards"
    arguments = ["data", "tokenize-images", str(scenes.split_images("val"))]
    assert main([*arguments, "--tokenizer", str(tokenizer), "--out", str(out)]) == 0
    assert "wrote 8 images of 8 records" in capsys.readouterr().out
    about = json.loads((out / "image_codes.json").read_text())
    assert about["num_codes"] == 40
    assert about["image_size"] == 32
    assert main([*arguments, "--tokenizer", str(tokenizer), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_bad_image_is_left_out(scenes, tokenizer, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted(scenes.split_images("val").glob("*.jpg"))[:4]):
        (images / f"{i}.jpg").write_bytes(path.read_bytes() if i != 2 else b"no image")
    source = DataSourceConfig(path=str(images))
    found = tokenize_images(source, tokenizer, tmp_path / "a", max_bad_share=0.5)
    assert (found.num_images, found.num_skipped) == (3, 1)
    assert "2.jpg" in (tmp_path / "a" / "skipped.jsonl").read_text()
    with pytest.raises(DataError, match=r"1 of 4 samples are bad.* with --max-bad-share 0\.25"):
        tokenize_images(source, tokenizer, tmp_path / "b", max_bad_share=0.1)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["skipped.jsonl"]


class _Model:
    """What a FLAVA says about its codes."""

    def __init__(self, codebook):
        self.codebook = codebook
        self.config = type("Config", (), {"num_codes": 40, "codebook_image_size": 32})


def test_training_refuses_codes_of_another_tokenizer(scenes, tokenizer, tmp_path):
    source = DataSourceConfig(path=str(scenes.split_images("val")))
    tokenize_images(source, tokenizer, tmp_path / "shards")
    stored = read_records(DataSourceConfig(path=str(tmp_path / "shards"))).records
    task = replace(build_recipe("flava.image", "smoke").task, stored_codes=True)
    own = image_tokenizer.load(tokenizer).encoder
    check_codes(task, _Model(own), stored)
    check_codes(task, _Model(None), stored)
    other = DVAE(own.config).encoder
    with pytest.raises(DataError, match="another image tokenizer"):
        check_codes(task, _Model(other), stored)
    with pytest.raises(DataError, match="has no stored codes"):
        check_codes(task, _Model(own), read_records(source).records)
