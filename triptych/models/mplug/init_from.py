"""Pre-training starts from CLIP's image tower and BERT (paper, section 5.1).

BERT fills three parts: its first `text_depth` layers are the text encoder and its last
`fusion_depth` layers the fusion network (paper), its first `decoder_depth` layers the decoder,
whose token head is BERT's (released code). Cross-attention is not in BERT: it stays random.
A co-attention network's image stream takes the layers that its text stream takes, as a connected
layer uses one set of weights for both sides.

Deviation from the released code: CLIP's position table is resized and kept. There it is stored in
an attribute that nothing reads, and pre-training starts from a table of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.conversion import (
    ImportReport,
    KeyTable,
    Resize,
    bert_block_keys,
    bert_embedding_keys,
    bert_head_keys,
    clip_vision_keys,
    explain_rest,
    first_reason,
    gather_tensors,
    load_tensors,
    transformers_clip_vision_keys,
    used_names,
)
from triptych.models.mplug.model import MPLUG
from triptych.nn.positions import resize_position_table

_CLIP_REST = [
    (
        r"(transformer|token_embedding|ln_final|text_model)\..*|positional_embedding"
        r"|text_projection(\.weight)?|logit_scale|input_resolution|context_length|vocab_size",
        "CLIP's text tower",
    ),
    (r"visual\.proj|visual_projection\.weight", "CLIP's joint projection"),
    (r".*position_ids", "constant"),
]
_BERT_REST = [
    (r".*position_ids", "constant"),
    (r"bert\.pooler\..*|cls\.seq_relationship\..*", "BERT's sentence heads"),
]
_BERT_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_CLIP_FACTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_BERT_FACTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
}


def init_vision(
    model: MPLUG, foreign: Mapping[str, Tensor], config: Mapping[str, Any]
) -> ImportReport:
    """Fill the image encoder from a CLIP image tower.

    Args:
        model: Changed in place. Its position table keeps its size: the tower's is resized
            bilinearly.
        foreign: OpenAI's state dict (`visual.*`), or that of a CLIPModel or CLIPVisionModel of
            transformers.
        config: The transformers folder's `config.json`; empty if there is none.

    Returns:
        What became of every tensor; complete, or an error is raised.

    Raises:
        CheckpointError: The file holds no CLIP image tower, or one of other sizes.
        CapabilityError: The tower computes something else, such as another activation.
    """
    vision = model.config.vision
    if vision.stem_widths:
        raise CapabilityError(
            f"vision.stem_widths = {vision.stem_widths}: CLIP projects patches linearly; "
            "take a variant without a stem, such as mplug_base_patch16_256"
        )
    sizes = config.get("vision_config", config)
    _check_kind(config, ("clip", "clip_vision_model"), "a CLIP image tower")
    heads = {"num_attention_heads": vision.num_heads, "intermediate_size": 4 * vision.embed_dim}
    _check_facts(sizes, _CLIP_FACTS | heads, "CLIP image tower")
    names = dict(foreign)
    if "class_embedding" in names:  # the tower alone, as `clip.visual.state_dict()` gives it
        names = {f"visual.{name}": tensor for name, tensor in names.items()}
    elif "embeddings.class_embedding" in names:  # CLIPVisionModel since transformers 5
        names = {f"vision_model.{name}": tensor for name, tensor in names.items()}
    if "visual.class_embedding" in names:
        table = clip_vision_keys("visual_encoder", "visual", vision.depth)
    elif "vision_model.embeddings.class_embedding" in names:
        table = transformers_clip_vision_keys("visual_encoder", "vision_model", vision.depth)
    else:
        raise CheckpointError(
            "there is no CLIP image tower: expected names such as visual.class_embedding "
            "(OpenAI) or vision_model.embeddings.class_embedding (transformers), found "
            f"{', '.join(list(names)[:3])}"
        )
    rows = vision.num_patches
    resizes = {"visual_encoder.position_embedding": lambda t: resize_position_table(t, rows)}
    report = _fill(model, names, table, resizes, _CLIP_REST)
    report.require("the CLIP image tower; take the variant that it is of")
    return report


def init_text(
    model: MPLUG, foreign: Mapping[str, Tensor], config: Mapping[str, Any]
) -> ImportReport:
    """Fill text encoder, fusion network and decoder from BERT.

    Args:
        model: Changed in place. A model with fewer positions takes BERT's first rows.
        foreign: State dict of a BertModel, BertForMaskedLM or BertForPreTraining.
        config: The folder's `config.json`; empty if there is none.

    Returns:
        What became of every tensor; it misses cross-attention and, where the file is a bare
        BertModel, the token heads.

    Raises:
        CheckpointError: The file holds no BERT, or one of other sizes.
        CapabilityError: The model is pre-norm, or BERT computes something else.
    """
    text = model.config.text
    if text.pre_norm:
        raise CapabilityError(
            "text.pre_norm = True: BERT is post-norm; "
            "take a post-norm variant, such as mplug_base_patch16_256"
        )
    _check_kind(config, ("bert",), "BERT")
    sizes = {
        "num_attention_heads": text.num_heads,
        "intermediate_size": int(text.embed_dim * text.mlp_ratio),
    }
    _check_facts(config, _BERT_FACTS | sizes, "BERT")
    names = {_bert_name(name): tensor for name, tensor in foreign.items()}
    num_layers = _num_bert_layers(names)
    table = _bert_table(model, num_layers)
    has_head = "cls.predictions.bias" in names
    if has_head:
        for head in ("mlm_head", "decoder.head"):
            table |= bert_head_keys(head, "cls.predictions")
        if not model.config.tie_mlm_head:
            table["mlm_head.weight"] = ("bert.embeddings.word_embeddings.weight",)
    rows = text.max_positions
    resizes: dict[str, Resize] = {
        f"{part}.embedding.position.weight": lambda t: t[:rows]
        for part in ("text_encoder", "decoder")
    }
    rest = [*_BERT_REST, *_unused_layers(model, num_layers), *_tied_names(names)]
    report = _fill(model, names, table, resizes, rest)
    report.require(
        "BERT; take the variant that it is of",
        optional=(r".*\.cross_attention\..*", r".*\.cross_norm\..*", *_HEADS[has_head]),
    )
    return report


_HEADS = {True: (), False: (r"(mlm_head|decoder\.head)\..*",)}


def _bert_table(model: MPLUG, num_layers: int) -> KeyTable:
    """Say which layer of BERT goes where."""
    config, fusion_depth = model.config, _fusion_depth(model)
    if num_layers < max(config.text_depth, fusion_depth, config.decoder_depth):
        raise CheckpointError(
            f"BERT has {num_layers} layers, but the model's text encoder has "
            f"{config.text_depth}, its fusion network {fusion_depth} and its decoder "
            f"{config.decoder_depth}"
        )
    table: KeyTable = {}
    stacks = [
        ("text_encoder.blocks", config.text_depth, 0),
        ("fusion.blocks", fusion_depth, num_layers - fusion_depth),
        ("decoder.blocks", config.decoder_depth, 0),
    ]
    if config.fusion == "co_attention":
        stacks.append(("fusion.image_blocks", fusion_depth, num_layers - fusion_depth))
    for stack, depth, first in stacks:
        for layer in range(depth):
            table |= bert_block_keys(f"{stack}.{layer}", f"bert.encoder.layer.{first + layer}")
    for part in ("text_encoder", "decoder"):
        table |= bert_embedding_keys(f"{part}.embedding", "bert")
    return table


def _fusion_depth(model: MPLUG) -> int:
    return 0 if model.config.fusion == "none" else model.config.fusion_depth


def _unused_layers(model: MPLUG, num_layers: int) -> list[tuple[str, str]]:
    """Return patterns of BERT's layers that no part takes."""
    config = model.config
    first = max(config.text_depth, config.decoder_depth)
    middle = range(first, num_layers - _fusion_depth(model))
    return [(rf"bert\.encoder\.layer\.{layer}\..*", "BERT layer of no part") for layer in middle]


