"""What a search needs of a decoder."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
