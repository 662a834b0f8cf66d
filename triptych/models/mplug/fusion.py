"""Five ways to let image and text meet, behind one interface (paper, section 3.2 and figure 4).

| `MPLUGConfig.fusion` | network | image states |
|---|---|---|
| `skip_connected` | asymmetric layers, connected ones between them (mPLUG) | updated by these |
| `connected_attention` | all layers attend over [image; text] (one stream) | updated by all |
| `co_attention` | a stream for each side, each reads the other (two streams) | updated by all |
| `asymmetric_co_attention` | text reads the image (ALBEF, BLIP) | as they came |
| `none` | both encoders' states side by side (late interaction) | as they came |

All take M texts over B images. What depends on the image alone is computed once an image, and text
padding is not computed at all.

`PairFusion` reads a text about two images (section 5.2.5). The released code has that task's data
but neither model nor config; what the paper leaves open follows BLIP, which it cites for the idea:
the branch of the second image starts as a copy of the first one's, and the outputs are averaged,
or joined by a linear layer as in BLIP's upper layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Literal, cast

import torch
from torch import Tensor, nn

from triptych.models.mplug.config import MPLUGConfig
from triptych.nn.attention import CrossAttention, key_bias
from triptych.nn.block import Block
from triptych.nn.packing import TokenGrid

Fused = tuple[Tensor, Tensor, Tensor | None]
"""What every network returns: image states, text states, and the image index that still applies.