def _tied_names(names: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return patterns of names that repeat another tensor of the file."""
    return [
        (re.escape(name), f"second name of {owner}")
        for name, owner in _BERT_TIED.items()
        if name in names and owner in names and torch.equal(names[name], names[owner])
    ]


def _fill(
    model: MPLUG,
    names: Mapping[str, Tensor],
    table: KeyTable,
    resizes: Mapping[str, Resize],
    rest: list[tuple[str, str]],
) -> ImportReport:
    """Load what the table says into the parts of the model that it names."""
    report = ImportReport()
    parts = {name.split(".")[0] for name in table}
    wanted = {k: t for k, t in model.state_dict().items() if k.split(".")[0] in parts}
    tensors = gather_tensors(names, wanted, table, resizes, report)
    explain_rest(names, used_names(table), lambda name: first_reason(name, rest), report)
    load_tensors(model, tensors)
    return report


def _bert_name(name: str) -> str:
    """Return the present name of a BERT tensor: with "bert.", without TensorFlow's terms."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _num_bert_layers(names: Mapping[str, Tensor]) -> int:
    found = [re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in names]
    layers = [int(match[1]) + 1 for match in found if match]
    if not layers:
        raise CheckpointError(
            "there is no BERT: expected names such as bert.encoder.layer.0.attention.self.query."
            f"weight, found {', '.join(name.removeprefix('bert.') for name in list(names)[:3])}"
        )
    return max(layers)


def _check_kind(config: Mapping[str, Any], kinds: tuple[str, ...], what: str) -> None:
    kind = config.get("model_type")
    if kind is not None and kind not in kinds:
        raise CheckpointError(f"config.json says model_type {kind!r}, which is not {what}")


def _check_facts(config: Mapping[str, Any], facts: Mapping[str, Any], what: str) -> None:
    """Raise where a `config.json` says that the network computes something else."""
    for name, value in facts.items():
        if config.get(name, value) != value:
            raise CapabilityError(
                f"this {what} has {name} = {config[name]!r} and the model {value!r}: "
                "its weights would compute something else"
            )
