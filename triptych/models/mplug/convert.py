"""The released mPLUG checkpoints: their key table, import and export.

Released files hold, beside the live tensors, a momentum copy, CLIP's text tower, fusion layers
that never run and queues. `import_state_dict` names each of these in its report.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.conversion import (
    Converter,
    ImportReport,
    KeyTable,
    bert_block_keys,
    bert_embedding_keys,
    bert_head_keys,
    clip_vision_keys,
    explain_rest,
    first_reason,
    gather_tensors,
    linear_keys,
    load_tensors,
    read_scalars,
    split_tensors,
    used_names,
)
from triptych.models.mplug.config import MPLUGConfig, strided_layers
from triptych.models.mplug.init_from import init_text, init_vision
from triptych.models.mplug.model import MPLUG
from triptych.nn.positions import resize_position_table

MLM_MATRIX = "fusion_encoder.cls.predictions.decoder.weight"
TEXT_WORDS = "text_encoder.embeddings.word_embeddings.weight"
TEXT_POSITIONS = "text_encoder.embeddings.position_embeddings.weight"
VISION_POSITIONS = "visual_encoder.visual.positional_embedding"
POSITIONS = "visual_encoder.position_embedding"

CONTRAST = {"temperature": "temp"}
"""τ of ITC, as `MPLUGPretraining` names it and as the released code does."""

_DEAD = [
    (
        r"(visual_encoder|text_encoder|fusion_encoder|text_decoder|vision_proj|text_proj|visn_fc"
        r"|visn_layer_norm)_m\..*",
        "momentum copy",
    ),
    (
        r"visual_encoder\.(positional_embedding|text_projection|logit_scale|token_embedding\..*"
        r"|ln_final\..*|transformer\..*)",
        "CLIP's text tower, never run",
    ),
    (r"visual_encoder\.visual\.proj", "CLIP's joint projection, never run"),
    (r".*\.position_ids", "constant"),
    (r"fusion_encoder\.embeddings\..*", "embeddings of the fusion network, never run"),
    (r"(image|text|idx)_queue|queue_ptr", "feature queue"),
]


def key_table(config: MPLUGConfig, num_fusion_layers: int | None = None) -> KeyTable:
    """Return which released tensors make which of ours.

    The released fusion network is a whole BERT of which only the last `fusion_depth` layers run.

    Args:
        config: The model's sizes.
        num_fusion_layers: Layers in the file's fusion list; None takes BERT's, which are those of
            text encoder and fusion network together (12 in the released files).

    Raises:
        CapabilityError: The model is pre-norm, has a convolutional stem, or its fusion network has
            other layers than asymmetric and connected ones: the released layout cannot express it.
    """
    if config.vision.stem_widths:
        raise CapabilityError(
            f"vision.stem_widths = {config.vision.stem_widths}: the released layout projects "
            "patches linearly, as the base and large sizes do; train one of these to export it"
        )
    if config.fusion not in ("skip_connected", "asymmetric_co_attention"):
        raise CapabilityError(
            f"fusion = {config.fusion!r}: the released layout is of skip-connected networks"
        )
    if config.text.pre_norm:
        raise CapabilityError(
            "text.pre_norm = True: the released layout is post-norm and has no final norms; "
            "take a post-norm variant, such as mplug_base_patch16_256"
        )
    table = clip_vision_keys("visual_encoder", "visual_encoder.visual", config.vision.depth)
    if config.vision.embed_dim != config.text.embed_dim:
        table |= linear_keys("image_adapter.linear", "visn_fc")
        table |= linear_keys("image_adapter.norm", "visn_layer_norm")
    table |= bert_embedding_keys("text_encoder.embedding", "text_encoder")
    for layer in range(config.text_depth):
        table |= bert_block_keys(
            f"text_encoder.blocks.{layer}", f"text_encoder.encoder.layer.{layer}"
        )
    first_live = config.text_depth
    if num_fusion_layers is not None:
        first_live = num_fusion_layers - config.fusion_depth
    for layer in range(config.fusion_depth):
        table |= bert_block_keys(
            f"fusion.blocks.{layer}",
            f"fusion_encoder.encoder.layer.{first_live + layer}",
            cross=layer not in _connected_layers(config),
        )
    table |= bert_embedding_keys("decoder.embedding", "text_decoder.bert")
    for layer in range(config.decoder_depth):
        table |= bert_block_keys(
            f"decoder.blocks.{layer}", f"text_decoder.bert.encoder.layer.{layer}", cross=True
        )
    table |= bert_head_keys("decoder.head", "text_decoder.cls.predictions")
    table |= bert_head_keys("mlm_head", "fusion_encoder.cls.predictions")
    if not config.tie_mlm_head:
        table["mlm_head.weight"] = (MLM_MATRIX,)
    table |= linear_keys("image_projection", "vision_proj")
    table |= linear_keys("text_projection", "text_proj")
    return table | linear_keys("itm_head", "itm_head")


def _connected_layers(config: MPLUGConfig) -> tuple[int, ...]:
    return config.connected_layers if config.fusion == "skip_connected" else ()


def released_stride(config: MPLUGConfig) -> int | None:
    """Return the `stride_layer` with which the released code computes the same; None if none does.

    That code connects layer j if j != 0 and j is a multiple of the stride, and adds a connected
    layer's image output to its image input.
    """
    connected, depth = _connected_layers(config), config.fusion_depth
    if connected and not config.connected_image_residual:
        return None
    strides = range(1, depth + 1)
    return next((s for s in strides if strided_layers(depth, s) == tuple(sorted(connected))), None)


def export_note(model: MPLUG) -> str:
    """Say how the released code runs an exported model."""
    stride = released_stride(model.config)
    if stride is not None:
        return f"the released code runs it with stride_layer = {stride}"
    return (
        "the released code has no setting that computes this model (connected layers "
        f"{_connected_layers(model.config)}, image residual "
        f"{model.config.connected_image_residual}): its tensors are in the released layout, but "
        "other code must run them"
    )


def normalise_names(official: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unwrap a released checkpoint and give its tensors the names of the fine-tuned models.

    The released loader's rule: of names with "fusion" or "bert" and without "decode", the parts
    "fusion." and "bert." are skipped.

    Args:
        official: A state dict, or a checkpoint that holds one as "model" or "module"; names may
            begin with "model." or "module.".

    Raises:
        CheckpointError: There is no tensor in it.
    """
    for wrapper in ("model", "module"):
        if isinstance(official.get(wrapper), Mapping):
            official = official[wrapper]
    renamed: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if not isinstance(tensor, Tensor):
            continue
        short = re.sub(r"^(model\.|module\.)+", "", name)
        if ("fusion" in short or "bert" in short) and "decode" not in short:
            short = short.replace("fusion.", "").replace("bert.", "")
        renamed[short] = tensor
    if not renamed:
        raise CheckpointError(
            "the file holds no state dict: expected tensors, or a mapping under 'model' or 'module'"
        )
    return renamed


