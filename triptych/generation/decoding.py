"""Decoders one step at a time: what a search needs, and a decoder that caches earlier tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from triptych.core.errors import ConfigError
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.nn.prepacked import kept_twin, packed_dtype

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

    def keep(self, images: Sequence[int]) -> None:
        """Drop all images but these, which rise."""

    def refill(self, image: int) -> bool:
        """Give an image's place to the next one that waits; return whether there was one."""


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


class CachedDecoder:
    """`DecodeStep` of a `TextDecoder`, starting from no token.

    Self-attention keys and values of earlier tokens are cached; the cross-attention's were
    projected once an image and serve all its beams as query positions of one attention.

    Args:
        decoder: In eval mode, unless dropout is wanted.
        memory: What the decoder reads, one row an image.
    """

    def __init__(self, decoder: TextDecoder, memory: DecoderMemory) -> None:
        self.decoder = decoder
        self.memory = memory
        self.cache = decoder.new_cache()
        self._reader = decoder
        if packed_dtype(decoder) is not None:
            self._reader = kept_twin(decoder, decoder.prepacked)

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
        return self._reader.step(token_ids.to(self.device), self.memory, self.cache)

    def reorder(self, rows: Tensor) -> None:
        """Keep the cached beams at `rows` (B·R,), image-major."""
        self.cache.select(rows.to(self.device))

    def keep(self, images: Sequence[int]) -> None:
        """Drop all images but these."""
        self.memory = self.memory.select(torch.tensor(images, device=self.device))
        self.cache.keep(images)

    def refill(self, image: int) -> bool:
        """No image waits."""
        del image
        return False


class SlotDecoder(CachedDecoder):
    """A cached decoder of a few places, each of which takes the next image when its text is done.

    Args:
        decoder: In eval mode, unless dropout is wanted.
        memories: What the decoder reads, some images at a time; asked for when places are free.
        num_slots: Places, at most.
    """

    def __init__(
        self, decoder: TextDecoder, memories: Iterable[DecoderMemory], num_slots: int
    ) -> None:
        self._memories = iter(memories)
        self._waiting: deque[tuple[DecoderMemory, int]] = deque()
        first = [found for _ in range(num_slots) if (found := self._next()) is not None]
        if not first:
            raise ValueError("there is no image")
        super().__init__(decoder, DecoderMemory.join(first))

    def refill(self, image: int) -> bool:
        """Give an image's place to the next one that waits."""
        found = self._next()
        if found is not None:
            self.memory.put(image, *found)
            self.cache.restart(image)
        return found is not None

    def _next(self) -> tuple[DecoderMemory, int] | None:
        """Return the next image: a memory and the row of it."""
        while not self._waiting:
            memory = next(self._memories, None)
            if memory is None:
                return None
            self._waiting.extend((memory, row) for row in range(memory.batch_size))
        return self._waiting.popleft()


MAX_SLOTS = 32
ROWS_AT_ONCE = {"cpu": 64}
MANY_ROWS = 512
"""On a GPU."""


def slots_for(rows: int, device: torch.device) -> int:
    """Return how many images are decoded at once.

    On a CPU 64 rows come within 5 % of the speed of any more of them (docs/efficiency.md), and each
    image holds its projected memory, 20 MB of a base model in fp32.

    Args:
        rows: Beams or samples of an image.
        device: Where the decoder computes.
    """
    return max(1, min(MAX_SLOTS, ROWS_AT_ONCE.get(device.type, MANY_ROWS) // rows))
