"""A decoder that remembers: each step costs one token, and the memory is never copied."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.nn.prepacked import MAX_ROWS, can_prepack, kept_twin

SHORT_TEXT = 3
"""Tokens after which a text, unlike most answers, is worth prepacking the decoder for."""


class CachedDecoder:
    """`DecodeStep` of a `TextDecoder`, starting from no token.

    Self-attention keys and values of earlier tokens are cached a beam; the cross-attention's were
    projected once an image and serve all its beams as query positions of one attention.

    Args:
        decoder: In eval mode, unless dropout is wanted.
        memory: What the decoder reads, one row an image.
    """

    def __init__(self, decoder: TextDecoder, memory: DecoderMemory) -> None:
        self.decoder = decoder
        self.memory = memory
        self.cache = decoder.new_cache()
        self._twin: TextDecoder | None = None

    @property
    def batch_size(self) -> int:
        """Images B."""
        return self.memory.batch_size

    @property
    def max_steps(self) -> int:
        """Rows of the decoder's position table."""
        return self.decoder.config.max_positions

    @property
    def device(self) -> torch.device:
        """Where token ids must lie."""
        return self.memory.layers[0].key.device

    def logits(self, token_ids: Tensor) -> Tensor:
        """Read the newest token of each beam (B, R) int64: (B, R, V) logits of the next one."""
        decoder = self._reader(token_ids.numel())
        return decoder.step(token_ids.to(self.device), self.memory, self.cache)

    def _reader(self, num_rows: int) -> TextDecoder:
        """Return the prepacked decoder where reading its weights is what takes the time.

        The first tokens never come from it, even where it is there from an earlier text: a text
        must not depend, in a last bit, on what was said before.
        """
        if self.cache.length < SHORT_TEXT or num_rows > MAX_ROWS or not can_prepack(self.decoder):
            return self.decoder
        if self._twin is None:
            self._twin = kept_twin(self.decoder, self.decoder.prepacked)
        return self._twin

    def reorder(self, rows: Tensor) -> None:
        """Keep the cached beams at `rows` (B·R,), image-major."""
        self.cache.select(rows.to(self.device))
