"""Texts of many images at once: an image has a slot, which the next one takes when it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from triptych.generation.decoding import Allowed, DecodeStep, prompt_length

R_co = TypeVar("R_co", covariant=True)

SHARE_IN_USE = 0.75
"""Slots that are left empty are dropped when no more than this share is in use: the memories of the
others are copied then."""


class SlotTexts(Protocol[R_co]):
    """The texts that grow in S slots, R beams each, and the rule by which they grow."""

    @property
    def newest(self) -> Tensor:
        """(S, R) int64 last token of each beam; any number where there is none."""

    @property
    def origins(self) -> Tensor | None:
        """(S, R) int64 beam of its slot that each beam goes on from; None where all stay."""

    def begin(self, slot: int) -> None:
        """Start the texts of another image."""

    def advance(self, logits: Tensor, slots: Sequence[int]) -> list[bool]:
        """Extend the texts of some slots by one token; say which of these slots are done.

        Args:
            logits: (S, R, V) of all slots.
            slots: Those that have read their prompt, rising.
        """

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which rise."""

    def result(self, slot: int) -> R_co:
        """Return what a slot that is done has found."""


def grow(
    step: DecodeStep,
    texts: SlotTexts[R_co],
    num_beams: int,
    *,
    start_id: int,
    prompt: Tensor | None = None,
) -> list[R_co]:
    """Generate the texts of all images, those that wait for a slot included.

    What an image gets does not depend on the others: each slot has its own position.

    Args:
        step: A decoder that has read nothing yet.
        texts: The texts, begun for each slot.
        num_beams: Beams R of an image.
        start_id: First token that the decoder reads.
        prompt: (B, T) int64 tokens after the start token, or (1, T) for all images alike.

    Returns:
        The results, an image each, in order.
    """
    num_forced = 1 + prompt_length(prompt)
    images, found = list(range(step.batch_size)), dict[int, R_co]()
    forced = [0] * len(images)  # tokens of start and prompt that each slot has read
    in_use, following = [True] * len(images), len(images)
    step.reorder(torch.arange(len(images)).repeat_interleave(num_beams))
    while any(in_use):
        token_ids = texts.newest
        if min(forced) < num_forced:
            token_ids = token_ids.clone()
            for slot, (image, count) in enumerate(zip(images, forced, strict=True)):
                if count < num_forced:
                    token_ids[slot] = start_id if count == 0 else _forced(prompt, image, count)
        logits = step.logits(token_ids)
        forced = [min(count + 1, num_forced) for count in forced]
        ready = [s for s, used in enumerate(in_use) if used and forced[s] == num_forced]
        done = texts.advance(logits, ready) if ready else []
        if texts.origins is not None and not all(done):
            step.reorder(_flat(texts.origins))
        for slot in (s for s, ended in zip(ready, done, strict=True) if ended):
            found[images[slot]] = texts.result(slot)
            in_use[slot] = step.refill(slot)
            forced[slot] = 0
            images[slot], following = following, following + in_use[slot]
            texts.begin(slot)
        kept = [slot for slot, used in enumerate(in_use) if used]
        if 0 < len(kept) <= SHARE_IN_USE * len(in_use):
            step.keep(kept)
            texts.keep(kept)
            images, forced = [images[s] for s in kept], [forced[s] for s in kept]
            in_use = [True] * len(kept)
    return [found[image] for image in sorted(found)]


def _forced(prompt: Tensor | None, image: int, count: int) -> Tensor:
    """Return the prompt's token for an image that has read the start and count - 1 tokens."""
    assert prompt is not None
    return prompt[image if len(prompt) > 1 else 0, count - 1]


def _flat(origins: Tensor) -> Tensor:
    """Return beams of slots (S, R) as flat rows (S·R,)."""
    slots, beams = origins.shape
    return (torch.arange(slots, device=origins.device)[:, None] * beams + origins).flatten()


