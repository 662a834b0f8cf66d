"""What the commands of docs/*.md name: a user's images and manifests, and published weights.

Each page has a function in `PREPARE` that writes its files into an empty folder, and that makes
the paper's variants small, so that a command can be run as it stands.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from triptych.models.families import VARIANTS
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.convert import export_state_dict
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(f"[unused{i}]" for i in range(99, 700)),
    *LETTERS,
    *(f"##{char}" for char in LETTERS),
]
"""A vocab.txt with the special and spare tokens where bert-base-uncased has them."""

NUM_IMAGES = 12


def write_user_data(folder: Path) -> None:
    """Write `photos/1.jpg` and on, and a manifest for each task: captions, questions and so on."""
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    names = [f"photos/{i}.jpg" for i in range(1, NUM_IMAGES + 1)]
    for name in names:
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    labels = ("entailment", "neutral", "contradiction")
    manifests = {
        "my": [{"caption": f"a dog number {i} runs"} for i in range(NUM_IMAGES)],
        "questions": [
            {"question": "what runs ?", "answers": ["dog"] * 7 + ["cat"] * 3}
            for _ in range(NUM_IMAGES)
        ],
        "phrases": [
            {"phrase": f"the dog at {i}", "box": [i, 2, 12, 20]} for i in range(NUM_IMAGES)
        ],
        "pairs": [{"statement": f"dog {i} runs", "label": i % 2 == 0} for i in range(NUM_IMAGES)],
        "entailment": [
            {"hypothesis": f"dog {i} runs", "label": labels[i % 3]} for i in range(NUM_IMAGES)
        ],
    }
    for name, entries in manifests.items():
        lines = []
        for number, entry in enumerate(entries):
            images = {"image": names[number]}
            if name == "pairs":
                images = {"images": [names[number], names[number - 1]]}
            lines.append(json.dumps(images | entry) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_vocabulary(path: Path) -> None:
    """Write a `vocab.txt`."""
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")


def small_mplug(*, image_size: int | None = None, vocab_size: int | None = None) -> MPLUGConfig:
    """Return the order of norms of the paper's variants at a few thousand weights."""
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=image_size or 32, patch_size=16, embed_dim=64, depth=2, num_heads=1
        ),
        text=TextConfig(
            vocab_size=vocab_size or len(VOCABULARY), embed_dim=64, num_heads=4, max_positions=64
        ),
        text_depth=2,
        fusion_depth=2,
        connected_layers=(1,),
        decoder_depth=2,
        proj_dim=16,
    )


def write_bert(folder: Path) -> None:
    """Write a folder as transformers does for a BertForMaskedLM, with its vocabulary."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}
    words = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64}
    bert = BertForMaskedLM(BertConfig(num_attention_heads=4, **sizes, **words))
    folder.mkdir()
    save_file({k: v.clone() for k, v in bert.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(bert.config.to_json_string())
    write_vocabulary(folder / "vocab.txt")


def prepare_mplug(folder: Path, monkeypatch) -> None:
    """Write what docs/mplug.md names: released weights, CLIP's image tower and BERT."""
    for name in ("mplug_base_patch16_256", "mplug_large_patch14_224"):
        monkeypatch.setitem(VARIANTS._entries, name, small_mplug)
    write_user_data(folder)
    write_vocabulary(folder / "vocab.txt")
    torch.manual_seed(0)
    config = dataclasses.replace(small_mplug(), tie_mlm_head=False)
    released = export_state_dict(MPLUG(config))
    torch.save({"model": released}, folder / "mplug_base.pth")
    tower = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in released.items()
        if name.startswith("visual_encoder.visual.")
    }
    torch.save(tower, folder / "ViT-B-16.pt")
    write_bert(folder / "bert-base-uncased")


def prepare_tutorial(folder: Path, monkeypatch) -> None:
    """Write a user's images and manifests."""
    write_user_data(folder)


TUTORIALS = (
    "how-to/completion",
    "how-to/lora",
    "how-to/predict",
    "reference/formats",
    "tutorials/evaluate",
    "tutorials/fine-tune",
    "tutorials/first-run",
    "tutorials/own-data",
)
PREPARE = {"mplug": prepare_mplug} | dict.fromkeys(TUTORIALS, prepare_tutorial)
"""By the page's name: writes its files and makes its variants small."""
