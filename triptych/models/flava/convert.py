"""FLAVA checkpoints of transformers: their key table, import and export.

`FlavaForPreTraining` has 618 tensors at the released size, 53,786,240 parameters of them the image
codebook's. All of them have a counterpart here: a released checkpoint is exported as it was
imported, bit by bit.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.conversion import (
    Converter,
    ImportReport,
    KeyTable,
    bert_embedding_keys,
    bert_head_keys,
    explain_rest,
    first_reason,
    gather_tensors,
    linear_keys,
    load_tensors,
    split_tensors,
    used_names,
    without_prefix,
)
from triptych.models.dvae import convert as dvae_convert
from triptych.models.dvae.config import codebook_image_size
from triptych.models.dvae.model import DVAE
from triptych.models.flava.config import FLAVAConfig
from triptych.models.flava.model import FLAVA
from triptych.nn.positions import resize_position_table

HEADS = ("mim_head", "mlm_head", "mmm_image_head", "mmm_text_head")
IMAGE, TEXT, FUSION = "flava.image_model", "flava.text_model", "flava.multimodal_model"
POSITIONS = "visual_encoder.position_embedding"
WORDS = f"{TEXT}.embeddings.word_embeddings.weight"
CODEBOOK = "image_codebook."

_LEADING = {
    f"{IMAGE}.embeddings.cls_token": 2,
    f"{IMAGE}.embeddings.mask_token": 2,
    f"{IMAGE}.embeddings.position_embeddings": 1,
    f"{FUSION}.cls_token": 2,
}
"""Foreign names to the leading axes of length 1 that our tensors do not have."""

_DEAD = [
    (r".*\.(position_ids|token_type_ids)", "constant"),
    (r"flava\.\w+_model\.pooler\.dense\..*", "pooler, which no loss trains"),
    (r"image_codebook\..*", "image codebook, which the model is built without"),
]


def key_table(config: FLAVAConfig) -> KeyTable:
    """Return which released tensors make which of ours.

    Raises:
        CapabilityError: The model has a convolutional stem, which transformers' layout cannot
            express.
    """
    stem = config.vision.stem_widths
    if stem:
        raise CapabilityError(
            f"stem_widths = {stem}: transformers' layout has a linear patch projection, as "
            "the base and large sizes have; train one of these to export it"
        )
    table: KeyTable = {"logit_scale": ("flava.logit_scale",)}
    table |= _image_keys() | bert_embedding_keys("text_encoder.embedding", TEXT)
    table["fusion.class_embedding"] = (f"{FUSION}.cls_token",)
    stacks = (
        ("visual_encoder", IMAGE, config.vision.depth),
        ("text_encoder", TEXT, config.text_depth),
        ("fusion", FUSION, config.fusion.depth),
    )
    for ours, theirs, depth in stacks:
        table |= linear_keys(f"{ours}.final_norm", f"{theirs}.layernorm")
        for layer in range(depth):
            table |= _block_keys(f"{ours}.blocks.{layer}", f"{theirs}.encoder.layer.{layer}")
    if config.released_poolers:
        for ours, theirs in (("image", IMAGE), ("text", TEXT), ("fusion", FUSION)):
            table |= linear_keys(f"poolers.{ours}", f"{theirs}.pooler.dense")
    table |= linear_keys("fusion.image_adapter", "flava.image_to_mm_projection")
    table |= linear_keys("fusion.text_adapter", "flava.text_to_mm_projection")
    for name in ("image_projection", "text_projection"):
        table |= linear_keys(name, f"flava.{name}")
    for name in HEADS:
        table |= bert_head_keys(name, name)
        table[f"{name}.weight"] = (f"{name}.decoder.weight",)
        table[f"{name}.bias"] = (f"{name}.decoder.bias",)
    table |= linear_keys("itm_head.dense", "itm_head.pooler.dense")
    table |= linear_keys("itm_head.out", "itm_head.seq_relationship")
    if config.codebook is not None:
        table |= dvae_convert.encoder_keys(
            config.codebook, "transformers", ours="codebook.", theirs=CODEBOOK
        )
    return table


def _image_keys() -> KeyTable:
    theirs = f"{IMAGE}.embeddings"
    return {
        "visual_encoder.class_embedding": (f"{theirs}.cls_token",),
        "visual_encoder.mask_token": (f"{theirs}.mask_token",),
        POSITIONS: (f"{theirs}.position_embeddings",),
    } | linear_keys("visual_encoder.patch_embedding", f"{theirs}.patch_embeddings.projection")


def _block_keys(ours: str, theirs: str) -> KeyTable:
    attention = f"{theirs}.attention.attention"
    packed = [f"{attention}.{name}" for name in ("query", "key", "value")]
    table = linear_keys(f"{ours}.attention.qkv", *packed)
    table |= linear_keys(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
    table |= linear_keys(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
    table |= linear_keys(f"{ours}.mlp.up", f"{theirs}.intermediate.dense")
    table |= linear_keys(f"{ours}.mlp.down", f"{theirs}.output.dense")
    return table | linear_keys(f"{ours}.mlp_norm", f"{theirs}.layernorm_after")


def normalise_names(official: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give a state dict the names and shapes that the table reads.

    The tensors of a bare `FlavaModel` get the prefix "flava."; a head's bias that is stored under
    one of its two names only is found under both.

    Raises:
        CheckpointError: There is no FLAVA tensor in it.
    """
    foreign: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if isinstance(tensor, Tensor):
            is_bare = re.match(r"(image_|text_|multimodal_)(model|to_mm_)|\w+_projection\.", name)
            foreign[f"flava.{name}" if is_bare or name == "logit_scale" else name] = tensor
    for head in HEADS:
        first, second = f"{head}.decoder.bias", f"{head}.bias"
        if first not in foreign and second in foreign:
            foreign[first] = foreign[second]
    if WORDS not in foreign:
        raise CheckpointError(f"the file holds no FLAVA model of transformers: it has no {WORDS}")
    for name, axes in _LEADING.items():
        if name in foreign and foreign[name].ndim > axes:
            foreign[name] = foreign[name].reshape(foreign[name].shape[axes:])
    return foreign