def config_for(
    official: Mapping[str, Any],
    config: MPLUGConfig,
    *,
    image_size: int | None = None,
    trained_for: str = "pretraining",
) -> MPLUGConfig:
    """Return the config with which a released file loads whole.

    Vocabulary, positions and image size are the file's, and its MLM head keeps its own matrix.
    Released captioning, whose files have no ITM head, reads image states alone (`decoder_memory`).

    Args:
        official: A released file, wrapped or bare.
        config: A variant of the file's depths and widths.
        image_size: Side in pixels; None keeps the file's.
        trained_for: What the file was trained for.
    """
    foreign = normalise_names(official)
    vision, text = config.vision, config.text
    if image_size is None and VISION_POSITIONS in foreign:
        image_size = vision.patch_size * math.isqrt(len(foreign[VISION_POSITIONS]) - 1)
    if image_size is not None:
        vision = dataclasses.replace(vision, image_size=image_size)
    if TEXT_WORDS in foreign and TEXT_POSITIONS in foreign:
        text = dataclasses.replace(
            text,
            vocab_size=len(foreign[TEXT_WORDS]),
            max_positions=len(foreign[TEXT_POSITIONS]),
        )
    reads_image_only = trained_for == "captioning" and "itm_head.weight" not in foreign
    return dataclasses.replace(
        config,
        vision=vision,
        text=text,
        tie_mlm_head=MLM_MATRIX not in foreign or _same(foreign, MLM_MATRIX, TEXT_WORDS),
        decoder_memory="image" if reads_image_only else config.decoder_memory,
    )


def trained_for(names: Iterable[str]) -> str:
    """Say what a released file was trained for: its heads and teachers tell.

    Pre-training files have an MLM head, retrieval files an ITM head, VQA files a teacher;
    captioning files have none of them.
    """
    listed = list(names)
    for prefix, task in (
        ("fusion_encoder.cls.", "pretraining"),
        ("itm_head.", "retrieval"),
        ("text_decoder_m.", "vqa"),
    ):
        if any(prefix in name for name in listed):
            return task
    return "captioning"


