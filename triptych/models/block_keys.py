"""Where the tensors of our blocks are in the layouts of BERT and of CLIP."""

from __future__ import annotations

from triptych.models.conversion import KeyTable, linear_keys


def bert_embedding_keys(ours: str, theirs: str) -> KeyTable:
    """Map a `TextEmbedding` to BERT's embeddings.

    Args:
        ours: Such as "text_encoder.embedding".
        theirs: What stands before "embeddings", such as "bert".
    """
    table: KeyTable = {
        f"{ours}.{mine}.weight": (f"{theirs}.embeddings.{mine}_embeddings.weight",)
        for mine in ("word", "position", "token_type")
    }
    return table | linear_keys(f"{ours}.norm", f"{theirs}.embeddings.LayerNorm")


def bert_block_keys(ours: str, theirs: str, *, cross: bool = False) -> KeyTable:
    """Map a post-norm `Block` to a layer of BERT.

    Args:
        ours: Such as "text_encoder.blocks.0".
        theirs: Such as "bert.encoder.layer.0".
        cross: Whether the layer has cross-attention, in the place where BERT's decoders have it.
    """
    table = linear_keys(
        f"{ours}.attention.qkv",
        *(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")),
    )
    table |= linear_keys(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
    table |= linear_keys(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
    if cross:
        other, mine = f"{theirs}.crossattention", f"{ours}.cross_attention"
        table |= linear_keys(f"{mine}.query", f"{other}.self.query")
        table |= linear_keys(f"{mine}.key_value", f"{other}.self.key", f"{other}.self.value")
        table |= linear_keys(f"{mine}.out", f"{other}.output.dense")
        table |= linear_keys(f"{ours}.cross_norm", f"{other}.output.LayerNorm")
    table |= linear_keys(f"{ours}.mlp.up", f"{theirs}.intermediate.dense")
    table |= linear_keys(f"{ours}.mlp.down", f"{theirs}.output.dense")
    return table | linear_keys(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")


def bert_head_keys(ours: str, theirs: str) -> KeyTable:
    """Map a `VocabularyHead`, its own matrix apart, to BERT's MLM head.

    Args:
        ours: Such as "mlm_head".
        theirs: Such as "cls.predictions".
    """
    table: KeyTable = {f"{ours}.bias": (f"{theirs}.bias",)}
    table |= linear_keys(f"{ours}.dense", f"{theirs}.transform.dense")
    return table | linear_keys(f"{ours}.norm", f"{theirs}.transform.LayerNorm")


def clip_vision_keys(ours: str, theirs: str, depth: int) -> KeyTable:
    """Map a `VisionTransformer` to OpenAI's image tower.

    Args:
        ours: Such as "visual_encoder".
        theirs: Such as "visual".
        depth: Number of blocks.
    """
    table: KeyTable = {
        f"{ours}.class_embedding": (f"{theirs}.class_embedding",),
        f"{ours}.position_embedding": (f"{theirs}.positional_embedding",),
        f"{ours}.patch_embedding.weight": (f"{theirs}.conv1.weight",),
    }
    table |= linear_keys(f"{ours}.norm_pre", f"{theirs}.ln_pre")
    table |= linear_keys(f"{ours}.norm_post", f"{theirs}.ln_post")
    for layer in range(depth):
        mine, block = f"{ours}.blocks.{layer}", f"{theirs}.transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            table[f"{mine}.attention.qkv.{kind}"] = (f"{block}.attn.in_proj_{kind}",)
        table |= linear_keys(f"{mine}.attention.out", f"{block}.attn.out_proj")
        table |= linear_keys(f"{mine}.attention_norm", f"{block}.ln_1")
        table |= linear_keys(f"{mine}.mlp.up", f"{block}.mlp.c_fc")
        table |= linear_keys(f"{mine}.mlp.down", f"{block}.mlp.c_proj")
        table |= linear_keys(f"{mine}.mlp_norm", f"{block}.ln_2")
    return table


def transformers_clip_vision_keys(ours: str, theirs: str, depth: int) -> KeyTable:
    """Map a `VisionTransformer` to CLIP's image tower as transformers names it.

    Args:
        ours: Such as "visual_encoder".
        theirs: Such as "vision_model".
        depth: Number of blocks.
    """
    table: KeyTable = {
        f"{ours}.class_embedding": (f"{theirs}.embeddings.class_embedding",),
        f"{ours}.position_embedding": (f"{theirs}.embeddings.position_embedding.weight",),
        f"{ours}.patch_embedding.weight": (f"{theirs}.embeddings.patch_embedding.weight",),
    }
    table |= linear_keys(f"{ours}.norm_pre", f"{theirs}.pre_layrnorm")
    table |= linear_keys(f"{ours}.norm_post", f"{theirs}.post_layernorm")
    for layer in range(depth):
        mine, block = f"{ours}.blocks.{layer}", f"{theirs}.encoder.layers.{layer}"
        table |= linear_keys(
            f"{mine}.attention.qkv",
            *(f"{block}.self_attn.{part}_proj" for part in ("q", "k", "v")),
        )
        table |= linear_keys(f"{mine}.attention.out", f"{block}.self_attn.out_proj")
        table |= linear_keys(f"{mine}.attention_norm", f"{block}.layer_norm1")
        table |= linear_keys(f"{mine}.mlp.up", f"{block}.mlp.fc1")
        table |= linear_keys(f"{mine}.mlp.down", f"{block}.mlp.fc2")
        table |= linear_keys(f"{mine}.mlp_norm", f"{block}.layer_norm2")
    return table
