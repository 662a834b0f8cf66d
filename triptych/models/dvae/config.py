"""The sizes of a discrete variational autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.core.config import check
from triptych.core.errors import ConfigError

ENCODER_STRIDE_EXPONENT = 3
"""Max pools of the encoder: one after each group but the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DVAEConfig:
    """A dVAE of the shape of DALL-E's (Ramesh et al. 2021, section 2.1 and appendix A).

    The encoder has stride 8, so an image of `image_size` px has (image_size / 8)² codes. Masked
    image modelling wants one code a patch: an encoder that cuts an image of S px into patches of
    p px goes with a dVAE of `image_size` = 8 · S / p, which sees the same crop at that size. With
    p = 16 that is S / 2: 112 px for 224 in BEiT and FLAVA, 32 px for 64; `codebook_image_size`.

    Attributes:
        image_size: Side of the square input in pixels; a multiple of 8.
        num_codes: Entries of the codebook (DALL-E, BEiT and FLAVA: 8192).
        hidden_dim: Channels of the first group; group g has 2^(g-1) times as many (DALL-E: 256).
        blocks_per_group: Residual blocks in each of the four groups (DALL-E: 2).
        code_dim: Width of a code's vector, the decoder's input (DALL-E: 128).
        has_decoder: Whether there is a decoder. A tokenizer from released encoder weights has none.
    """

    image_size: int = 112
    num_codes: int = 8192
    hidden_dim: int = 256
    blocks_per_group: int = 2
    code_dim: int = 128
    has_decoder: bool = True

    def __post_init__(self) -> None:
        """Reject sizes that do not fit."""
        size, stride = self.image_size, self.stride
        check(size > 0 and size % stride == 0, "image_size", size, f"be a multiple of {stride}")
        check(self.num_codes >= 2, "num_codes", self.num_codes, "be at least 2")
        fits = self.hidden_dim > 0 and self.hidden_dim % 4 == 0
        check(fits, "hidden_dim", self.hidden_dim, "be a multiple of 4")
        check(self.blocks_per_group >= 1, "blocks_per_group", self.blocks_per_group, "be 1 or more")
        check(self.code_dim >= 1, "code_dim", self.code_dim, "be at least 1")

    @property
    def stride(self) -> int:
        """Pixels between neighbouring codes, on each axis."""
        return int(2**ENCODER_STRIDE_EXPONENT)

    @property
    def grid_size(self) -> int:
        """Codes on each side of the image."""
        return self.image_size // self.stride

    @property
    def group_dims(self) -> tuple[int, ...]:
        """Channels of the encoder's groups; the decoder has them in reverse."""
        return tuple(self.hidden_dim * 2**g for g in range(ENCODER_STRIDE_EXPONENT + 1))

    @property
    def residual_gain(self) -> float:
        """Factor on each residual path: 1 / (number of blocks)² (1/64 in DALL-E)."""
        num_blocks = len(self.group_dims) * self.blocks_per_group
        return float(num_blocks**-2)


def codebook_image_size(image_size: int, patch_size: int) -> int:
    """Return the side in pixels of the dVAE's view whose codes lie on the patch grid.

    Args:
        image_size: Side of the encoder's input.
        patch_size: Side of a patch of the encoder.

    Raises:
        ConfigError: The patches do not fill the image.
    """
    if patch_size < 1 or image_size % patch_size:
        raise ConfigError(f"image_size = {image_size}: must be a multiple of patch {patch_size}")
    return int(image_size // patch_size * 2**ENCODER_STRIDE_EXPONENT)
