"""A discrete variational autoencoder of the shape of DALL-E's (Ramesh et al. 2021, appendix A.1).

Pixels enter and leave in the logit-Laplace range: 0.8·x + 0.1 for x in [0, 1]. As a normalisation
(x - mean) / std that is `PIXEL_MEAN` and `PIXEL_STD`, which a model folder's `preprocess.json` has.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.errors import CapabilityError, DataError
from triptych.models.dvae.config import DVAEConfig

PIXEL_MARGIN = 0.1
"""What the logit-Laplace map keeps away from 0 and 1 (DALL-E)."""

PIXEL_STD = (1 / (1 - 2 * PIXEL_MARGIN),) * 3
PIXEL_MEAN = (-PIXEL_MARGIN / (1 - 2 * PIXEL_MARGIN),) * 3


def map_pixels(pixels: Tensor) -> Tensor:
    """Bring [0, 1] to [0.1, 0.9], where the logit is finite."""
    return (1 - 2 * PIXEL_MARGIN) * pixels + PIXEL_MARGIN


def unmap_pixels(pixels: Tensor) -> Tensor:
    """Bring [0.1, 0.9] back to [0, 1] and clamp what lies outside."""
    return ((pixels - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


SHRINKAGE = 1e-3
"""Added to each variance, as a share of the largest, before features are whitened."""


class ResidualBlock(nn.Module):
    """Shortcut(x) + gain · path(x), the path four convolutions, each after a ReLU.

    The path is a quarter as wide as the output. The encoder's kernels are 3, 3, 3 and 1 wide, the
    decoder's 1, 3, 3 and 3. The shortcut is a 1x1 convolution where the width changes.
    """

    def __init__(
        self, in_dim: int, out_dim: int, gain: float, kernels: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.gain = gain
        narrow = out_dim // 4
        dims = [in_dim, narrow, narrow, narrow, out_dim]
        self.shortcut: nn.Module = (
            nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2)
            for a, b, kernel in zip(dims[:-1], dims[1:], kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim, h, w) to (B, out_dim, h, w)."""
        path = x
        for conv in self.convs:
            path = conv(F.relu(path))
        return torch.add(self.shortcut(x), path, alpha=self.gain)


class DVAEEncoder(nn.Module):
    """From pixels to a logit for each code at each position of the grid.

    A 7x7 convolution, four groups of residual blocks with 2x2 max pools between, and a 1x1
    convolution: DALL-E's encoder, which BEiT and FLAVA take their targets from.
    """

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        dims = config.group_dims
        self.input = nn.Conv2d(3, dims[0], 7, padding=3)
        self.groups = nn.ModuleList(
            _group(before, dim, config, (3, 3, 3, 1))
            for before, dim in zip((dims[0], *dims[:-1]), dims, strict=True)
        )
        self.output = nn.Conv2d(dims[-1], config.num_codes, 1)
        init_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        """Score every code at every position.

        Args:
            image: (B, 3, height, width) float in [0.1, 0.9]; sides that are multiples of 8.

        Returns:
            (B, V, height / 8, width / 8) logits.

        Raises:
            DataError: The sides are not multiples of the stride.
        """
        return self.output(self.features(image))  # type: ignore[no-any-return]

    def features(self, image: Tensor) -> Tensor:
        """Return what the last layer reads: (B, D, height / 8, width / 8), not below 0."""
        if image.shape[-1] % self.config.stride or image.shape[-2] % self.config.stride:
            raise DataError(
                f"codebook image is {tuple(image.shape[-2:])} px: its sides must be multiples of "
                f"{self.config.stride}"
            )
        x = self.input(_channels_last(image))
        for index, group in enumerate(self.groups):
            x = group(x if index == 0 else F.max_pool2d(x, 2))
        return F.relu(x)

    def codes(self, image: Tensor) -> Tensor:
        """Return the best code of each position, (B, P) int64 in row-major order."""
        return self(image).argmax(dim=1).flatten(1)  # type: ignore[no-any-return]


