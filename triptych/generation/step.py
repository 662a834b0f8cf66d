"""What a search needs of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Allowed = Callable[[Tensor], Tensor]
"""Map the tokens said so far (B, R, T) to a bool mask of next ones, broadcastable to (B, R, V)."""


class DecodeStep(Protocol):
    """One step of a decoder, with whatever it remembers of earlier steps.

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
        """Keep what is remembered at `rows` (B·R,), image-major; rows may repeat.

        Row b·R' + r was beam r of image b, R' being the beams so far.
        """


def read_prompt(step: DecodeStep, start_id: int, prompt: Tensor | None = None) -> Tensor:
    """Let a decoder read the start token and a forced beginning.

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