def import_state_dict(official: Mapping[str, Any], model: MPLUG) -> ImportReport:
    """Load a released checkpoint into a model of the same sizes.

    The visual position table is resized to the model's image size. A model on the meta device
    takes the file's tensors over.

    Args:
        official: What `torch.load` of a released file returns, wrapped or bare.
        model: Changed in place.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: The file holds no state dict.
    """
    foreign, report = normalise_names(official), ImportReport()
    table = key_table(model.config, _num_fusion_layers(foreign, model.config))
    num_patches = model.config.vision.num_patches
    if model.config.tie_mlm_head and not _same(foreign, MLM_MATRIX, TEXT_WORDS):
        table = {ours: names for ours, names in table.items() if not ours.startswith("mlm_head.")}
    tensors = gather_tensors(
        foreign,
        model.state_dict(),
        table,
        {POSITIONS: lambda rows: resize_position_table(rows, num_patches)},
        report,
    )
    if "temp" in foreign and not foreign["temp"].is_meta:
        report.temperature = float(foreign["temp"])
    report.contrast = read_scalars(foreign, CONTRAST)
    first_live = _num_fusion_layers(foreign, model.config) - model.config.fusion_depth
    explain_rest(
        foreign,
        used_names(table),
        lambda name: _reason(name, foreign, model.config, first_live),
        report,
    )
    load_tensors(model, tensors)
    return report


def export_state_dict(model: MPLUG, num_fusion_layers: int | None = None) -> dict[str, Tensor]:
    """Return the model under the released names, for the released code's non-strict loader.

    Tensors that are never used are skipped. Tied matrices appear under both of their names.

    Args:
        model: Read only.
        num_fusion_layers: Layers in the fusion list; None takes BERT's (see `key_table`).
    """
    foreign = split_tensors(model.state_dict(), key_table(model.config, num_fusion_layers))
    words = foreign["text_decoder.bert.embeddings.word_embeddings.weight"]
    foreign["text_decoder.cls.predictions.decoder.weight"] = words
    if model.config.tie_mlm_head:
        foreign[MLM_MATRIX] = foreign[TEXT_WORDS]
    for owner in ("text_decoder", "fusion_encoder"):
        foreign[f"{owner}.cls.predictions.decoder.bias"] = foreign[f"{owner}.cls.predictions.bias"]
    return foreign


def _num_fusion_layers(names: Iterable[str], config: MPLUGConfig) -> int:
    """Count the layers of the file's fusion list, at least as many as the model runs."""
    found = [re.match(r"fusion_encoder\.encoder\.layer\.(\d+)\.", name) for name in names]
    layers = [int(match[1]) + 1 for match in found if match]
    return max([config.fusion_depth, *layers])


def _same(foreign: Mapping[str, Tensor], first: str, second: str) -> bool:
    if first not in foreign or second not in foreign:
        return False
    one, other = foreign[first], foreign[second]
    return not one.is_meta and one.shape == other.shape and torch.equal(one, other)


def _reason(
    name: str, foreign: Mapping[str, Tensor], config: MPLUGConfig, first_live: int
) -> str | None:
    """Return why the model has no such tensor; None when nothing explains it."""
    if (reason := first_reason(name, _DEAD)) is not None:
        return reason
    if name == "temp":
        return "temperature, kept beside the model"
    fusion = re.match(r"fusion_encoder\.encoder\.layer\.(\d+)\.(\w+)", name)
    if fusion and int(fusion[1]) < first_live:
        return "fusion layer that never runs"
    if fusion and fusion[2] == "crossattention":
        return "cross-attention of a connected layer, never run"
    tied = {
        "text_decoder.cls.predictions.decoder.weight": (
            "text_decoder.bert.embeddings.word_embeddings.weight"
        ),
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "fusion_encoder.cls.predictions.decoder.bias": "fusion_encoder.cls.predictions.bias",
    }
    if name in tied and (foreign[name].is_meta or _same(foreign, name, tied[name])):
        return f"second name of {tied[name]}"
    if name.startswith("fusion_encoder.cls.") and config.tie_mlm_head:
        if _same(foreign, MLM_MATRIX, TEXT_WORDS):
            return f"second name of {TEXT_WORDS}"
        return "MLM head with its own matrix: build the model with tie_mlm_head=False"
    return None


def optional_names(trained_for: str) -> tuple[str, ...]:
    """Return patterns of our names that a released file of this kind lacks.

    A fine-tuned file has only the heads of its own task; released retrieval has no decoder.
    """
    if trained_for == "pretraining":
        return ()
    if trained_for == "retrieval":
        return (r"mlm_head\..*", r"decoder\..*")
    return (r"(image_projection|text_projection|itm_head|mlm_head)\..*",)


CONVERTER = Converter(
    family="mplug",
    signatures=(
        r"(model\.|module\.)*visual_encoder\.visual\.transformer\.resblocks\..*",
        r"(model\.|module\.)*fusion_encoder\..*crossattention\..*",
    ),
    adapt_config=config_for,
    import_state=import_state_dict,
    export_state=export_state_dict,
    trained_for=trained_for,
    optional=optional_names,
    contrast=CONTRAST,
    export_note=export_note,
    init_vision=init_vision,
    init_text=init_text,
    max_question_tokens=80,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    source="Li et al. 2022 (arXiv 2205.12005), layout of X-PLUG/mPLUG",
)
