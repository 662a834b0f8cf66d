"""FLAVA's three encoders (paper, section 3.1).

Each is a stack of pre-norm blocks and a last LayerNorm. The multimodal encoder reads the states of
the other two before that norm, everything else reads them after it. So `forward` returns states
before the norm, and callers apply `final_norm` to the few tokens they read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.errors import DataError
from triptych.models.flava.config import NORM_EPS, FLAVAFusionConfig, FLAVAVisionConfig
from triptych.nn.attention import key_bias
from triptych.nn.block import Block, BlockConfig
from triptych.nn.embeddings import build_patches, hide_pixels
from triptych.nn.encoder import TextConfig, check_text_length

PAD_ID = 0
"""Of [PAD], in BERT's vocabulary and in those that `triptych.text` trains."""


def first_token(x: Tensor) -> Tensor:
    """Return the position of the first token of (B, S, ...): (B, 1) zeros."""
    return torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)


class Stack(nn.ModuleList):
    """Blocks that run one after the other; they recompute what is cheap."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__(Block(config) for _ in range(depth))
        self.set_recompute_cheap(True)

    def set_recompute_cheap(self, recompute_cheap: bool) -> None:
        """Choose whether blocks compute cheap results again in the backward pass."""
        for block in self:
            block.recompute_cheap = recompute_cheap  # type: ignore[assignment]

    def run(self, x: Tensor, bias: Tensor | None = None, *, but_last: bool = False) -> Tensor:
        """Run all blocks, or all but the last, over (B, S, D)."""
        blocks = list(self)
        for block in blocks[:-1] if but_last else blocks:
            x = block(x, bias)
        return x

    def last(
        self, x: Tensor, bias: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Run the last block, for the tokens at `positions` (B, R) alone if they are given."""
        if positions is None:
            return self[-1](x, bias)  # type: ignore[no-any-return]
        return self[-1].read(x, positions, bias)  # type: ignore[no-any-return, operator]


class FLAVAImageEncoder(nn.Module):
    """ViT: [class; patches] + positions, blocks; a masked patch is the mask token at its position.

    There is no norm before the first block.
    """

    def __init__(self, config: FLAVAVisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.patch_embedding = build_patches(
            width, config.patch_size, config.stem_widths, bias=True, init_std=config.patch_init_std
        )
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(1 + config.num_patches, width))
        self.blocks = Stack(config.block(), config.depth)
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def init_tokens(self, std: float) -> None:
        """Draw what no layer draws from N(0, std²), cut at two deviations."""
        for parameter in (self.class_embedding, self.mask_token):
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
        std = self.config.position_init_std or std
        nn.init.trunc_normal_(self.position_embedding, std=std, a=-2 * std, b=2 * std)

    def embed(self, image: Tensor, hidden: Sequence[Tensor | None] = (None,)) -> Tensor:
        """Project the patches and return the first block's input for each mask.

        A linear projection runs once for all ways.

        Args:
            image: (B, 3, image_size, image_size) float.
            hidden: Each (B, P) bool, True = masked, or None for the whole image.

        Returns:
            (ways · B, N, D), way by way.

        Raises:
            DataError: The pixels have another size than the position table.
        """
        size = self.config.image_size
        if image.shape[-2:] != (size, size):
            raise DataError(
                f"image is {tuple(image.shape[-2:])} px but the model takes {size} x {size}: "
                "resize it, or load the model with that image size"
            )
        x = torch.cat(self._patches(image, [m if m is None else m.flatten(1) for m in hidden]))
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([cls, x], dim=1) + self.position_embedding.to(x.dtype)

    def _patches(self, image: Tensor, hidden: Sequence[Tensor | None]) -> list[Tensor]:
        """Return (B, P, D) for each mask; a stem sees no pixel of a masked patch."""
        if self.config.stem_widths:
            size = self.config.patch_size
            seen = [image if m is None else hide_pixels(image, m, size) for m in hidden]
            patches = list(self.patch_embedding(torch.cat(seen)).unflatten(0, (len(hidden), -1)))
        else:
            patches = [self.patch_embedding(image)] * len(hidden)
        token = self.mask_token.to(patches[0].dtype)
        return [
            x if m is None else torch.where(m[..., None], token, x)
            for x, m in zip(patches, hidden, strict=True)
        ]

    def forward(self, image: Tensor, hidden_patches: Tensor | None = None) -> Tensor:
        """Encode normalised pixels.

        Args:
            image: (B, 3, image_size, image_size) float.
            hidden_patches: (B, P) or (B, grid, grid) bool, True = masked.

        Returns:
            (B, N, D) states before `final_norm`, the class token first.
        """
        return self.blocks.run(self.embed(image, (hidden_patches,)))

    def class_state(self, image: Tensor) -> Tensor:
        """Encode pixels for their class token alone: (B, D), after `final_norm`."""
        x = self.blocks.run(self.embed(image), but_last=True)
        return self.final_norm(self.blocks.last(x, None, first_token(x))[:, 0])  # type: ignore[no-any-return]

    def read(self, image: Tensor, hidden_patches: Tensor, positions: Tensor) -> Tensor:
        """Encode as `forward` does, for the tokens at `positions` (B, R) alone: (B, R, D)."""
        x = self.blocks.run(self.embed(image, (hidden_patches,)), but_last=True)
        return self.blocks.last(x, None, positions)


