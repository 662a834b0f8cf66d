"""Keys and values of the tokens that a decoder has already read.

The beams of an image share the columns of its cache: each token that a beam reads adds a column,
and a mask says which columns a beam has read. So beams that fork copy rows of the mask and no keys,
and their attention is one product over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SHARING = 16
"""Beams that share columns, at most; each reads over the columns of all. More have a row each."""

COLUMNS = 32
"""The shared columns that are attended over are a multiple of this, so that sums over them are
grouped alike however many the other images of a batch have; those that nobody reads add 0."""

OWN_COLUMNS = 8
"""The same where each beam has columns of its own."""

MASKED = -1e4
"""Added to the score of a masked key; exp(-1e4) is exactly 0 in fp32 and bf16."""


class Columns:
    """Which columns of a cache the beams have read, for all layers.

    A group is what shares columns: the g beams of an image, or one beam. Groups are image-major.

    Attributes:
        read: (G, g, C) bool, True = a token that the beam has read; C is a multiple of `COLUMNS`.
        filled: Columns of each group that hold a token, G numbers.
        bias: (G, 1, g, C) additive scores of the current step.
        newest: Groups (G, 1) and columns (G, g) of the current step's tokens.
    """

    newest: tuple[Tensor, Tensor]

    def __init__(self) -> None:
        self.read: Tensor | None = None
        self.filled: list[int] = []
        self.bias: Tensor | None = None

    @property
    def group_size(self) -> int:
        """Beams g that share columns."""
        return 1 if self.read is None else self.read.shape[1]

    def add(self, batch: int, beams: int, device: torch.device) -> None:
        """Give the newest token of each beam a column.

        Args:
            batch: Images B.
            beams: Beams of each image.
            device: Of the cache.
        """
        if self.read is None:
            count, size = (batch, beams) if beams <= MAX_SHARING else (batch * beams, 1)
            self.read = torch.zeros(count, size, 0, dtype=torch.bool, device=device)
            self.filled = [0] * count
        size = self.read.shape[1]
        step = COLUMNS if size > 1 or beams == 1 else OWN_COLUMNS
        width = _rounded(max(self.filled) + size, step)
        if width > self.read.shape[2]:
            self.read = torch.nn.functional.pad(self.read, (0, width - self.read.shape[2]))
        groups = torch.arange(len(self.filled), device=device)[:, None]  # (G, 1)
        first = torch.tensor(self.filled, device=device)
        places = first[:, None] + torch.arange(size, device=device)  # (G, g)
        self.read.scatter_(2, places[..., None], True)
        self.newest = groups, places
        self.filled = [count + size for count in self.filled]
        bias = torch.zeros(self.read.shape, device=device).masked_fill_(~self.read, MASKED)
        self.bias = bias[:, None]


class LayerCache:
    """Self-attention keys and values of one layer.

    Args:
        columns: Shared by all layers; tells of each step before they append.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the newest token of each beam, (G, H, g, K) each, and return all columns.

        Returns:
            Keys and values, (G, H, C, K) each, zeros where no token is.
        """
        assert self.columns.read is not None
        width = self.columns.read.shape[2]
        self._key, self._value = (
            _widened(self._key, key, width),
            _widened(self._value, value, width),
        )
        groups, places = self.columns.newest
        self._key[groups, :, places] = key.transpose(1, 2)
        self._value[groups, :, places] = value.transpose(1, 2)
        return self._key, self._value

    def select(self, groups: Tensor, width: int) -> None:
        """Keep the groups at `groups`, in that order, and so many columns; groups may repeat."""
        if self._key is not None and self._value is not None:
            self._key = self._key[:, :, :width].index_select(0, groups)
            self._value = self._value[:, :, :width].index_select(0, groups)


def _rounded(number: int, step: int) -> int:
    """Return the lowest multiple of `step` that is not below a number."""
    return -(-number // step) * step


def _widened(old: Tensor | None, new: Tensor, width: int) -> Tensor:
    """Return `old` (G, H, C, K) with `width` columns; `new` tells sizes where there is none."""
    if old is not None and old.shape[2] == width:
        return old
    groups, heads, _, size = new.shape
    wide = new.new_zeros(groups, heads, width, size)
    if old is not None:
        wide[:, :, : old.shape[2]] = old
    return wide


class DecoderCache:
    """One `LayerCache` a layer, and how many tokens each image's beams have read.

    Attributes:
        columns: Shared by the layers.
        layers: One a layer.
        lengths: B numbers; empty before the first step.
    """

    def __init__(self, num_layers: int) -> None:
        self.columns = Columns()
        self.layers = [LayerCache(self.columns) for _ in range(num_layers)]
        self.lengths: list[int] = []

    def positions(self, batch: int, beams: int, device: torch.device) -> int | Tensor:
        """Begin a step: return where the newest tokens stand, one number or (B, 1) int64."""
        self.lengths = self.lengths or [0] * batch
        self.columns.add(batch, beams, device)
        before, self.lengths = self.lengths, [length + 1 for length in self.lengths]
        if len(set(before)) == 1:
            return before[0]
        return torch.tensor(before, device=device)[:, None]

    def select(self, rows: Tensor) -> None:
        """Reorder the beams of each image.

        Args:
            rows: (B·R,) image-major; row b·R' + r was beam r of image b, R' being the beams so
                far. Rows may repeat.
        """
        columns = self.columns
        if columns.read is None:
            return
        beams, size = len(rows) // len(self.lengths), columns.group_size
        read = columns.read.flatten(0, 1).index_select(0, rows)  # (B·R, C)
        if len(columns.filled) == len(self.lengths) and beams <= MAX_SHARING:
            columns.read = read.unflatten(0, (-1, beams))  # type: ignore[no-untyped-call]
            return
        groups, width = rows // size, _rounded(max(columns.filled), OWN_COLUMNS)
        columns.read = read[:, None, :width]
        columns.filled = [columns.filled[group] for group in groups.tolist()]
        for layer in self.layers:
            layer.select(groups, width)

    def keep(self, images: Sequence[int]) -> None:
        """Drop all but some images."""
        columns = self.columns
        if columns.read is None:
            return
        share = len(columns.filled) // len(self.lengths)  # groups of an image
        groups = [image * share + part for image in images for part in range(share)]
        index = torch.tensor(groups, device=columns.read.device)
        columns.read = columns.read.index_select(0, index)
        columns.filled = [columns.filled[group] for group in groups]
        self.lengths = [self.lengths[image] for image in images]
        for layer in self.layers:
            layer.select(index, columns.read.shape[2])

    def restart(self, image: int) -> None:
        """Drop what the beams of an image have read."""
        columns = self.columns
        if columns.read is None:
            return
        share = len(columns.filled) // len(self.lengths)
        for group in range(image * share, (image + 1) * share):
            columns.read[group] = False
            columns.filled[group] = 0
        self.lengths[image] = 0
