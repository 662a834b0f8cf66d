"""What one pre-training step of each family computes, for one pair; see `triptych/train/work.py`.

Letters as in the papers: N image tokens with [CLS], L text tokens, D the width. A caption is taken
to have as many tokens as may be; a prefix is half of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from triptych.data.masking import BlockMaskingConfig
from triptych.models.dvae.config import DVAEConfig
from triptych.models.flava.config import FLAVAConfig
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.vlmo.config import VLMoConfig
from triptych.nn.block import BlockConfig
from triptych.train.work import (
    BlockShape,
    ContrastWork,
    Cost,
    StackPass,
    StepWork,
    linear,
    patches,
    total,
    word_head,
)

MLM_SHARE = 0.15
"""Tokens of a caption that MLM predicts (BERT)."""

PATCH_SHARE = BlockMaskingConfig().hidden_share
"""Patches of an image that are masked (BEiT)."""


def _shape(config: BlockConfig, *, layer_scale: bool = False, packed: bool = False) -> BlockShape:
    return BlockShape(
        width=config.embed_dim,
        mlp_dim=round(config.embed_dim * config.mlp_ratio),
        heads=config.num_heads,
        dropout=config.dropout > 0,
        layer_scale=layer_scale,
        packed=packed,
    )


def _stack(
    name: str,
    layers: Sequence[Cost],
    blocks: str,
    *,
    first: int = 0,
) -> StackPass:
    """Return a pass through blocks of these costs, from the `first` one on."""
    largest = max(layers, key=lambda cost: cost.kept_bytes("none", 2, 4), default=Cost())
    return StackPass(
        name=name,
        cost=total(layers),
        largest=largest,
        blocks=blocks,
        first=first,
    )


# ------------------------------------------------------------------------------------------ mPLUG


def mplug_work(
    config: MPLUGConfig,
    text_tokens: int,
    *,
    queue_size: int,
    teacher: bool,
    taught: bool,
    remote: bool = True,
    chunk_size: int | None = None,
) -> StepWork:
    """Count a step with ITC, ITM, MLM and PrefixLM.

    The student reads the image once; captions, masked captions and prefixes in one text pass; and
    five texts an image in one fusion pass (three of ITM, one of MLM, one prefix), of which the last
    asymmetric layer computes what is read. The teacher has no ITM rows, and only encoders where
    nothing but ITC learns from it.

    Args:
        config: Of the model.
        text_tokens: Tokens of a caption.
        queue_size: Pairs in the feature queue.
        teacher: Whether there is a momentum model.
        taught: Whether MLM and PrefixLM learn from it too.
        remote: Whether hard negatives come from other processes, so that each text has an image
            more than its own.
        chunk_size: Pairs whose activations are kept at a time.
    """
    image, width = 1 + config.vision.num_patches, config.text.embed_dim
    images = 2 if remote or chunk_size is not None else 1
    passes = _mplug_passes(
        config, text_tokens, "model", matching=3, words=True, taught=taught, images=images
    )
    if teacher:
        copies = _mplug_passes(
            config, text_tokens, "teacher.module", matching=0, words=taught, taught=False, images=1
        )
        passes += [
            StackPass(
                name=f"teacher: {p.name}",
                cost=p.cost,
                blocks=p.blocks,
                first=p.first,
                trained=False,
            )
            for p in copies
        ]
    return StepWork(
        passes=tuple(passes),
        contrast=ContrastWork(
            embed_dim=config.proj_dim,
            matrices=14 if teacher else 8,
            queue=queue_size,
            gathers=2 if teacher else 3,  # a teacher's columns have no gradient
        ),
        chunk_size=chunk_size,
        exchanged_bytes=2 * 4 * (image + text_tokens) * width if remote else 0.0,  # and gradients
        held_bytes=2 * 4 * (2 * image + 4 * text_tokens) * width,
        input_bytes=4 * 3 * config.vision.image_size**2,
    )


def _mplug_passes(
    config: MPLUGConfig,
    length: int,
    owner: str,
    *,
    matching: int,
    words: bool,
    taught: bool,
    images: int,
) -> list[StackPass]:
    vision, text, image = config.vision, config.text, 1 + config.vision.num_patches
    width, prefix = text.embed_dim, length / 2
    seen = _shape(vision.block())
    front = patches(vision.image_size, vision.patch_size, vision.embed_dim, vision.stem_widths)
    if vision.embed_dim != width:
        front += linear(image, vision.embed_dim, width) + Cost(inputs=image * width)
    front += Cost(inputs=2 * image * vision.embed_dim)  # of the norms around the blocks
    found = [
        _stack(
            "vision encoder",
            [seen.block(image, image**2)] * vision.depth,
            f"{owner}.visual_encoder.blocks",
        ),
    ]
    shape = _shape(text.block(), packed=True)
    tokens = 2 * length + prefix if words else length
    slots = (3 if words else 1) * length
    front += Cost(inputs=2 * slots * width)  # embeddings, of whose norm the blocks are the readers
    found.append(
        _stack(
            "text encoder",
            [shape.block(tokens, slots * length, slots=slots)] * config.text_depth,
            f"{owner}.text_encoder.blocks",
        )
    )
    if words:
        found.append(_mplug_fusion(config, shape, length, owner, matching, images))
        layer = shape.block(length - prefix, (length - prefix) ** 2)
        layer += shape.cross_attention(
            length - prefix, image + prefix, width, (length - prefix) * (image + prefix)
        )
        found.append(_stack("decoder", [layer] * config.decoder_depth, f"{owner}.decoder.blocks"))
        predicted = (MLM_SHARE * length, length - prefix)
        front += total(word_head(n, width, text.vocab_size, taught=taught) for n in predicted)
    found.append(StackPass(name="patches and heads", cost=front))
    return found


def _mplug_fusion(
    config: MPLUGConfig, shape: BlockShape, length: int, owner: str, matching: int, images: int
) -> StackPass:
    """Count the fusion pass of `matching` rows of ITM, one of MLM and one prefix, which read so
    many distinct images.
    """
    image, width, prefix = 1 + config.vision.num_patches, shape.width, length / 2
    rows = matching + 2
    tokens = (matching + 1) * length + prefix
    slots = rows * length  # a prefix is padded to a caption
    read = matching + MLM_SHARE * length + prefix
    connected = {
        "skip_connected": set(config.connected_layers),
        "connected_attention": set(range(config.fusion_depth)),
    }.get(config.fusion, set())
    layers = []
    for layer in range(config.fusion_depth if config.fusion != "none" else 0):
        asking = tokens
        if layer in connected:
            joint = rows * image + tokens
            padded = rows * (image + length)
            cost = shape.block(joint, padded * (image + length), slots=padded)
            spared = 6 * (rows - images) * image * width**2  # qkv is computed once an image
            layers.append(cost + Cost(flops=-spared))
            images = rows
            continue
        if layer + 1 == config.fusion_depth and config.fusion != "co_attention":
            asking = read
        readers = None if asking == tokens else asking
        cost = shape.block(tokens, slots * length * asking / tokens, readers=readers, slots=slots)
        cost += shape.cross_attention(asking, images * image, width, asking * image)
        if config.fusion == "co_attention":
            cost += shape.block(rows * image, rows * image**2)
            cost += shape.cross_attention(rows * image, tokens, width, image * tokens)
            images = rows
        layers.append(cost)
    return _stack("fusion", layers, f"{owner}.fusion.blocks")


# ------------------------------------------------------------------------------------------- VLMo


def vlmo_work(
    config: VLMoConfig,
    text_tokens: int,
    *,
    fused_itc: bool,
    remote: bool = True,
    chunk_size: int | None = None,
) -> StepWork:
    """Count a step with ITC, ITM and MLM.

    Images and texts alone run through their own experts, and with `fused_itc` through the upper
    blocks twice; four pairs an image (three of ITM, one of MLM) run through the fusion encoder.

    Args:
        config: Of the model.
        text_tokens: Tokens L of a caption.
        fused_itc: Whether ITC is computed on the fused experts too.
        remote: Whether hard negatives come from other processes, so that each text has an image
            more than its own.
        chunk_size: Pairs whose activations are kept at a time.
    """
    image, length, width = 1 + config.num_patches, text_tokens, config.embed_dim
    shape = _shape(config.block(), layer_scale=config.layer_scale is not None, packed=True)
    relative = config.positions == "relative"
    upper = config.depth - config.fused_from if fused_itc else 0
    alone = []
    for name, size in (("images alone", image), ("texts alone", length)):
        biased = size**2 if relative and name == "texts alone" else 0.0
        layer = shape.block(size, size**2, biased=biased)
        last = shape.block(size, size, readers=1)
        alone.append(_stack(name, [layer] * (config.depth - 1) + [last], "model.trunk.blocks"))
        if upper:
            branch = [layer] * (upper - 1) + [last]
            first = config.fused_from
            alone.append(_stack(f"{name}, fused", branch, "model.trunk.blocks", first=first))
    rows, size = 4, image + length
    tokens, pairs = rows * size, rows * size**2
    biased = pairs if relative else 0.0
    layers = [shape.block(tokens, pairs, biased=biased)] * (config.depth - 1)
    distinct = 2 if remote or chunk_size is not None else 1
    layers[0] += Cost(flops=-6 * (rows - distinct) * image * width**2)  # qkv once an image
    ends = [  # the last block reads [CLS] of ITM's three rows, then the masked words of MLM's
        shape.block(of * size, read * size, readers=read, biased=read * size * relative)
        for of, read in ((3, 3), (1, MLM_SHARE * length))
    ]
    front = patches(config.image_size, config.patch_size, width, config.stem_widths) * distinct
    front += word_head(MLM_SHARE * length, width, config.vocab_size) + linear(3, width, width)
    branches = 2 if fused_itc else 1
    pixels = 4 * 3 * config.image_size**2
    return StepWork(
        passes=(
            *alone,
            _stack("pairs", [*layers, ends[0]], "model.trunk.blocks"),
            _stack("pairs, masked", ends[1:], "model.trunk.blocks", first=config.depth - 1),
            StackPass(name="patches and heads", cost=front),
        ),
        contrast=ContrastWork(
            embed_dim=config.proj_dim, branches=branches, gathers=2 * branches + remote
        ),
        chunk_size=chunk_size,
        exchanged_bytes=pixels if remote else 0.0,
        input_bytes=distinct * pixels,
    )


# ------------------------------------------------------------------------------------------ FLAVA


def flava_work(
    config: FLAVAConfig,
    text_tokens: int,
    *,
    matched_share: float,
    codes: bool,
    chunk_size: int | None,
) -> StepWork:
    """Count a step on pairs: GC, ITM, MMM-image and MMM-text.

    Each encoder reads its input whole and masked, as one batch up to the last block; the multimodal
    encoder reads the masked ones.

    Args:
        config: Of the model.
        text_tokens: Tokens L of a caption.
        matched_share: Share of pairs whose caption is their own; only these have MMM.
        codes: Whether the codebook runs; otherwise codes are read from the data.
        chunk_size: Rows whose activations are kept at a time.
    """
    image = 1 + config.vision.num_patches
    length = config.padded_text_len if config.pad_attention == "attended" else text_tokens
    vision, words, joint = (
        _shape(part.block()) for part in (config.vision, config.text, config.fusion)
    )
    passes = []
    for name, shape, size, depth, blocks in (
        ("image encoder", vision, image, config.vision.depth, "visual_encoder"),
        ("text encoder", words, length, config.text_depth, "text_encoder"),
    ):
        stack = f"model.{blocks}.blocks"
        layers = [shape.block(2 * size, 2 * size**2)] * (depth - 1)
        layers.append(shape.block(size, size**2))
        passes.append(_stack(name, layers, stack))
        last = shape.block(size, size, readers=1)  # of whole inputs, for [CLS] alone
        passes.append(_stack(f"{name}, [CLS]", [last], stack, first=depth - 1))
    size, width = 1 + image + length, config.fusion.embed_dim
    hidden = PATCH_SHARE * config.vision.num_patches * matched_share
    spoken = MLM_SHARE * length * matched_share
    read = 1 + PATCH_SHARE * config.vision.num_patches + MLM_SHARE * length
    layers = [joint.block(size, size**2)] * (config.fusion.depth - 1)
    layers.append(joint.block(size, read * size, readers=read))
    passes.append(_stack("multimodal encoder", layers, "model.fusion.blocks"))
    view = config.vision
    front = patches(view.image_size, view.patch_size, view.embed_dim, view.stem_widths)
    front = front * (2 if view.stem_widths else 1)
    front += linear(image, view.embed_dim, width) + linear(length, config.text.embed_dim, width)
    front += word_head(hidden, width, config.num_codes) + linear(1, width, width)
    front += word_head(spoken, width, config.text.vocab_size)
    passes.append(StackPass(name="patches, adapters and heads", cost=front))
    if codes and config.codebook is not None:
        frozen = Cost(flops=codebook_flops(config.codebook) * matched_share)
        passes.append(StackPass(name="image codebook", cost=frozen, trained=False))
    pixels = 4 * 3 * (view.image_size**2 + (config.codebook_image_size**2 if codes else 0))
    return StepWork(
        passes=tuple(passes),
        contrast=ContrastWork(embed_dim=config.proj_dim),
        chunk_size=chunk_size,
        input_bytes=pixels,
        recomputes_cheap=chunk_size is None,  # in chunks everything is computed again anyway
    )


def codebook_flops(config: DVAEConfig) -> float:
    """Count the encoder of an image tokenizer on one image.

    A 7x7 convolution; groups of residual blocks of three 3x3 convolutions and a 1x1 one around a
    bottleneck of a quarter of the channels, each group at half the side of the one before; and a
    1x1 convolution to the codes.
    """
    dims, side = config.group_dims, config.image_size
    flops = 2 * 49 * 3 * dims[0] * side**2
    before = dims[0]
    for group, dim in enumerate(dims):
        pixels, inner = (side // 2**group) ** 2, dim // 4
        for _ in range(config.blocks_per_group):
            weights = 9 * before * inner + 2 * 9 * inner**2 + inner * dim
            weights += before * dim if before != dim else 0
            flops += 2 * weights * pixels
            before = dim
    return float(flops + 2 * dims[-1] * config.num_codes * config.grid_size**2)