class FLAVATextEncoder(nn.Module):
    """BERT's embedding under ViT's pre-norm blocks.

    Args:
        config: Width and tables.
        depth: Number of blocks.
        freeze_padding: Whether the row of [PAD] stays at 0, as in released code. It matters only
            where padding is attended.
    """

    def __init__(self, config: TextConfig, depth: int, *, freeze_padding: bool) -> None:
        super().__init__()
        self.config = config
        self.embedding = config.embedding()
        if freeze_padding:
            self.embedding.word.padding_idx = PAD_ID
        self.blocks = Stack(config.block(), depth)
        self.final_norm = config.final_norm()

    def init_tokens(self) -> None:
        """Set the row of [PAD] to 0 if it is frozen there."""
        if self.embedding.word.padding_idx is not None:
            with torch.no_grad():
                self.embedding.word.weight[PAD_ID].zero_()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Map (B, L) int64 ids to (B, L, D), the first block's input."""
        check_text_length(token_ids, self.config.max_positions)
        return self.embedding(token_ids)  # type: ignore[no-any-return]

    def forward(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode token ids.

        Args:
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token, may be attended.

        Returns:
            (B, L, D) states before `final_norm`. Values at padding are meaningless.
        """
        x = self.embed(token_ids)
        return self.blocks.run(x, key_bias(text_mask, x.dtype))

    def class_state(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode token ids for their class token alone: (B, D), after `final_norm`."""
        states = self.read(token_ids, text_mask, first_token(token_ids))
        return self.final_norm(states[:, 0])  # type: ignore[no-any-return]

    def read(self, token_ids: Tensor, text_mask: Tensor, positions: Tensor) -> Tensor:
        """Encode token ids as `forward` does, for the tokens at `positions` (B, R) alone."""
        x = self.embed(token_ids)
        bias = key_bias(text_mask, x.dtype)
        return self.blocks.last(self.blocks.run(x, bias, but_last=True), bias, positions)


class FLAVAFusionEncoder(nn.Module):
    """The multimodal encoder over [class; image states; text states], without positions.

    Args:
        config: Sizes.
        image_dim: Width of the image states.
        text_dim: Width of the text states.
    """

    def __init__(self, config: FLAVAFusionConfig, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.image_adapter = nn.Linear(image_dim, config.embed_dim)
        self.text_adapter = nn.Linear(text_dim, config.embed_dim)
        self.class_embedding = nn.Parameter(torch.empty(config.embed_dim))
        self.blocks = Stack(config.block(), config.depth)
        self.final_norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def init_tokens(self, std: float) -> None:
        """Draw the class token from N(0, std²), cut at two deviations."""
        nn.init.trunc_normal_(self.class_embedding, std=std, a=-2 * std, b=2 * std)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        *,
        image_index: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Fuse each text with its image.

        Args:
            image: (B, N, W) image states before their final norm.
            text: (M, L, T) text states before their final norm.
            text_mask: (M, L) bool, True = may be attended.
            image_index: (M,) int64, the image of each text; None means M = B, in order.
            positions: (M, R) int64, the tokens that are read; None reads all.

        Returns:
            (M, S, D) states before `final_norm`, S = 1 + N + L: class token, image, text; or
            (M, R, D) with `positions`.
        """
        image, text = self.image_adapter(image), self.text_adapter(text)
        if image_index is not None:
            image = image.index_select(0, image_index)
        cls = self.class_embedding.to(image.dtype).expand(len(text), 1, -1)
        x = torch.cat([cls, image, text.to(image.dtype)], dim=1)  # (M, S, D)
        bias = key_bias(F.pad(text_mask, (1 + image.shape[1], 0), value=True), x.dtype)
        return self.blocks.last(self.blocks.run(x, bias, but_last=True), bias, positions)
