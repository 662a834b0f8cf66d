"""The released VLMo checkpoints: their key table, import and export.

Released files hold, beside the weights, index buffers, position tables of 196 rows that the models
with relative positions never read, temperatures and classifiers. `import_state_dict` names each in
its report. `export_state_dict` writes all that the released module owns, in its shapes, and the
index buffers, which its loader takes away by name where it resizes a table.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CapabilityError, CheckpointError, ConfigError
from triptych.models.conversion import (
    Converter,
    ImportReport,
    KeyTable,
    bert_head_keys,
    explain_rest,
    first_reason,
    gather_tensors,
    linear_keys,
    load_tensors,
    read_scalars,
    split_tensors,
    used_names,
)
from triptych.models.vlmo.beit import import_beit_state, is_beit
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.positions import (
    grid_of_table,
    image_index,
    joint_index,
    resize_relative_table,
    shorten_text_rows,
    text_index,
)
from triptych.nn.positions import resize_position_table

RELEASED_TEXT_TOKENS = 196
"""Texts that the released relative tables have rows for (`max_text_len_of_initckpt`)."""

RELEASED_CAPTION = 40
"""Rows of the text positions that the released module owns (`max_text_len`); with relative ones it
never reads them."""

EXPERTS = {"text": "text", "image": "imag", "fused": "vl"}
"""Our names of the experts, and the released ones."""

TABLE = "relative_position_bias_table"
WORDS = "text_embeddings.word_embeddings.weight"
TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
IMAGE_POSITIONS = "transformer.pos_embed"
OUR_TABLE = "trunk.relative_positions.table"

CONTRAST = {"logit_scale": "logit_scale", "fused_logit_scale": "logit_vl_scale"}
"""log(1/τ) of both ITC losses, as `VLMoPretraining` names them and as the released code does."""

_HEAD_LAYERS = {"0": "0", "1": "1", "3": "4"}
"""Released layers of a classifier and ours, which has a dropout in front of the last one."""

_HEAD_KINDS = {
    "answer_classification": "vqa_classifier",
    "nlvr2": "nlvr2_classifier",
    "vlmo_nlvr2": "nlvr2_classifier",  # in folders of earlier versions
}
"""Kinds of our tasks, and the released classifiers."""

_DROPPED = [
    (r"(text_)?(imag_)?relative_position_index", "index buffer"),
    (r"text_embeddings\.position_ids", "index buffer"),
    (r"logit_(vl_)?scale", "temperature, kept beside the model"),
    (r"(vqa|nlvr2)_classifier\..*", "classifier, which is stored beside the model"),
]


def key_table(config: VLMoConfig) -> KeyTable:
    """Return which released tensors make which of ours.

    Raises:
        CapabilityError: The model shares one FFN or has a convolutional stem, which the released
            layout cannot express.
    """
    if config.experts == "shared":
        raise CapabilityError("experts = 'shared': the released layout has an FFN a modality")
    if config.stem_widths:
        raise CapabilityError(
            f"stem_widths = {config.stem_widths}: the released layout has a linear patch "
            "projection, as the base and large sizes have; train one of these to export it"
        )
    table = _embedding_keys(config)
    for layer in range(config.depth):
        table |= _block_keys(config, layer)
    table |= linear_keys("trunk.norm", "transformer.norm")
    if config.positions == "relative":
        table[OUR_TABLE] = (TABLE,)
    table |= linear_keys("pooler", "pooler.dense") | linear_keys("itm_head", "itm_score.fc")
    table |= bert_head_keys("mlm_head", "mlm_score")
    table["mlm_head.weight"] = ("mlm_score.decoder.weight",)
    for kind in ("image", "text"):
        table[f"{kind}_projection.weight"] = (f"itc_{kind}_proj.fc.weight",)
        if config.fused_contrast:
            table[f"fused_{kind}_projection.weight"] = (f"itc_vl_{kind}_proj.fc.weight",)
    return table


def _embedding_keys(config: VLMoConfig) -> KeyTable:
    table: KeyTable = {
        "class_embedding": ("transformer.cls_token",),
        "modality_embedding.weight": ("token_type_embeddings.weight",),
        "text_embedding.word.weight": (WORDS,),
        "text_embedding.token_type.weight": ("text_embeddings.token_type_embeddings.weight",),
    }
    if config.mask_token:
        table["mask_token"] = ("transformer.mask_token",)
    if config.positions == "absolute":
        table["position_embedding"] = (IMAGE_POSITIONS,)
        table["text_embedding.position.weight"] = (TEXT_POSITIONS,)
    table |= linear_keys("patch_embedding", "transformer.patch_embed.proj")
    return table | linear_keys("text_embedding.norm", "text_embeddings.LayerNorm")


def _block_keys(config: VLMoConfig, layer: int) -> KeyTable:
    ours, theirs = f"trunk.blocks.{layer}", f"transformer.blocks.{layer}"
    table: KeyTable = {
        f"{ours}.attention.qkv.weight": (f"{theirs}.attn.qkv.weight",),
        f"{ours}.attention.query_bias": (f"{theirs}.attn.q_bias",),
        f"{ours}.attention.value_bias": (f"{theirs}.attn.v_bias",),
    }
    if config.layer_scale is not None:
        table[f"{ours}.attention_scale"] = (f"{theirs}.gamma_1",)
        table[f"{ours}.mlp_scale"] = (f"{theirs}.gamma_2",)
    table |= linear_keys(f"{ours}.attention.out", f"{theirs}.attn.proj")
    table |= linear_keys(f"{ours}.attention_norm", f"{theirs}.norm1")
    for mine, name in EXPERTS.items():
        if mine == "fused" and layer < config.fused_from:
            continue
        table |= linear_keys(f"{ours}.experts.{mine}.norm", f"{theirs}.norm2_{name}")
        table |= linear_keys(f"{ours}.experts.{mine}.mlp.up", f"{theirs}.mlp_{name}.fc1")
        table |= linear_keys(f"{ours}.experts.{mine}.mlp.down", f"{theirs}.mlp_{name}.fc2")
    return table


def normalise_names(official: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unwrap a released checkpoint; the class token and image positions lose their batch axis.

    Args:
        official: A flat state dict, or one under "state_dict" (Lightning), "module" (DeepSpeed) or
            "model" (BEiT); names may begin with "module." or "model.".

    Raises:
        CheckpointError: There is no tensor in it.
    """
    for wrapper in ("state_dict", "module", "model"):
        if isinstance(official.get(wrapper), Mapping):
            official = official[wrapper]
    found = {
        re.sub(r"^(model\.|module\.)+", "", name): tensor
        for name, tensor in official.items()
        if isinstance(tensor, Tensor)
    }
    if not found:
        raise CheckpointError(
            "the file holds no state dict: expected tensors, or a mapping under 'state_dict', "
            "'module' or 'model'"
        )
    for name in ("transformer.cls_token", "transformer.mask_token"):
        if name in found:
            found[name] = found[name].flatten()
    if IMAGE_POSITIONS in found and found[IMAGE_POSITIONS].ndim == 3:
        found[IMAGE_POSITIONS] = found[IMAGE_POSITIONS][0]
    return found


