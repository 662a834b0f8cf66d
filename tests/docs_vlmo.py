"""What docs/vlmo.md names: released VLMo weights, a BEiT, image tokenizers, and a corpus."""

from dataclasses import replace
from pathlib import Path

import torch

from triptych.models.families import VARIANTS
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.convert import export_state_dict, released_head_names
from triptych.models.vlmo.model import VLMo
from triptych.tasks.finetuning.base import HeadConfig

from .checkpoint.test_dalle import dalle_classes, encoder
from .docs_files import VOCABULARY, write_user_data, write_vocabulary
from .docs_flava import write_classes
from .docs_flava import write_released as write_released_flava

DEPTH = 3
ANSWERS = ("dog", "cat", "2", "yes")


def small_vlmo(*, image_size: int | None = None, vocab_size: int | None = None) -> VLMoConfig:
    """Return the positions and heads of the paper's base variant at a few thousand weights."""
    return VLMoConfig(
        vocab_size=vocab_size or len(VOCABULARY),
        image_size=image_size or 32,
        embed_dim=32,
        depth=DEPTH,
        num_heads=2,
        fused_from=2,
        proj_dim=32,
    )


def write_beit(path: Path) -> None:
    """Write a self-supervised BEiT in its own layout: one shared position table."""
    width, grid = 32, 2
    rows = (2 * grid - 1) ** 2 + 3
    shapes = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "rel_pos_bias.relative_position_bias_table": (rows, 2),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "lm_head.weight": (8192, width),
        "lm_head.bias": (8192,),
    }
    for layer in range(DEPTH):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.gamma_{i}": (width,) for i in (1, 2)}
        shapes |= {f"{block}.norm{i}.{k}": (width,) for i in (1, 2) for k in ("weight", "bias")}
        shapes |= {f"{block}.attn.{k}_bias": (width,) for k in "qv"}
        shapes |= {f"{block}.attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{block}.attn.proj.weight": (width, width), f"{block}.attn.proj.bias": (width,)}
        shapes |= {f"{block}.mlp.fc1.weight": (4 * width, width), f"{block}.mlp.fc1.bias": (128,)}
        shapes |= {f"{block}.mlp.fc2.weight": (width, 4 * width), f"{block}.mlp.fc2.bias": (width,)}
    torch.save({"model": {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}}, path)


def write_fine_tuned(path: Path, kind: str, head_config: HeadConfig, images: int) -> None:
    """Write a released file with a classifier and without the heads of pre-training."""
    model = VLMo(replace(small_vlmo(), num_image_types=images, mask_token=False))
    width, classes = (64, 2) if images == 2 else (32, len(ANSWERS))
    head = head_config.build(width, classes).state_dict()
    names = released_head_names(head, kind)
    assert names is not None
    unused = ("itm_score.", "itc_", "mlm_score.")
    state = {k: t for k, t in export_state_dict(model).items() if not k.startswith(unused)}
    torch.save(state | {names[name]: tensor for name, tensor in head.items()}, path)


def prepare_vlmo(folder: Path, monkeypatch) -> None:
    """Write what docs/vlmo.md names, and make its variant small."""
    monkeypatch.setitem(VARIANTS._entries, "vlmo_base_patch16", small_vlmo)
    write_user_data(folder)
    write_vocabulary(folder / "vocab.txt")
    lines = [f"a dog number {i} runs" for i in range(12)]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    released = export_state_dict(VLMo(small_vlmo()), temperature=0.05, fused_temperature=0.05)
    released.pop("transformer.mask_token")  # released files have none
    torch.save(released, folder / "vlmo_base_patch16_224.pt")
    write_beit(folder / "beit_base_patch16_224.pth")
    write_fine_tuned(
        folder / "vlmo_base_patch16_480_vqa.pt", "answer_classification", HeadConfig(), 1
    )
    write_fine_tuned(
        folder / "vlmo_base_patch16_384_nlvr2.pt", "vlmo_nlvr2", HeadConfig(hidden_ratio=1.0), 2
    )
    (folder / "answers.txt").write_text("\n".join(ANSWERS) + "\n", encoding="utf-8")
    torch.save(encoder(dalle_classes(monkeypatch)), folder / "encoder.pkl")
    write_released_flava(folder / "flava-full")
    write_classes(folder / "classes")