def allowed_mask(allowed: Allowed, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Ask a constraint about texts of several lengths.

    Args:
        allowed: The constraint.
        tokens: (n, R, max_tokens) int64.
        lengths: (n,) how many of them are filled.

    Returns:
        A mask that fits (n, R, V).
    """
    counts: list[int] = lengths.tolist()
    if len(set(counts)) == 1:
        return allowed(tokens[..., : counts[0]])
    masks = [allowed(tokens[row : row + 1, :, :count]) for row, count in enumerate(counts)]
    shape = (1, tokens.shape[1], masks[0].shape[-1])
    return torch.cat([mask.expand(shape) for mask in masks])


@dataclass(frozen=True, slots=True)
class Line:
    """The texts of an image, each of which grew by itself.

    Attributes:
        token_ids: (..., R, T) int64, the end token included, then the end token as padding.
        mask: (..., R, T) bool, True = a token of the text; the end token counts.
        ended: (..., R) bool, False = the text was cut.
    """

    token_ids: Tensor
    mask: Tensor
    ended: Tensor

    def select(self, index: int | Sequence[int]) -> Line:
        """Return a copy of what stands at an index of the first axis."""
        return Line(*(x[index].clone() for x in (self.token_ids, self.mask, self.ended)))

    def to(self, device: torch.device) -> Line:
        """Return it on a device."""
        return Line(*(x.to(device) for x in (self.token_ids, self.mask, self.ended)))


Pick = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
"""Choose the next tokens (n, R): from logits (n, R, V), the tokens so far (n, R, max_tokens), how
many of them are filled (n,), and the numbers of the images."""


class Lines:
    """`SlotTexts` of texts that never fork.

    Args:
        pick: Chooses the next tokens.
        batch_size: Slots S.
        num_beams: Texts R of an image.
        end_id: Token that ends a text; -1 where texts have a fixed length.
        max_tokens: Longest text.
        together: Whether all images stay until the last one is done, as a pick that draws all rows
            from one stream of numbers needs.
    """

    origins = None

    def __init__(
        self,
        pick: Pick,
        batch_size: int,
        num_beams: int,
        end_id: int,
        max_tokens: int,
        *,
        together: bool = False,
    ) -> None:
        self._pick, self._end_id, self._together = pick, end_id, together
        shape = batch_size, num_beams, max_tokens
        self._lines = Line(
            torch.full(shape, max(end_id, 0)),
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(shape[:2], dtype=torch.bool),
        )
        self._lengths = torch.zeros(batch_size, dtype=torch.int64)
        self._images, self._following = list(range(batch_size)), batch_size

    @property
    def newest(self) -> Tensor:
        """(S, R) last token of each text."""
        tokens = self._lines.token_ids
        last = (self._lengths - 1).clamp(min=0)[:, None, None]
        return tokens.gather(2, last.expand(-1, tokens.shape[1], 1))[..., 0]

    def begin(self, slot: int) -> None:
        """Start with no token."""
        lines = self._lines
        lines.token_ids[slot], lines.mask[slot] = max(self._end_id, 0), False
        lines.ended[slot], self._lengths[slot] = False, 0
        self._images[slot], self._following = self._following, self._following + 1

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these."""
        self._lines = self._lines.select(slots)
        self._lengths = self._lengths[slots]
        self._images = [self._images[slot] for slot in slots]

    def advance(self, logits: Tensor, slots: Sequence[int]) -> list[bool]:
        """Extend the texts of some slots by one token."""
        lines, device = self._lines.to(logits.device), logits.device
        self._lines, self._lengths = lines, self._lengths.to(device)
        index = torch.tensor(slots, device=device)
        tokens, lengths, ended = lines.token_ids[index], self._lengths[index], lines.ended[index]
        logits = logits if len(slots) == len(logits) else logits[index]
        newest = self._pick(logits, tokens, lengths, [self._images[slot] for slot in slots])
        lines.token_ids[index, :, lengths] = newest.masked_fill(ended, self._end_id)
        lines.mask[index, :, lengths] = ~ended
        lines.ended[index] = ended = ended | (newest == self._end_id)
        self._lengths[index] += 1
        done = ended.all(dim=1) | (lengths + 1 == tokens.shape[2])
        found: list[bool] = done.tolist()
        return [all(found)] * len(found) if self._together else found

    def result(self, slot: int) -> Line:
        """Return the texts of a slot, padded to the longest that there may be."""
        return self._lines.select(slot)