def trained_for(names: Iterable[str]) -> str:
    """Say what a released file was trained for: its heads tell."""
    listed = set(names)
    for mark, task in (
        ("itm_score.fc.weight", "pretraining"),
        ("vqa_classifier.0.weight", "vqa"),
        ("nlvr2_classifier.0.weight", "nlvr2"),
        ("itc_image_proj.fc.weight", "retrieval"),
        ("mlm_score.bias", "language"),
    ):
        if any(name.endswith(mark) for name in listed):
            return task
    return "vision"


def config_for(
    foreign: Mapping[str, Any],
    config: VLMoConfig,
    *,
    image_size: int | None = None,
    trained_for: str = "pretraining",
) -> VLMoConfig:
    """Return the config with which a released file loads whole.

    Vocabulary, text length and image size are the file's; the second projections and the mask token
    are skipped where the file has none. A file of the language stage lacks all that pairs need,
    which stays randomly initialised; a BEiT file sets the image size alone.

    Args:
        foreign: A released file, wrapped or bare, of VLMo or BEiT.
        config: A variant of the file's depth and width.
        image_size: Side in pixels; None keeps the file's.
        trained_for: What the file was trained for.
    """
    names = normalise_names(foreign)
    grid = _file_grid(names)
    if image_size is None and grid is not None:
        image_size = grid * config.patch_size
    config = dataclasses.replace(config, image_size=image_size or config.image_size)
    if is_beit(names):
        return config
    fused = [int(m[1]) for m in (re.match(r".*blocks\.(\d+)\.mlp_vl\.", k) for k in names) if m]
    has_pairs = trained_for != "language"
    text_tokens = RELEASED_TEXT_TOKENS
    if config.positions == "absolute" and TEXT_POSITIONS in names:
        text_tokens = len(names[TEXT_POSITIONS])
    types = names.get("token_type_embeddings.weight")
    return dataclasses.replace(
        config,
        vocab_size=len(names[WORDS]) if WORDS in names else config.vocab_size,
        max_text_tokens=text_tokens,
        fused_from=min(fused, default=config.depth) if has_pairs else config.fused_from,
        fused_contrast=config.fused_contrast
        if not has_pairs
        else "itc_vl_image_proj.fc.weight" in names,
        mask_token="transformer.mask_token" in names,
        num_image_types=config.num_image_types if types is None else len(types) - 1,
    )