def import_state_dict(official: Mapping[str, Any], model: FLAVA) -> ImportReport:
    """Load a released checkpoint into a model of the same sizes.

    The visual position table is resized to the model's image size, bicubically. A model on the
    meta device takes the file's tensors over.

    Args:
        official: The state dict of `FlavaForPreTraining` or `FlavaModel`.
        model: Changed in place.

    Returns:
        What became of every tensor.

    Raises:
        CheckpointError: The file holds no FLAVA model.
    """
    foreign, report = normalise_names(official), ImportReport()
    table, num_patches = key_table(model.config), model.config.vision.num_patches
    tensors = gather_tensors(
        foreign,
        model.state_dict(),
        table,
        {POSITIONS: lambda rows: resize_position_table(rows, num_patches, mode="bicubic")},
        report,
    )
    explain_rest(foreign, used_names(table), lambda name: _reason(name, foreign), report)
    load_tensors(model, tensors)
    return report


def export_state_dict(model: FLAVA) -> dict[str, Tensor]:
    """Return the model under the names of `FlavaForPreTraining`.

    A head's bias appears under both of its names. Missing poolers are skipped, which transformers
    fills with random weights that nothing reads.
    """
    foreign = split_tensors(model.state_dict(), key_table(model.config))
    for name, axes in _LEADING.items():
        foreign[name] = foreign[name].reshape((1,) * axes + foreign[name].shape)
    for head in HEADS:
        foreign[f"{head}.bias"] = foreign[f"{head}.decoder.bias"]
    return foreign


def import_codebook(official: Mapping[str, Any], model: FLAVA) -> ImportReport:
    """Load an image tokenizer into a model: DALL-E's `encoder.pkl` or transformers' layout.

    Args:
        official: A state dict of the encoder; names may begin with "image_codebook.".
        model: Changed in place.

    Returns:
        What became of every tensor of the encoder.

    Raises:
        CapabilityError: The model has no codebook.
        ConfigError: The tokenizer's sizes are others.
        CheckpointError: The file holds no image tokenizer.
    """
    if model.config.codebook is None:
        raise CapabilityError("the model is built without a codebook: set config.codebook")
    found = dvae_convert.config_for(official, image_size=model.config.codebook.image_size)
    with torch.device("meta"):
        tokenizer = DVAE(found)
    report = dvae_convert.import_encoder(official, tokenizer)
    model.take_codebook(tokenizer)
    return report