class DVAEDecoder(nn.Module):
    """From a distribution over codes at each position to a distribution of each pixel.

    A 1x1 convolution of the one-hot code, which is a table of code vectors; four groups of
    residual blocks with nearest-neighbour doublings between; a 1x1 convolution.
    """

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        dims = config.group_dims[::-1]
        self.input = nn.Conv2d(config.num_codes, config.code_dim, 1)
        self.groups = nn.ModuleList(
            _group(before, dim, config, (1, 3, 3, 3))
            for before, dim in zip((config.code_dim, *dims[:-1]), dims, strict=True)
        )
        self.output = nn.Conv2d(dims[-1], 6, 1)
        init_convolutions(self)

    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Decode soft or one-hot codes.

        Args:
            weights: (B, V, h, w) float, a distribution over the codes at each position.

        Returns:
            Location μ and log-scale ln b of the logit of each pixel, each (B, 3, 8h, 8w).
        """
        return self._decode(self.input(_channels_last(weights)))

    def decode_codes(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode (B, h, w) int64 codes, as `forward` does their one-hot form."""
        table = self.input.weight[:, :, 0, 0].T  # (V, code_dim)
        assert self.input.bias is not None
        vectors = F.embedding(codes, table) + self.input.bias  # (B, h, w, code_dim)
        return self._decode(vectors.permute(0, 3, 1, 2))  # channels last already

    def _decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for index, group in enumerate(self.groups):
            x = group(x if index == 0 else F.interpolate(x, scale_factor=2, mode="nearest"))
        location, log_scale = self.output(F.relu(x)).chunk(2, dim=1)
        return location, log_scale


class DVAE(nn.Module):
    """Encoder and decoder. `codes` is what other models use, frozen, as an image tokenizer."""

    capabilities = frozenset({"image_codes"})

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = DVAEEncoder(config)
        self.decoder = DVAEDecoder(config) if config.has_decoder else None

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.image_size

    @torch.no_grad()
    def codes(self, image: Tensor) -> Tensor:
        """Return the best code of each position.

        Args:
            image: (B, 3, height, width) float in [0.1, 0.9].

        Returns:
            (B, P) int64 in row-major order.
        """
        return self.encoder.codes(image)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the image of each grid of codes.

        Args:
            codes: (B, h, w) int64.

        Returns:
            (B, 3, 8h, 8w) float in [0, 1]: the median of each pixel's distribution.

        Raises:
            CapabilityError: The model has no decoder.
        """
        location, _ = self.need_decoder().decode_codes(codes)
        return unmap_pixels(location.sigmoid())

    def reconstruct(self, image: Tensor) -> Tensor:
        """Return (B, 3, height, width) float in [0, 1] from the best codes of mapped pixels."""
        height, width = (side // self.config.stride for side in image.shape[-2:])
        return self.decode(self.codes(image).view(-1, height, width))

    def need_decoder(self) -> DVAEDecoder:
        """Return the decoder, or raise a CapabilityError when there is none."""
        if self.decoder is None:
            raise CapabilityError("this image tokenizer has no decoder: it gives codes only")
        return self.decoder


def init_convolutions(module: nn.Module) -> None:
    """Draw weights from N(0, 1 / fan-in) and zero biases, as DALL-E's convolutions begin."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_in = child.in_channels * child.kernel_size[0] * child.kernel_size[1]
            nn.init.normal_(child.weight, std=fan_in**-0.5)
            assert child.bias is not None
            nn.init.zeros_(child.bias)


def _channels_last(x: Tensor) -> Tensor:
    """Return (B, C, h, w) with the channels of a position side by side, for fast convolutions."""
    return x.contiguous(memory_format=torch.channels_last)


def _group(
    in_dim: int, out_dim: int, config: DVAEConfig, kernels: tuple[int, int, int, int]
) -> nn.Sequential:
    dims = (in_dim, *(out_dim,) * config.blocks_per_group)
    return nn.Sequential(
        *(
            ResidualBlock(before, after, config.residual_gain, kernels)
            for before, after in pairwise(dims)
        )
    )


@torch.no_grad()
def spread_codes(
    encoder: DVAEEncoder, image: Tensor, scale: float, generator: torch.Generator | None = None
) -> None:
    """Set the last layer so that logits differ between positions.

    With a random last layer all positions of all images nearly agree on one code, and a short
    training makes this worse. Here each code gets a random direction in the whitened features of
    the last group, so that which code wins depends on what the position shows.

    Args:
        encoder: Its `output` is changed.
        image: (B, 3, H, W) float in [0.1, 0.9], images of the training data.
        scale: Standard deviation of the logits over positions and codes; the mean of each code
            is 0.
        generator: Source of the directions; the global one if absent.
    """
    features = encoder.features(image).movedim(1, -1).flatten(0, 2).float()  # (positions, D)
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances = variances.clamp(min=0)
    floor = SHRINKAGE * variances.max().clamp(min=torch.finfo(torch.float64).tiny)
    whiten = axes * (variances + floor).rsqrt() @ axes.T
    shape = encoder.output.weight.shape[:2]  # (V, D)
    directions = torch.randn(shape, generator=generator, device=features.device)
    weight = directions @ whiten.to(directions)
    weight *= scale / (centred.float() @ weight.T).std()
    encoder.output.weight.copy_(weight[:, :, None, None])
    assert encoder.output.bias is not None
    encoder.output.bias.copy_(-weight @ mean)