Image states are (B, N, D) with the index that was given, or (M, N, D), one row a text, with None.
"""


class SkipConnectedFusion(nn.Module):
    """Asymmetric co-attention layers with connected-attention layers between them.

    Asymmetric layer: text self-attention, text-to-image cross-attention, FFN; the image stays as
    it is, so all texts of an image are the queries of one attention.
    Connected layer: self-attention and FFN over [image; text]; this skips the cost of updating
    the image in all other layers. Without connected layers this is ALBEF's asymmetric network,
    with nothing else it is the connected-attention network.

    Deviation from the paper, as in the released code: which layers are connected is given one by
    one, and a connected layer can add its image output to its image input.

    Args:
        config: Depth and sizes.
        connected_layers: Which layers, from 0, are connected; None takes the config's.
        image_residual: Whether a connected layer adds; None takes the config's.
    """

    def __init__(
        self,
        config: MPLUGConfig,
        connected_layers: Collection[int] | None = None,
        *,
        image_residual: bool | None = None,
    ) -> None:
        super().__init__()
        block, width = config.text.block(), config.text.embed_dim
        given = config.connected_layers if connected_layers is None else connected_layers
        self.connected_layers = frozenset(given)
        self.image_residual = (
            config.connected_image_residual if image_residual is None else image_residual
        )
        self.blocks = nn.ModuleList(
            Block(block, None if layer in self.connected_layers else width)
            for layer in range(config.fusion_depth)
        )
        self.final_norm = config.text.final_norm()
        self.image_norm = config.text.final_norm() if self.connected_layers else nn.Identity()

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        image_index: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Fused:
        """Fuse each text with its image.

        Args:
            image: (B, N, D) image states.
            text: (M, L, D) text states.
            text_mask: (M, L) bool, True = real token.
            image_index: (M,) int64, the image of each text; None means M = B, in order.
            read: (M, L) bool, True = somebody reads this text state; an asymmetric layer at the
                end computes no other. None means that all are read.

        Returns:
            Image states; text states (M, L, D), meaningless at padding and where nothing is read;
            and the image index that still applies: None when the image states are (M, N, D), one
            row a text.
        """
        rows = TokenGrid.of(text_mask, text.shape[-1])
        readers = _readers(rows, image, image_index)
        x = rows.pack(text)  # (T, D)
        wanted = None
        bias = key_bias(text_mask, text.dtype)
        joint_bias = torch.cat([bias.new_zeros(len(bias), 1, 1, image.shape[1]), bias], dim=-1)
        for layer, block in enumerate(_blocks(self.blocks)):
            if layer in self.connected_layers:
                joined = block.joint(image, x, joint_bias, rows, image_index)
                updated, x = torch.tensor_split(joined, [len(text) * image.shape[1]])
                updated = updated.view(-1, *image.shape[1:])
                image = updated + _each(image, image_index) if self.image_residual else updated
                image_index, readers = None, rows
            else:
                if read is not None and layer + 1 == len(self.blocks):
                    wanted = TokenGrid.of(text_mask & read, text.shape[-1])
                    readers = _readers(wanted, image, image_index)
                chosen = _chosen(image, image_index)
                x = block(x, bias, image, None, rows, readers, wanted, chosen)
        return self.image_norm(image), (wanted or rows).pad(self.final_norm(x)), image_index


class CoAttentionFusion(nn.Module):
    """Two streams of equal layers (ViLBERT; METER, Dou et al. 2022, section 2.2).

    Each layer of a stream: self-attention, cross-attention to the other stream's states before
    that layer, FFN. `blocks` are the text's and `image_blocks` the image's. In pre-norm the other
    stream's states are normalised as for its own self-attention.
    """

    def __init__(self, config: MPLUGConfig) -> None:
        super().__init__()
        block, width = config.text.block(), config.text.embed_dim
        self.blocks, self.image_blocks = (
            nn.ModuleList(Block(block, width) for _ in range(config.fusion_depth)) for _ in range(2)
        )
        self.final_norm = config.text.final_norm()
        self.image_norm = config.text.final_norm()

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        image_index: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Fused:
        """Fuse each text with its image; see `SkipConnectedFusion.forward`.

        The image states differ from text to text after the first layer, so the index is None. All
        text states are computed, whatever is read.
        """
        del read
        rows = TokenGrid.of(text_mask, text.shape[-1])
        readers = _readers(rows, image, image_index)
        x = rows.pack(text)  # (T, D)
        bias = key_bias(text_mask, text.dtype)
        pairs = zip(_blocks(self.blocks), _blocks(self.image_blocks), strict=True)
        for text_block, image_block in pairs:
            seen = _normed(image_block, image)
            words = rows.pad(_normed(text_block, x))  # (M, L, D)
            chosen = _chosen(image, image_index)
            x = text_block(x, bias, seen, None, rows, readers, None, chosen)
            image = image_block(_each(image, image_index), None, words, bias)
            image_index, readers = None, rows
        return self.image_norm(image), rows.pad(self.final_norm(x)), None


class LateFusion(nn.Module):
    """No network: text and image do not see each other before the decoder or the similarity."""

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        image_index: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Fused:
        """Return the states as they came; see `SkipConnectedFusion.forward`."""
        del text_mask, read
        return image, text, image_index


def build_fusion(config: MPLUGConfig) -> nn.Module:
    """Build the network that the config names."""
    if config.fusion == "none":
        return LateFusion()
    if config.fusion == "co_attention":
        return CoAttentionFusion(config)
    if config.fusion == "asymmetric_co_attention":
        return SkipConnectedFusion(config, ())
    if config.fusion == "connected_attention":
        return SkipConnectedFusion(config, range(config.fusion_depth), image_residual=False)
    return SkipConnectedFusion(config)


def _readers(rows: TokenGrid, image: Tensor, image_index: Tensor | None) -> TokenGrid:
    """Return the grid in which all tokens that read an image share its row.

    How wide it is depends on how many texts read one image. A device that would have to be waited
    for to learn that has a row a text, and keys and values of its image for each (`_chosen`).
    """
    if not TokenGrid.counts_at_once(image) or (image_index is None and rows.slots is None):
        return rows
    if image_index is None:
        image_index = torch.arange(len(image), device=image.device)
    return rows.group_rows(image_index, len(image))


def _chosen(image: Tensor, image_index: Tensor | None) -> Tensor | None:
    """Return the image of each row of `_readers`, where these are not the images in order."""
    return None if TokenGrid.counts_at_once(image) else image_index


def _each(image: Tensor, image_index: Tensor | None) -> Tensor:
    """Return one image row a text."""
    return image if image_index is None else image.index_select(0, image_index)


def _normed(block: Block, x: Tensor) -> Tensor:
    """Return what the block's self-attention would see."""
    return block.lend(_first_norm, x) if block.pre_norm else x


def _first_norm(block: Block, x: Tensor) -> Tensor:
    return block.attention_norm(x)  # type: ignore[no-any-return]


def _blocks(blocks: nn.ModuleList) -> list[Block]:
    return [block for block in blocks if isinstance(block, Block)]


Merge = Literal["mean", "linear"]


class LinearMerge(nn.Module):
    """A linear layer over two outputs side by side that begins as their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
            self.linear.bias.zero_()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two (B, L, D) to (B, L, D)."""
        return self.linear(torch.cat([first, second], dim=-1))  # type: ignore[no-any-return]