def config_for(
    foreign: Mapping[str, Any],
    config: FLAVAConfig,
    *,
    image_size: int | None = None,
    trained_for: str = "pretraining",
) -> FLAVAConfig:
    """Return the config with which a released file loads whole.

    Sizes are the file's; the number of heads is taken from the variant as the width of a head.

    Args:
        foreign: The state dict.
        config: A variant; flava_full for released weights.
        image_size: Side in pixels; None keeps the file's.
        trained_for: Not read: FLAVA has one kind of file.
    """
    del trained_for
    tensors = normalise_names(foreign)
    patch = tensors[f"{IMAGE}.embeddings.patch_embeddings.projection.weight"].shape[-1]
    if image_size is None:
        grid = math.isqrt(len(tensors[f"{IMAGE}.embeddings.position_embeddings"]) - 1)
        image_size = patch * grid
    vocab_size = len(tensors[WORDS])
    codebook = None
    if f"{CODEBOOK}blocks.input.weight" in tensors:
        side = codebook_image_size(image_size, patch)
        only = {name: tensors[name] for name in tensors if name.startswith(CODEBOOK)}
        codebook = dvae_convert.config_for(only, image_size=side)
    heads = tensors.get("mim_head.decoder.weight")
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(
            config.vision,
            image_size=image_size,
            patch_size=patch,
            **_stack_sizes(tensors, IMAGE, config.vision),
        ),
        text=dataclasses.replace(
            config.text,
            vocab_size=vocab_size,
            max_positions=len(tensors[f"{TEXT}.embeddings.position_embeddings.weight"]),
            **_stack_sizes(tensors, TEXT, config.text, with_depth=False),
        ),
        text_depth=_depth(tensors, TEXT),
        fusion=dataclasses.replace(config.fusion, **_stack_sizes(tensors, FUSION, config.fusion)),
        proj_dim=len(tensors["flava.image_projection.weight"]),
        num_codes=config.num_codes if heads is None else len(heads),
        codebook=codebook,
        released_poolers=f"{TEXT}.pooler.dense.weight" in tensors,
    )


def config_from_folder(folder_config: Mapping[str, Any], config: FLAVAConfig) -> FLAVAConfig:
    """Return a variant with the numbers of heads of a transformers `config.json`.

    All other sizes are the tensors'. Settings that the trunk does not have are refused.

    Raises:
        CheckpointError: An activation, a dropout or an eps that FLAVA does not have.
    """
    for part in ("image_config", "text_config", "multimodal_config"):
        stored = folder_config.get(part) or {}
        for name, only in _FIXED.items():
            if stored.get(name, only) != only:
                given = f"{part}.{name} = {stored[name]!r}"
                raise CheckpointError(f"config.json: {given} is not supported, only {only!r}")

    def sizes(part: str) -> dict[str, Any]:
        stored = folder_config.get(f"{part}_config") or {}
        return {
            "embed_dim": int(stored.get("hidden_size", 768)),
            "num_heads": int(stored.get("num_attention_heads", 12)),
        }

    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **sizes("image")),
        text=dataclasses.replace(config.text, **sizes("text")),
        fusion=dataclasses.replace(config.fusion, **sizes("multimodal")),
    )


_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}


