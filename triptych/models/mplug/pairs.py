"""A text about two images (paper, section 5.2.5): two cross-attention branches, merged.

The released code has the task's data but neither model nor config; what the paper leaves open
follows BLIP, which it cites for the idea: the branch of the second image starts as a copy of the
first one's, and the outputs are averaged, or joined by a linear layer as in BLIP's upper layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from triptych.models.mplug.fusion import SkipConnectedFusion
from triptych.nn.attention import CrossAttention, key_bias
from triptych.nn.block import Block

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
            for block in _blocks(fusion)
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
        for block, branch, merge in zip(_blocks(fusion), self.branches, self.merges, strict=True):
            if isinstance(branch, CrossAttention):
                text = _asymmetric(block, branch, merge, images, text, bias)
            else:
                updated, text = _connected(block, merge, images, text, bias)
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


def _blocks(fusion: SkipConnectedFusion) -> list[Block]:
    return [block for block in fusion.blocks if isinstance(block, Block)]
