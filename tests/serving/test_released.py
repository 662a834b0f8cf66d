"""Folders that transformers writes, loaded as they are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import triptych
from tests.checkpoint.test_hub import fake_hub
from tests.parity import flava_oracle as oracle
from triptych.core.errors import CheckpointError
from triptych.text import Tokenizer

WORDS = ["a", "photo", "of", "cat", "dog", "two", "red", ",", ".", "!", "x", "y", "z"]
TEXTS = ["a photo of a cat", "Two DOGS, red!"]


def _vocabulary():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rest = [*WORDS, "##s", *(chr(c) for c in range(97, 97 + 23))]
    tokens = list(dict.fromkeys([*special, *rest]))
    return tokens + [f"[unused{i}]" for i in range(oracle.VOCABULARY - len(tokens))]


def write_folder(folder, *, safe=True, tokenizer="vocab.txt"):
    """Save transformers' model, tokenizer and processor settings as save_pretrained does."""
    config = oracle.released_config(**oracle.SIZES["tiny"])
    model = oracle.released_model(config)
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(_vocabulary()) + "\n")
    if tokenizer == "tokenizer.json":
        Tokenizer.load(folder / "vocab.txt").save(folder)
        (folder / "vocab.txt").unlink()
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.25, 0.3],
                "size": {"height": 32, "width": 32},
                "crop_size": {"height": 32, "width": 32},
            }
        )
    )
    return model


@pytest.mark.parametrize(("safe", "tokenizer"), [(True, "vocab.txt"), (False, "tokenizer.json")])
def test_a_folder_gives_transformers_embeddings_and_scores(tmp_path, safe, tokenizer):
    from transformers import BertTokenizer, FlavaImageProcessorPil

    theirs = write_folder(tmp_path / "flava", safe=safe, tokenizer=tokenizer)
    (tmp_path / "vocab.txt").write_text("\n".join(_vocabulary()) + "\n")
    processor = FlavaImageProcessorPil(
        size={"height": 32, "width": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.3],
    )
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((50, 40), Image.Resampling.BICUBIC)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    words = BertTokenizer(str(tmp_path / "vocab.txt"))(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = theirs.flava.get_text_features(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        ).pooler_output[:, 0]
        embedded = theirs.flava.get_image_features(pixels).pooler_output[:, 0]
        fused = theirs.flava(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=pixels.expand(2, -1, -1, -1),
        ).multimodal_embeddings
        scores = torch.softmax(theirs.itm_head(fused), dim=-1)[:, 1]

    model = triptych.load(tmp_path / "flava", device="cpu", precision="fp32")
    normalise = torch.nn.functional.normalize
    np.testing.assert_allclose(model.embed_texts(TEXTS), normalise(states, dim=-1), atol=1e-5)
    np.testing.assert_allclose(
        model.embed_images(image), normalise(embedded, dim=-1)[0], atol=2e-3
    )  # pixels are rounded at different places
    np.testing.assert_allclose(model.match(image, TEXTS), scores, atol=2e-3)


def test_faults_of_a_folder_are_named(tmp_path):
    folder = tmp_path / "flava"
    write_folder(folder)
    settings = folder / "preprocessor_config.json"
    settings.write_text(json.dumps({"size": {"height": 224, "width": 224}}))
    with pytest.raises(CheckpointError, match="224 px but the model takes 32"):
        triptych.load(folder)
    settings.write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        triptych.load(folder)
    settings.unlink()
    (folder / "vocab.txt").write_text("\n".join([*_vocabulary(), "more"]) + "\n")
    with pytest.raises(CheckpointError, match="121 tokens but the model knows 120"):
        triptych.load(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer"):
        triptych.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        triptych.load(folder)


def test_a_hub_id_loads_like_its_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "snapshot")
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        return str(tmp_path / "snapshot")

    fake_hub(monkeypatch, download)
    found = triptych.load("owner/name", device="cpu").embed_texts(TEXTS)
    assert asked == ["owner/name"]
    expected = triptych.load(tmp_path / "snapshot", device="cpu").embed_texts(TEXTS)
    np.testing.assert_array_equal(found, expected)


def test_a_folder_of_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="type 'bert'; of those, only flava"):
        triptych.load(tmp_path)
