"""Frozen dataclasses that layers, tasks and evaluators pass to each other.

Shape letters: B batch, L text tokens, N image tokens (1 + patches), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an image encoder returns.

    Attributes:
        tokens: (B, N, D) states, the [CLS] token first.
        cls: (B, D') state of the image as a whole, where it is not `tokens[:, 0]`.
        inputs: (B, N, D) the sequence before the first block, of models whose fusion begins there.
    """

    tokens: Tensor
    cls: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """(B, D') state of the image as a whole: what a classifier reads."""
        return self.tokens[:, 0] if self.cls is None else self.cls

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Put the images of several batches of one model together."""
        return cls(
            torch.cat([part.tokens for part in parts]),
            None if parts[0].cls is None else torch.cat([_there(part.cls) for part in parts]),
            None if parts[0].inputs is None else torch.cat([_there(p.inputs) for p in parts]),
        )

    def as_clips(self, num_frames: int) -> ImageFeatures:
        """Join the images of each clip, `num_frames` in a row, as mPLUG reads clips (section 6).

        Returns:
            `tokens` and `inputs` of a clip's frames one after the other, (B, F·N, D), and as `cls`
            the mean of what `pooled` is for its frames, so that a linear projection of it is the
            mean of theirs.
        """
        tokens, cls, inputs = (
            None if part is None else part.unflatten(0, (-1, num_frames))  # type: ignore[no-untyped-call]
            for part in (self.tokens, self.pooled, self.inputs)
        )
        assert tokens is not None and cls is not None
        return ImageFeatures(
            tokens.flatten(1, 2), cls.mean(dim=1), None if inputs is None else inputs.flatten(1, 2)
        )

    def select(self, index: Tensor) -> ImageFeatures:
        """Return the images at `index` (M,) int64, which may repeat."""
        return ImageFeatures(
            self.tokens.index_select(0, index),
            None if self.cls is None else self.cls.index_select(0, index),
            None if self.inputs is None else self.inputs.index_select(0, index),
        )

    def to(self, device: torch.device) -> ImageFeatures:
        """Return the same states on a device."""
        return ImageFeatures(
            self.tokens.to(device),
            None if self.cls is None else self.cls.to(device),
            None if self.inputs is None else self.inputs.to(device),
        )


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What a text encoder returns.

    Attributes:
        tokens: (B, L, D) states, the [CLS] token first.
        mask: (B, L) bool, True = real token that may be attended.
        cls: (B, D') state of the text as a whole, where it is not `tokens[:, 0]`.
        inputs: (B, L, D) the sequence before the first block, of models whose fusion begins there.
    """

    tokens: Tensor
    mask: Tensor
    cls: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """(B, D') state of the text as a whole: what a classifier reads."""
        return self.tokens[:, 0] if self.cls is None else self.cls

    def select(self, index: Tensor, length: int | None = None) -> TextFeatures:
        """Return the texts at `index` (M,) int64, which may repeat, cut to `length` tokens."""
        inputs = self.inputs
        return TextFeatures(
            self.tokens.index_select(0, index)[:, :length],
            self.mask.index_select(0, index)[:, :length],
            None if self.cls is None else self.cls.index_select(0, index),
            None if inputs is None else inputs.index_select(0, index)[:, :length],
        )

    def to(self, device: torch.device) -> TextFeatures:
        """Return the same states on a device."""
        return TextFeatures(
            self.tokens.to(device),
            self.mask.to(device),
            None if self.cls is None else self.cls.to(device),
            None if self.inputs is None else self.inputs.to(device),
        )


@dataclass(frozen=True, slots=True)
class FusedFeatures:
    """What a fusion network returns for M pairs.

    Attributes:
        image_tokens: (B, N, D) image states after fusion; with `image_index` None, B = M.
        text_tokens: (M, L, D) text states after fusion.
        text_mask: (M, L) bool, True = real token.
        image_index: (M,) int64, the row of `image_tokens` that belongs to each pair, or None.
        cls: (M, D') state of the pair, where it is not the fused text [CLS] token.
    """

    image_tokens: Tensor
    text_tokens: Tensor
    text_mask: Tensor
    image_index: Tensor | None = None
    cls: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """(M, D') state of the pair: the fused text [CLS] token, unless the model has its own."""
        return self.text_tokens[:, 0] if self.cls is None else self.cls

    def rows(self, rows: slice) -> FusedFeatures:
        """Return a run of the M pairs."""
        cls = None if self.cls is None else self.cls[rows]
        if self.image_index is None:
            return FusedFeatures(
                self.image_tokens[rows], self.text_tokens[rows], self.text_mask[rows], cls=cls
            )
        return FusedFeatures(
            self.image_tokens,
            self.text_tokens[rows],
            self.text_mask[rows],
            self.image_index[rows],
            cls,
        )

    def expanded_image_tokens(self) -> Tensor:
        """(M, N, D) image states, one row a pair."""
        if self.image_index is None:
            return self.image_tokens
        return self.image_tokens.index_select(0, self.image_index)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What `Task.predict` returns for one batch; lists are aligned with `index`.

    Attributes:
        index: (B,) positions of the samples in the dataset.
        texts: Generated texts (captions or answers), one a sample.
        boxes_xyxy: (B, 4) boxes in pixels of the original image.
        embeddings: Named tensors for retrieval, such as {"image": (B, E), "text": (B, E)}.
        scores: Anything else that a metric reads, one value a sample.
    """

    index: Sequence[int]
    texts: Sequence[str] | None = None
    boxes_xyxy: Tensor | None = None
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchKind:
    """One of several kinds of batches that a task can be trained on, such as pairs or texts alone.

    Attributes:
        batch_keys: Keys that `losses` reads of such a batch.
        objectives: Objectives that can be computed on it.
    """

    batch_keys: frozenset[str]
    objectives: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One number with what is needed to read it.

    Attributes:
        name: Key, such as "i2t_r1" or "vqa".
        value: The number; a share is in [0, 1].
        low: Lower end of the bootstrap 95 % interval.
        high: Upper end of the interval.
        num_items: How many items the value is a mean over.
        protocol: How it was computed, in one sentence that a paper could print.
        higher_is_better: Whether of two models the one with more of it is the better one.
    """

    name: str
    value: float
    low: float
    high: float
    num_items: int
    protocol: str
    higher_is_better: bool = True


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "features of one model have the same parts"
    return tensor
