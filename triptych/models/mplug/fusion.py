"""The cross-modal skip-connected network (paper, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triptych.models.mplug.config import MPLUGConfig
from triptych.nn.attention import key_bias
from triptych.nn.block import Block


class SkipConnectedFusion(nn.Module):
    """Asymmetric co-attention layers with connected-attention layers between them.

    Asymmetric layer: text self-attention, text-to-image cross-attention, FFN; the image stays as
    it is, so its keys and values are projected once an image and gathered for every text.
    Connected layer: self-attention and FFN over [image; text]; this skips the cost of updating
    the image in all other layers.

    Deviation from the paper, as in the released code: which layers are connected is given one by
    one, and a connected layer adds its image output to its image input.
    """

    def __init__(self, config: MPLUGConfig) -> None:
        super().__init__()
        block, width = config.text.block(), config.text.embed_dim
        self.connected_layers = frozenset(config.connected_layers)
        self.image_residual = config.connected_image_residual
        self.blocks = nn.ModuleList(
            Block(block, None if layer in self.connected_layers else width)
            for layer in range(config.fusion_depth)
        )
        self.final_norm = config.text.final_norm()
        self.image_norm = config.text.final_norm() if config.connected_layers else nn.Identity()

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fuse each text with its image.

        Args:
            image: (B, N, D) image states.
            text: (M, L, D) text states.
            text_mask: (M, L) bool, True = real token.
            image_index: (M,) int64, the image of each text; None means M = B, in order.

        Returns:
            Image states; text states (M, L, D); and the image index that still applies: None when
            the image states are (M, N, D), one row a text.
        """
        text_bias = key_bias(text_mask, text.dtype)
        for layer, block in enumerate(self.blocks):
            if layer in self.connected_layers:
                if image_index is not None:
                    image, image_index = image.index_select(0, image_index), None
                image, text = self._connected(block, image, text, text_bias)
            else:
                memory = block.cross_attention.project(image)  # type: ignore[union-attr, operator]
                if image_index is not None:
                    memory = memory.select(image_index)
                text = block(text, text_bias, memory)
        return self.image_norm(image), self.final_norm(text), image_index

    def _connected(
        self, block: nn.Module, image: Tensor, text: Tensor, text_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_image = image.shape[1]
        joint = torch.cat([image, text.to(image.dtype)], dim=1)  # (M, N + L, D)
        image_bias = text_bias.new_zeros(len(text_bias), 1, 1, num_image)
        joint = block(joint, torch.cat([image_bias, text_bias], dim=-1))
        image_out, text_out = joint.split([num_image, joint.shape[1] - num_image], dim=1)
        return image + image_out if self.image_residual else image_out, text_out
