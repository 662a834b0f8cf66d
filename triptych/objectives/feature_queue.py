"""A ring buffer of past embeddings (He et al. 2020), of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last Q image and text embeddings of the momentum encoders, with their keys.

    It starts empty: `features` returns only what was pushed. (The released code starts with random
    vectors as negatives.) Neither the batch nor the last batch need divide Q.
    """

    image: Tensor
    text: Tensor
    keys: Tensor
    state: Tensor

    def __init__(self, size: int, proj_dim: int, num_keys: int = 2) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, proj_dim))
        self.register_buffer("text", torch.zeros(size, proj_dim))
        self.register_buffer("keys", torch.zeros(size, num_keys, dtype=torch.int64))
        self.register_buffer("state", torch.zeros(2, dtype=torch.int64))  # next slot, filled

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return image embeddings (Q', E), text embeddings (Q', E) and keys (Q', F), Q' <= Q."""
        filled = int(self.state[1])
        return self.image[:filled], self.text[:filled], self.keys[:filled]

    def vitals(self) -> dict[str, float]:
        """Return how many pairs it holds, and the sum of the newest image embedding.

        That sum changes with every push: two equal ones in a row tell that there was none.
        """
        newest = self.image[int(self.state[0]) - 1] if self.size else self.image.new_zeros(1)
        return {"queue/filled": float(self.state[1]), "queue/newest": float(newest.sum())}

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, keys: Tensor) -> None:
        """Overwrite the oldest entries.

        Args:
            image: (B, E) embeddings; of a batch larger than Q only the last Q are kept.
            text: (B, E) embeddings of the same pairs.
            keys: (B, F) int64 keys of the same pairs.
        """
        if self.size == 0:
            return
        image, text, keys = image[-self.size :], text[-self.size :], keys[-self.size :]
        start, filled = int(self.state[0]), int(self.state[1])
        slots = (start + torch.arange(len(image), device=image.device)) % self.size
        self.image[slots] = image.to(self.image.dtype)
        self.text[slots] = text.to(self.text.dtype)
        self.keys[slots] = keys
        self.state[0] = (start + len(image)) % self.size
        self.state[1] = min(self.size, filled + len(image))