class MeanMerge(nn.Module):
    """The mean of two outputs."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map two (B, L, D) to (B, L, D)."""
        return (first + second) / 2


class PairFusion(nn.Module):
    """What the fusion network of a model needs besides its own layers to read two images.

    Asymmetric layer: text self-attention; the layer's own cross-attention reads the first image, a
    second one the second image; merge, residual, norm; FFN. Connected layer: the layer attends
    over [image; text] for each image; what the text took from the two is merged before the FFN.
    Two equal images therefore give, at the start, what the pre-trained network gives for one.

    The model's layers are used, not held: this module has the second branches and the merges.

    Args:
        fusion: A skip-connected, connected-attention or asymmetric fusion network.
        embed_dim: Its width D.
        merge: How the branches are joined.

    """

    def __init__(self, fusion: SkipConnectedFusion, embed_dim: int, merge: Merge = "mean") -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Identity() if block.cross_attention is None else copy.deepcopy(block.cross_attention)
            for block in _pair_blocks(fusion)
        )
        self.merges = nn.ModuleList(
            LinearMerge(embed_dim) if merge == "linear" else MeanMerge() for _ in fusion.blocks
        )

    def forward(
        self, fusion: SkipConnectedFusion, images: Tensor, text: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Fuse each text with its two images.

        Args:
            fusion: Whose layers are used; the one given at the start, or its like.
            images: (2, B, N, D) image states, the first images and the second ones.
            text: (B, L, D) text states.
            text_mask: (B, L) bool, True = real token.

        Returns:
            (B, L, D) text states, meaningless at padding.
        """
        bias = key_bias(text_mask, text.dtype)
        for block, branch, merge in zip(
            _pair_blocks(fusion), self.branches, self.merges, strict=True
        ):
            if isinstance(branch, CrossAttention):
                text = block.lend(_asymmetric, branch, merge, images, text, bias)
            else:
                updated, text = block.lend(_connected, merge, images, text, bias)
                images = images + updated if fusion.image_residual else updated
        return fusion.final_norm(text)  # type: ignore[no-any-return]


def _asymmetric(
    block: Block,
    branch: CrossAttention,
    merge: nn.Module,
    images: Tensor,
    text: Tensor,
    bias: Tensor,
) -> Tensor:
    """Run a layer in which the text reads both images, one with each branch."""
    own = cast(CrossAttention, block.cross_attention)
    first = own.prepare(images[0], text.shape[1])
    second = branch.prepare(images[1], text.shape[1])
    text = _sublayer(block, block.attention_norm, text, lambda x: block.attention(x, bias))
    text = _sublayer(
        block, block.cross_norm, text, lambda x: merge(own(x, first), branch(x, second))
    )
    return _sublayer(block, block.mlp_norm, text, block.mlp)


def _connected(
    block: Block, merge: nn.Module, images: Tensor, text: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a layer over [first image; text] and [second image; text]; merge the text's parts."""
    num_image = images.shape[2]
    joint_bias = torch.cat([bias.new_zeros(len(bias), 1, 1, num_image), bias], dim=-1)

    def attend(states: Tensor) -> Tensor:
        return block.attention(states, joint_bias.repeat(2, 1, 1, 1))  # type: ignore[no-any-return]

    normed = [block.attention_norm(x) if block.pre_norm else x for x in (images, text)]
    joint = torch.cat([normed[0], normed[1].to(images.dtype).expand(2, -1, -1, -1)], dim=2)
    attended = attend(joint.flatten(0, 1)).view(joint.shape)  # (2, B, N + L, D)
    of_images, of_text = torch.split(attended, [num_image, text.shape[1]], dim=2)
    merged = merge(of_text[0], of_text[1])
    images = _residual(block, block.attention_norm, images, of_images)
    text = _residual(block, block.attention_norm, text, merged)
    return tuple(_sublayer(block, block.mlp_norm, x, block.mlp) for x in (images, text))  # type: ignore[return-value]


def _sublayer(block: Block, norm: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Return x + f(LN(x)) in pre-norm, LN(x + f(x)) in post-norm, with the block's dropout."""
    return _residual(block, norm, x, run(norm(x) if block.pre_norm else x))


def _residual(block: Block, norm: nn.Module, x: Tensor, update: Tensor) -> Tensor:
    x = x + block.dropout(update)
    return x if block.pre_norm else norm(x)  # type: ignore[no-any-return]


def _pair_blocks(fusion: SkipConnectedFusion) -> list[Block]:
    return [block for block in fusion.blocks if isinstance(block, Block)]
