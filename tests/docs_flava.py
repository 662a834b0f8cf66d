"""What docs/flava.md names: a transformers folder, a mixture, classes, memes and sentences."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from triptych.checkpoint.foreign import write_foreign_folder
from triptych.core.config import save_yaml
from triptych.data.source import DataSourceConfig
from triptych.models.dvae.config import DVAEConfig, codebook_image_size
from triptych.models.families import VARIANTS
from triptych.models.flava.config import FLAVAConfig, FLAVAFusionConfig, FLAVAVisionConfig
from triptych.models.flava.convert import export_state_dict, folder_config
from triptych.models.flava.model import FLAVA
from triptych.nn.encoder import TextConfig
from triptych.recipes.registry import build_recipe

from .docs_files import NUM_IMAGES, VOCABULARY, write_user_data, write_vocabulary


def small_flava(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Return the kinds of parts of the released variant at a few thousand weights."""
    size = image_size or 32
    return FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=size, patch_size=16, embed_dim=32, depth=1, num_heads=2
        ),
        text=TextConfig(
            vocab_size=vocab_size or len(VOCABULARY),
            embed_dim=32,
            num_heads=2,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=1,
        fusion=FLAVAFusionConfig(embed_dim=32, depth=1, num_heads=2),
        proj_dim=32,
        num_codes=16,
        codebook=DVAEConfig(
            image_size=codebook_image_size(size, 16),
            num_codes=16,
            hidden_dim=4,
            blocks_per_group=1,
            has_decoder=False,
        ),
        released_poolers=True,
    )


def attended_flava(*, image_size: int | None = None, vocab_size: int | None = None) -> FLAVAConfig:
    """Return the same with padding attended."""
    config = small_flava(image_size=image_size, vocab_size=vocab_size)
    return replace(config, pad_attention="attended")


def write_released(folder: Path) -> None:
    """Write a folder as transformers does."""
    torch.manual_seed(0)
    model = FLAVA(small_flava())
    plain = folder_config(model)
    for part in ("image_config", "text_config", "multimodal_config"):
        plain[part] |= {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    write_foreign_folder(folder, export_state_dict(model), {"config.json": plain})
    write_vocabulary(folder / "vocab.txt")
    settings = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_classes(folder: Path) -> None:
    """Write two class folders of four images each."""
    for name, color in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            shade = tuple(min(255, c + 9 * number) for c in color)
            Image.new("RGB", (40, 40), shade).save(folder / name / f"{number}.png")


def prepare_flava(folder: Path, monkeypatch) -> None:
    """Write what docs/flava.md names, and make its variants small."""
    for name, build in (("flava_full", small_flava), ("flava_full_attended", attended_flava)):
        monkeypatch.setitem(VARIANTS._entries, name, build)
    write_user_data(folder)
    write_released(folder / "flava-full")
    write_classes(folder / "classes")
    corpus = [f"a dog number {i} runs" for i in range(NUM_IMAGES)]
    (folder / "corpus.txt").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    memes = [
        {"image": f"photos/{i + 1}.jpg", "text": f"dog {i} runs", "label": i % 2}
        for i in range(NUM_IMAGES)
    ]
    sentences = [{"text": line, "label": str(i % 2)} for i, line in enumerate(corpus)]
    for name, entries in (("memes", memes), ("sentences", sentences)):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "SST-2").mkdir()
    for name in ("train", "dev"):
        lines = [f"{line}\t{i % 2}" for i, line in enumerate(corpus)]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    (folder / "templates.txt").write_text("a picture of a {}\nthis is {}\n", encoding="utf-8")
    run = build_recipe("flava.joint", "smoke")
    sources = (
        DataSourceConfig(path="my.jsonl", kind="pair", ratio=3.0),
        DataSourceConfig(path="my.jsonl", kind="image", ratio=1.0),
        DataSourceConfig(path="corpus.txt", reader="text", kind="text", ratio=1.0),
    )
    quiet = replace(run.train, num_threads=1, progress="off")
    run = replace(run, data=replace(run.data, train=sources), train=quiet)
    save_yaml(run, folder / "mixture.yaml")
