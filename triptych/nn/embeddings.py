"""From pixels and token ids to states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.nn.dropout import Dropout


class PatchEmbedding(nn.Module):
    """Cut an image into square patches and project each (Dosovitskiy et al. 2021, eq. 1).

    The weight has a convolution's shape, (D, 3, patch, patch), as released checkpoints store it;
    it is applied as one matrix product.
    """

    def __init__(
        self, embed_dim: int, patch_size: int, *, bias: bool, init_std: float | None = None
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim)) if bias else None

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, height, width) float to (B, P, D), patches in row-major order."""
        size = self.patch_size
        batch, channels, height, width = image.shape
        patches = image.reshape(batch, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, P, 3·size²)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class ConvolutionalStem(nn.Module):
    """3x3 convolutions of stride 2 before the patch projection (Xiao et al. 2021).

    Each is followed by a LayerNorm over channels and GELU. Small models learn shapes from far fewer
    images than with a linear projection of raw pixels; no released checkpoint has such a stem.

    Args:
        embed_dim: Width D.
        patch_size: Side of a patch in pixels: a multiple of 2 to the number of convolutions.
        widths: Channels of each convolution.
        init_std: Deviation of the fresh patch projection; None takes the model's.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        widths: tuple[int, ...],
        *,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.init_std = init_std
        channels = (3, *widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 3, stride=2, padding=1, bias=False)
            for i in range(len(widths))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for width in widths)
        side = patch_size // 2 ** len(widths)
        self.patch_projection = nn.Conv2d(channels[-1], embed_dim, side, stride=side)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, height, width) float to (B, P, D), patches in row-major order."""
        x = image.contiguous(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x).permute(0, 2, 3, 1)  # (B, H, W, C)
            x = F.gelu(norm(x)).permute(0, 3, 1, 2)
        return self.patch_projection(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def build_patches(
    embed_dim: int,
    patch_size: int,
    stem_widths: tuple[int, ...],
    *,
    bias: bool,
    init_std: float | None = None,
) -> nn.Module:
    """Return what maps pixels (B, 3, S, S) to patches (B, P, D): a stem, if it has widths.

    Args:
        embed_dim: Width D.
        patch_size: Side of a patch in pixels.
        stem_widths: Channels of the stem's convolutions; none for a linear projection.
        bias: Whether the linear projection has one; a stem's always has.
        init_std: Deviation of random weights of the projection; None takes the model's.
    """
    if stem_widths:
        return ConvolutionalStem(embed_dim, patch_size, stem_widths, init_std=init_std)
    return PatchEmbedding(embed_dim, patch_size, bias=bias, init_std=init_std)


def check_stem(patch_size: int, stem_widths: tuple[int, ...]) -> None:
    """Reject a stem that halves a patch too often.

    Raises:
        ConfigError: The patch is no multiple of 2 to the number of widths.
    """
    check(
        patch_size % 2 ** len(stem_widths) == 0,
        "stem_widths",
        stem_widths,
        f"halve patches of {patch_size} px to at least one: too many widths",
    )


def hide_pixels(image: Tensor, hidden_patches: Tensor, patch_size: int) -> Tensor:
    """Return images with 0 in place of masked patches, since a stem looks beyond its patch.

    Args:
        image: (B, 3, S, S) float.
        hidden_patches: (B, P) bool, True = hidden.
        patch_size: Side of a patch in pixels.
    """
    grid = image.shape[-1] // patch_size
    pixels = hidden_patches.reshape(-1, 1, grid, grid)
    pixels = pixels.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return image * ~pixels  # (B, 1, S, S) over the colours


class TextEmbedding(nn.Module):
    """Word, position and type tables, a LayerNorm and dropout (Devlin et al. 2019, figure 2).

    Without position rows (`max_positions` 0) the order of words must come from elsewhere, such as
    relative positions in the attention.
    """

    def __init__(
        self, vocab_size: int, embed_dim: int, max_positions: int, norm_eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, embed_dim)
        self.position = nn.Embedding(max_positions, embed_dim) if max_positions else None
        self.token_type = nn.Embedding(2, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map (B, L) int64 ids to (B, L, D); the type is always 0."""
        x = self.word(token_ids)
        if self.position is not None:
            x = x + self.position.weight[: token_ids.shape[1]]  # (L, D)
        return self.dropout(self.norm(x + self.token_type.weight[0]))  # type: ignore[no-any-return]

    def step(self, token_ids: Tensor, position: int | Tensor) -> Tensor:
        """Map the newest token of each beam, (B, R) int64, to (B, R, D).

        Args:
            token_ids: The tokens.
            position: Where they stand: one number, or (B, 1) int64.
        """
        x = self.word(token_ids)
        if self.position is not None:
            x = x + self.position.weight[position]
        return self.dropout(self.norm(x + self.token_type.weight[0]))  # type: ignore[no-any-return]