def folder_configs(
    model: FLAVA, mean: Sequence[float], std: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a folder of transformers, by name.

    Raises:
        CapabilityError: Its heads cannot be built for this model.
    """
    return {
        "config.json": folder_config(model),
        "preprocessor_config.json": folder_preprocessor(model, mean, std),
    }


def folder_preprocessor(
    model: FLAVA, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Return a `preprocessor_config.json` with which transformers prepares the same pixels."""

    def square(side: int) -> dict[str, int]:
        return {"height": side, "width": side}

    codebook = model.config.codebook
    content = {
        "image_processor_type": "FlavaImageProcessor",
        "processor_class": "FlavaProcessor",
        "do_resize": True,
        "size": square(model.image_size),
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": square(model.image_size),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "input_size_patches": model.image_size // model.config.vision.patch_size,
    }
    if codebook is not None:
        side = square(codebook.image_size)
        content |= {"codebook_size": side, "codebook_crop_size": side}
    return content


def folder_config(model: FLAVA) -> dict[str, Any]:
    """Return a `config.json` with which transformers builds the same model.

    Raises:
        CapabilityError: The widths differ, for which transformers' heads cannot be built.
    """
    config = model.config
    vision, text, fusion = config.vision, config.text, config.fusion
    if len({vision.embed_dim, text.embed_dim, fusion.embed_dim}) > 1:
        raise CapabilityError(
            f"widths {vision.embed_dim}, {text.embed_dim} and {fusion.embed_dim} differ: "
            "transformers builds FLAVA's heads for one width alone"
        )
    return {
        "architectures": ["FlavaForPreTraining"],
        "model_type": "flava",
        "hidden_size": fusion.embed_dim,
        "projection_dim": config.proj_dim,
        "init_codebook": config.codebook is not None,
        "image_config": {
            "model_type": "flava_image_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "vocab_size": config.num_codes,
            **_stack_config(vision.embed_dim, vision.depth, vision.num_heads, vision.mlp_ratio),
        },
        "text_config": {
            "model_type": "flava_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_positions,
            **_stack_config(text.embed_dim, config.text_depth, text.num_heads, text.mlp_ratio),
        },
        "multimodal_config": {
            "model_type": "flava_multimodal_model",
            **_stack_config(fusion.embed_dim, fusion.depth, fusion.num_heads, fusion.mlp_ratio),
        },
        "image_codebook_config": {"model_type": "flava_image_codebook", **_codebook_config(config)},
    }


def _stack_config(width: int, depth: int, num_heads: int, mlp_ratio: float) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "intermediate_size": round(width * mlp_ratio),
    }


def _codebook_config(config: FLAVAConfig) -> dict[str, int]:
    if config.codebook is None:
        return {}
    return {
        "hidden_size": config.codebook.hidden_dim,
        "num_blocks_per_group": config.codebook.blocks_per_group,
        "vocab_size": config.codebook.num_codes,
    }


def _depth(foreign: Mapping[str, Tensor], part: str) -> int:
    layers = {k.split(".")[0] for k in without_prefix(dict(foreign), f"{part}.encoder.layer.")}
    return len(layers)


def _stack_sizes(
    foreign: Mapping[str, Tensor], part: str, config: Any, *, with_depth: bool = True
) -> dict[str, Any]:
    """Read the sizes of a stack; its heads are as wide as the variant's."""
    up = foreign[f"{part}.encoder.layer.0.intermediate.dense.weight"]
    width = up.shape[1]
    head_dim = config.embed_dim // config.num_heads
    sizes = {
        "embed_dim": width,
        "num_heads": max(1, width // head_dim),
        "mlp_ratio": len(up) / width,
    }
    return sizes | ({"depth": _depth(foreign, part)} if with_depth else {})


def _reason(name: str, foreign: Mapping[str, Tensor]) -> str | None:
    """Return why the model has no such tensor; None when nothing explains it."""
    head = re.fullmatch(rf"({'|'.join(HEADS)})\.bias", name)
    if head:
        other = foreign[f"{head[1]}.decoder.bias"]
        same = other is foreign[name] or other.is_meta or torch.equal(other, foreign[name])
        return f"second name of {head[1]}.decoder.bias" if same else "bias that is never added"
    return first_reason(name, _DEAD)


def _trained_for(names: Iterable[str]) -> str:
    del names
    return "pretraining"


CONVERTER = Converter(
    family="flava",
    signatures=(r"(flava\.)?multimodal_model\.encoder\.layer\..*",),
    adapt_config=config_for,
    import_state=import_state_dict,
    export_state=export_state_dict,
    trained_for=_trained_for,
    optional=lambda _: (r"(mim|mlm|mmm_image|mmm_text|itm)_head\..*",),
    wrapper=None,
    folder_configs=folder_configs,
    config_from_folder=config_from_folder,
    max_text_tokens=77,
    max_words=None,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    source="Singh et al. 2022 (arXiv 2112.04482), layout of transformers' FlavaForPreTraining",
)