def import_state_dict(official: Mapping[str, Any], model: VLMo) -> ImportReport:
    """Load a released VLMo or BEiT checkpoint into a model of the same depth and width.

    Position tables are resized to the model's image size and cut to its text length. A model on
    the meta device takes the file's tensors over.

    Args:
        official: What `torch.load` of a released file returns, wrapped or bare.
        model: Changed in place.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: The file holds no state dict.
    """
    foreign, report = normalise_names(official), ImportReport()
    if is_beit(foreign):
        return import_beit_state(foreign, model)
    config, table = model.config, key_table(model.config)
    tensors = gather_tensors(foreign, model.state_dict(), table, _resizes(config), report)
    report.contrast = read_scalars(foreign, CONTRAST)
    if "logit_scale" in report.contrast:
        report.temperature = math.exp(-report.contrast["logit_scale"])
    explain_rest(foreign, used_names(table), lambda name: _reason(name, config), report)
    load_tensors(model, tensors)
    return report


def export_state_dict(
    model: VLMo,
    *,
    temperature: float | None = None,
    fused_temperature: float | None = None,
    with_buffers: bool = True,
) -> dict[str, Tensor]:
    """Return the model under the released names.

    The released module owns text positions with relative ones too, and never reads them: they are
    written as zeros.

    Args:
        model: Read only.
        temperature: τ of ITC, which the task keeps; written as `logit_scale` = ln(1/τ).
        fused_temperature: τ of the second ITC.
        with_buffers: Whether to write the index buffers too.
    """
    foreign = split_tensors(model.state_dict(), key_table(model.config))
    for name in ("transformer.cls_token", "transformer.mask_token"):
        if name in foreign:
            foreign[name] = foreign[name].view(1, 1, -1)
    if IMAGE_POSITIONS in foreign:
        foreign[IMAGE_POSITIONS] = foreign[IMAGE_POSITIONS][None]
    if model.config.positions == "relative":
        foreign[TEXT_POSITIONS] = torch.zeros(RELEASED_CAPTION, model.config.embed_dim)
    for name, value in (("logit_scale", temperature), ("logit_vl_scale", fused_temperature)):
        if value is not None:
            foreign[name] = torch.tensor(-math.log(value))
    return foreign | (_buffers(model.config) if with_buffers else {})


