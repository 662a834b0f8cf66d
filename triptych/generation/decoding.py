"""Decoders one step at a time: what a search needs, and a decoder that caches earlier tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from triptych.core.errors import ConfigError
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.nn.prepacked import MAX_ROWS, can_prepack, kept_twin

MAX_TOKENS = 16_384
"""Tokens of a generated text, at most."""

Allowed = Callable[[Tensor], Tensor]
"""Map the tokens generated so far (B, R, T) to a bool mask of next ones, that fits (B, R, V)."""


class DecodeStep(Protocol):
    """One step of a decoder, with what it has cached of earlier steps.

    A search starts with one row an image and forks it into R beams by `reorder`.
    """

    @property
    def batch_size(self) -> int:
        """Images B."""

    @property
    def max_steps(self) -> int:
        """Tokens that can be read, the start token included."""

    def logits(self, token_ids: Tensor) -> Tensor:
        """Read the newest token of each beam and score the next one.

        Args:
            token_ids: (B, R) int64.

        Returns:
            (B, R, V) logits.
        """

    def reorder(self, rows: Tensor) -> None:
        """Keep what is cached at `rows` (B·R,), image-major; rows may repeat.

        Row b·R' + r was beam r of image b, R' being the beams so far.
        """


def read_prompt(step: DecodeStep, start_id: int, prompt: Tensor | None = None) -> Tensor:
    """Read the start token and the prompt.

    Args:
        step: A decoder that has read nothing yet.
        start_id: First token that it reads.
        prompt: (B, T) int64 tokens after the start token, the same number for each image.

    Returns:
        (B, 1, V) logits of the first new token.
    """
    logits = step.logits(torch.full((step.batch_size, 1), start_id))
    for column in () if prompt is None else prompt.unbind(1):
        logits = step.logits(column[:, None])
    return logits


def prompt_length(prompt: Tensor | None) -> int:
    """Return the tokens T of a prompt (B, T); 0 where there is none."""
    return 0 if prompt is None else prompt.shape[1]


def check_length(step: DecodeStep, prompt_length: int, max_tokens: int) -> None:
    """Refuse a text that is longer than the decoder's position table.

    Raises:
        ConfigError: The last token that must be read has no position.
    """
    needed = prompt_length + max_tokens  # the start token is read, the last token is not
    if needed > step.max_steps:
        raise ConfigError(
            f"max_tokens {max_tokens} and a prompt of {prompt_length} tokens need {needed} "
            f"positions but the decoder has {step.max_steps}: lower max_tokens"
        )


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

        The first tokens never come from it, even where an earlier text built it: a text
        must not depend, in a last bit, on the texts generated before.
        """
        if self.cache.length < SHORT_TEXT or num_rows > MAX_ROWS or not can_prepack(self.decoder):
            return self.decoder
        if self._twin is None:
            self._twin = kept_twin(self.decoder, self.decoder.prepacked)
        return self._twin

    def reorder(self, rows: Tensor) -> None:
        """Keep the cached beams at `rows` (B·R,), image-major."""
        self.cache.select(rows.to(self.device))
