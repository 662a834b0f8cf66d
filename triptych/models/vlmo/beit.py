"""VLMo's vision experts, attention and image positions from BEiT (paper, section 3.4, stage 1).

Two layouts, each as BEiT's own code and as transformers names it: fine-tuned files have a position
table in every block and no last norm; self-supervised ones share one table, and have the norm and a
mask token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.models.conversion import (
    ImportReport,
    KeyTable,
    explain_rest,
    first_reason,
    gather_tensors,
    linear_keys,
    load_tensors,
    used_names,
)
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.positions import num_image_rows, resize_relative_table

TABLES = "relative_position_bias_table"
OUR_TABLE = "trunk.relative_positions.table"
SHARED_TABLE = f"rel_pos_bias.{TABLES}"

_TRANSFORMERS = [  # how transformers names what BEiT's own code calls ..., in order
    (r"^beit\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(attention\.attention\.)?relative_position_bias\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.lambda_", ".gamma_"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^classifier\.", "head."),
]

_DROPPED = [
    (r".*relative_position_index", "index buffer"),
    (r"(head|lm_head)\..*", "head of BEiT's own task"),
    (r"fc_norm\..*", "norm of BEiT's mean-pooled state"),
    (r"norm\..*", "last norm"),
    (r"mask_token", "mask token: build the model with mask_token = True"),
]


def is_beit(foreign: Mapping[str, Tensor]) -> bool:
    """Say whether a state dict is BEiT's, by its own names or by those of transformers."""
    marks = r"blocks\.0\.attn\.q_bias|(beit\.)?(encoder\.layer|layers)\.0\.lambda_1"
    return any(re.fullmatch(marks, name) for name in foreign)


def import_beit_state(foreign: Mapping[str, Tensor], model: VLMo) -> ImportReport:
    """Load BEiT's weights into the parts of VLMo that read images.

    The type vector of images, which BEiT has not, is set to zero, so that an image's states are
    BEiT's. (The released code leaves a random vector there.)

    Args:
        foreign: BEiT's tensors by name, unwrapped.
        model: Changed in place; the parts for text keep their values.

    Returns:
        What became of every tensor.
    """
    names, report = beit_names(foreign), ImportReport()
    config = model.config
    table, mine = _key_table(config, names), model.state_dict()
    found = gather_tensors(names, mine, table, {}, report)
    positions = _relative_rows(names, config)
    if positions is not None and OUR_TABLE in mine:
        rows = mine[OUR_TABLE].clone() if not mine[OUR_TABLE].is_meta else mine[OUR_TABLE]
        if rows.is_meta:
            rows = torch.zeros(rows.shape)
        rows[: len(positions)] = positions
        found[OUR_TABLE] = rows
        report.missing.remove(OUR_TABLE)
        report.loaded.append(OUR_TABLE)
    types = mine["modality_embedding.weight"]
    types = torch.zeros(types.shape) if types.is_meta else types.clone()
    types[1:] = 0
    found["modality_embedding.weight"] = types
    used = used_names(table) | {name for name in names if name.endswith(TABLES)}
    explain_rest(names, used, lambda name: first_reason(name, _DROPPED), report)
    load_tensors(model, found)
    return report


def beit_names(foreign: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of BEiT's own code; query, key and value may stay apart.

    Where transformers has two last norms, the outer one, which is applied last, is taken.
    """
    renamed: dict[str, Tensor] = {}
    for name in sorted(foreign, key=lambda n: not n.startswith("beit.")):
        short = name
        for pattern, replacement in _TRANSFORMERS:
            short = re.sub(pattern, replacement, short)
        tensor = foreign[name]
        renamed[short] = tensor.flatten() if short in ("cls_token", "mask_token") else tensor
    return renamed


def _key_table(config: VLMoConfig, names: Mapping[str, Tensor]) -> KeyTable:
    table: KeyTable = {"class_embedding": ("cls_token",)}
    if config.mask_token:
        table["mask_token"] = ("mask_token",)
    table |= linear_keys("patch_embedding", "patch_embed.proj")
    table |= linear_keys("trunk.norm", "norm")
    packed = "blocks.0.attn.qkv.weight" in names
    for layer in range(config.depth):
        ours, theirs = f"trunk.blocks.{layer}", f"blocks.{layer}"
        parts = (f"{theirs}.attn.qkv.weight",)
        biases = (f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias")
        if not packed:
            parts = tuple(f"{theirs}.attn.{part}.weight" for part in "qkv")  # type: ignore[assignment]
            biases = (f"{theirs}.attn.q.bias", f"{theirs}.attn.v.bias")
        table[f"{ours}.attention.qkv.weight"] = parts
        table[f"{ours}.attention.query_bias"] = biases[:1]
        table[f"{ours}.attention.value_bias"] = biases[1:]
        table[f"{ours}.attention_scale"] = (f"{theirs}.gamma_1",)
        table[f"{ours}.mlp_scale"] = (f"{theirs}.gamma_2",)
        table |= linear_keys(f"{ours}.attention.out", f"{theirs}.attn.proj")
        table |= linear_keys(f"{ours}.attention_norm", f"{theirs}.norm1")
        table |= linear_keys(f"{ours}.experts.image.norm", f"{theirs}.norm2")
        table |= linear_keys(f"{ours}.experts.image.mlp.up", f"{theirs}.mlp.fc1")
        table |= linear_keys(f"{ours}.experts.image.mlp.down", f"{theirs}.mlp.fc2")
    return table


def _relative_rows(names: Mapping[str, Tensor], config: VLMoConfig) -> Tensor | None:
    """Return the image rows (I, depth·H) of our table, at the model's grid; None if there are none.

    One shared table counts for every block.
    """
    if SHARED_TABLE in names:
        tables = [names[SHARED_TABLE]] * config.depth
    else:
        found = [names.get(f"blocks.{i}.attn.{TABLES}") for i in range(config.depth)]
        tables = [table for table in found if table is not None]
    if len(tables) != config.depth:
        return None
    rows = torch.cat(tables, dim=1)
    grid = (math.isqrt(len(rows) - 3) + 1) // 2
    rows = resize_relative_table(rows, grid, config.grid_size)
    assert len(rows) == num_image_rows(config.grid_size)
    return rows