def import_classifier(official: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the classifier of a fine-tuned file as a state dict of `nn.heads.ClassificationHead`.

    Args:
        official: A released VQA or NLVR2 file, wrapped or bare.

    Returns:
        Weights of dense, LayerNorm and dense; None if the file has no classifier.
    """
    found = {}
    for name, tensor in normalise_names(official).items():
        match = re.match(r"(?:vqa|nlvr2)_classifier\.(\d)\.(weight|bias)$", name)
        if match:
            found[f"{_HEAD_LAYERS[match[1]]}.{match[2]}"] = tensor
    return found or None


def released_head_names(names: Iterable[str], kind: str) -> dict[str, str] | None:
    """Return the released names of our classifier's weights.

    Args:
        names: Of its state dict.
        kind: Of the task's config.

    Returns:
        The released name of each; None where the layout has no such classifier.
    """
    back = {ours: theirs for theirs, ours in _HEAD_LAYERS.items()}
    wanted = {f"{layer}.{name}" for layer in back for name in ("weight", "bias")}
    listed = set(names)
    if kind not in _HEAD_KINDS or listed != wanted:
        return None
    return {name: f"{_HEAD_KINDS[kind]}.{back[name[0]]}{name[1:]}" for name in listed}


def resize_model_state(
    state: dict[str, Tensor], config: VLMoConfig, image_size: int
) -> tuple[dict[str, Tensor], VLMoConfig]:
    """Bring one of our own state dicts and its config to another image size."""
    resized = dataclasses.replace(config, image_size=image_size)
    state = dict(state)
    if config.positions == "relative":
        table = state[OUR_TABLE]
        state[OUR_TABLE] = resize_relative_table(table, config.grid_size, resized.grid_size)
    else:
        table = state["position_embedding"]
        state["position_embedding"] = resize_position_table(
            table, resized.num_patches, mode="bicubic"
        )
    return state, resized


def _resizes(config: VLMoConfig) -> dict[str, Any]:
    """Return how tensors of another shape are brought to the model's."""

    def relative(table: Tensor) -> Tensor:
        grid = grid_of_table(table, RELEASED_TEXT_TOKENS)
        table = resize_relative_table(table, grid, config.grid_size)
        return shorten_text_rows(
            table, config.grid_size, RELEASED_TEXT_TOKENS, config.max_text_tokens
        )

    def types(rows: Tensor) -> Tensor:  # further images begin with the first one's type
        more = rows[1:2].expand(max(0, 1 + config.num_image_types - len(rows)), -1)
        return torch.cat([rows, more])[: 1 + config.num_image_types]

    return {
        OUR_TABLE: relative,
        "position_embedding": lambda rows: resize_position_table(
            rows, config.num_patches, mode="bicubic"
        ),
        "text_embedding.position.weight": lambda rows: rows[: config.max_text_tokens],
        "modality_embedding.weight": types,
    }


def _file_grid(foreign: Mapping[str, Tensor]) -> int | None:
    """Return the patches on each side that a file is for; None if nothing tells."""
    if IMAGE_POSITIONS in foreign:
        return math.isqrt(len(foreign[IMAGE_POSITIONS]) - 1)
    try:
        if TABLE in foreign:
            return grid_of_table(foreign[TABLE], RELEASED_TEXT_TOKENS)
    except ConfigError:
        return None
    tables = [t for k, t in foreign.items() if k.endswith(f".{TABLE}")]  # BEiT's
    return (math.isqrt(len(tables[0]) - 3) + 1) // 2 if tables else None


def _buffers(config: VLMoConfig) -> dict[str, Tensor]:
    """Return the index buffers of the released files.

    `position_ids` has the shape that the released module owns, which its loader cuts only together
    with the text positions.
    """
    length, grid = config.max_text_tokens, config.grid_size
    relative = config.positions == "relative"
    rows = RELEASED_CAPTION if relative else length
    buffers = {"text_embeddings.position_ids": torch.arange(rows)[None]}
    if relative:
        buffers["relative_position_index"] = image_index(grid)
        buffers["text_relative_position_index"] = text_index(length, grid, length)
        joint = joint_index(length, 1, grid, length, torch.device("cpu"))
        text_first = torch.arange(len(joint)).roll(length)
        buffers["text_imag_relative_position_index"] = joint[text_first][:, text_first]
    return buffers


def _reason(name: str, config: VLMoConfig) -> str | None:
    """Return why the model has no such tensor; None when nothing explains it."""
    if (reason := first_reason(name, _DROPPED)) is not None:
        return reason
    if name == TEXT_POSITIONS and config.positions == "relative":
        return "text positions, never read with relative ones"
    if re.match(r"transformer\.blocks\.\d+\.(mlp|norm2)_vl\.", name):
        return "vision-language expert: build the model with the file's fused_from"
    if name.startswith("itc_vl_"):
        return "second contrastive projection: build the model with fused_contrast = True"
    if name == "transformer.mask_token":
        return "mask token: build the model with mask_token = True"
    return None


def optional_names(trained_for: str) -> tuple[str, ...]:
    """Return patterns of our names that a released file of this kind lacks."""
    heads = r"(fused_)?(image|text)_projection\..*", r"itm_head\..*", r"mlm_head\..*"
    text = r".*\.experts\.(text|fused)\..*", r"text_embedding\..*", r"modality_embedding\..*"
    return {
        "pretraining": (),
        "language": (*heads[:2], r".*\.experts\.fused\..*"),
        "retrieval": (*heads[1:], r"pooler\..*"),
        "vision": (*heads, *text, r"pooler\..*", r"trunk\.norm\..*", r"mask_token", OUR_TABLE),
    }.get(trained_for, heads)


CONVERTER = Converter(
    family="vlmo",
    signatures=(
        r"(model\.|module\.)*transformer\.blocks\.\d+\.mlp_(text|imag|vl)\..*",
        r"(model\.|module\.)*blocks\.\d+\.attn\.q_bias",
        r"(beit\.)?(encoder\.)?layers?\.\d+\.lambda_1",
    ),
    adapt_config=config_for,
    import_state=import_state_dict,
    export_state=export_state_dict,
    trained_for=trained_for,
    optional=optional_names,
    contrast=CONTRAST,
    import_head=import_classifier,
    head_names=released_head_names,
    wrapper=None,
    max_words=None,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    source="Bao et al. 2022 (arXiv 2111.02358), layout of microsoft/unilm, folder vlmo",
)
