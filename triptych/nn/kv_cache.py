"""Keys and values of the tokens that a decoder has already read."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Self-attention keys and values of one layer, grown by one token a step.

    Rows are image-major beams: row b·R + r is beam r of image b.
    """

    def __init__(self) -> None:
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add one token's key and value, (B·R, H, 1, K) each, and return all of them.

        Returns:
            Keys and values, (B·R, H, T, K) each, T counting the new token.
        """
        if self._key is None or self._value is None:
            self._key, self._value = key, value
        else:
            self._key = torch.cat([self._key, key], dim=2)
            self._value = torch.cat([self._value, value], dim=2)
        return self._key, self._value

    def select(self, rows: Tensor) -> None:
        """Keep the rows at `rows`, in that order; rows may repeat (beams that fork)."""
        if self._key is not None and self._value is not None:
            self._key = self._key.index_select(0, rows)
            self._value = self._value.index_select(0, rows)


class DecoderCache:
    """One `LayerCache` a layer, and the number of tokens read so far."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Reorder the rows of every layer (see `LayerCache.select`)."""
        for layer in self.layers:
            layer.select(rows)
