"""Greedy search, and beam search batched over images without a loop over beams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from triptych.core.config import check, check_range
from triptych.core.errors import NonFiniteError
from triptych.generation.decoding import (
    MAX_TOKENS,
    Allowed,
    DecodeStep,
    check_length,
    prompt_length,
)
from triptych.generation.slots import Lines, allowed_mask, grow


@torch.no_grad()
def greedy_search(
    step: DecodeStep,
    *,
    start_id: int,
    end_id: int,
    max_tokens: int,
    min_tokens: int = 0,
    prompt: Tensor | None = None,
    allowed: Allowed | None = None,
) -> list[list[int]]:
    """Generate one text an image.

    Args:
        step: A decoder that has read nothing yet.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text; -1 when texts have a fixed length.
        max_tokens: Longest text, the end token included and the prompt not.
        min_tokens: Tokens before the end token may come.
        prompt: (B, T) int64 tokens after the start token, the same number for each image.
        allowed: Which tokens may come next; R is 1.

    Returns:
        Token ids of each text, without start, prompt and end.

    Raises:
        ConfigError: `max_tokens` exceeds the decoder's positions.
    """
    check_length(step, prompt_length(prompt), max_tokens)

    def likeliest(logits: Tensor, said: Tensor, lengths: Tensor, images: Sequence[int]) -> Tensor:
        del images
        logits = logits.float()  # (n, 1, V)
        if allowed is not None:
            logits = logits.masked_fill(~allowed_mask(allowed, said, lengths), -torch.inf)
        if end_id >= 0:
            early = (lengths < min_tokens)[:, None]
            logits[..., end_id] = logits[..., end_id].masked_fill(early, -torch.inf)
        return logits.argmax(dim=-1)

    lines = Lines(likeliest, step.batch_size, 1, end_id, max_tokens)
    found = grow(step, lines, 1, start_id=start_id, prompt=prompt)
    return [_until(line.token_ids[0].tolist(), end_id) for line in found]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids


@dataclass(frozen=True, kw_only=True, slots=True)
class BeamConfig:
    """A beam search.

    Attributes:
        num_beams: Running texts R of an image, and the length of the n-best list (released: 5).
        min_tokens: Tokens before the end token may come (released VQA: 1, captioning: 8).
        max_tokens: Longest text, the end token included (released VQA: 10, captioning: 25).
        length_penalty: Exponent of the length divisor ((5 + t) / 6) (released: 0.6).
        stop: When an image is done. "none_better": `num_beams` texts have ended and no running
            one can beat the worst of them. "top_ended": the best candidate of a step is the end
            token, as in the released code; the n-best list may then be shorter.
    """

    num_beams: int = 5
    min_tokens: int = 1
    max_tokens: int = 20
    length_penalty: float = 0.6
    stop: Literal["none_better", "top_ended"] = "none_better"

    def __post_init__(self) -> None:
        """Reject a search without beams or tokens."""
        check_range("num_beams", self.num_beams, 1, 256)
        check_range("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        check_range("length_penalty", self.length_penalty, -10, 10)
        check(
            0 <= self.min_tokens < self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"be in [0, {self.max_tokens}), below max_tokens",
        )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One generated text.

    Attributes:
        token_ids: Generated tokens, without start, prompt and end.
        score: Sum of log-probabilities, the end token's included, over the length divisor.
    """

    token_ids: tuple[int, ...]
    score: float


@torch.no_grad()
def beam_search(
    step: DecodeStep,
    *,
    start_id: int,
    end_id: int,
    config: BeamConfig,
    prompt: Tensor | None = None,
    allowed: Allowed | None = None,
) -> list[list[Hypothesis]]:
    """Generate the n-best texts of each image.

    A text that has ended is never extended, and running texts replace ended ones, so
    that `num_beams` keep running. (The released code goes on extending ended texts below the top
    one, and returns some with tokens after the end.) Texts that still run at `max_tokens` count
    as ended there.

    Args:
        step: A decoder that has read nothing yet.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text.
        config: The search.
        prompt: (B, T) int64 tokens after the start token, the same number for each image. They
            count neither as tokens of the text nor in its score.
        allowed: Which tokens may come next. Scores stay the model's own probabilities, those of
            the other tokens are lost: so the best of a closed list is the likeliest of it.

    Returns:
        For each image its hypotheses, best first: `num_beams`, or fewer where the constraint or
        `stop` leaves fewer.

    Raises:
        ConfigError: `max_tokens` exceeds the decoder's positions.
        NonFiniteError: Probabilities were NaN.
    """
    check_length(step, prompt_length(prompt), config.max_tokens)
    beams = _Beams(config, end_id, step.batch_size, allowed)
    return grow(step, beams, config.num_beams, start_id=start_id, prompt=prompt)


@dataclass(slots=True)
class _State:
    """The running and the ended texts of some images, and the beams they go on from.

    Attributes:
        sums: (B, R) sums of log-probabilities of the running texts, falling. Before the first token
            the beams are equal, and only the first counts.
        tokens: (B, R, max_tokens) their tokens, of which `lengths` are filled.
        lengths: (B,) tokens of the running texts.
        origins: (B, R) beams that the running texts continue.
        ended_scores: (B, R) scores of the best ended texts, falling; -inf where there is none.
        ended_tokens: (B, R, max_tokens) their tokens.
        ended_lengths: (B, R) how many of these are the text, without the end token.
    """

    sums: Tensor
    tokens: Tensor
    lengths: Tensor
    origins: Tensor
    ended_scores: Tensor
    ended_tokens: Tensor
    ended_lengths: Tensor

    @classmethod
    def first(cls, batch: int, beams: int, size: int) -> _State:
        """Return texts without tokens."""
        nothing = torch.full((batch, beams), -torch.inf)
        sums = nothing.clone()
        sums[:, 0] = 0.0
        tokens = torch.zeros(batch, beams, size, dtype=torch.int64)
        lengths = torch.zeros(batch, dtype=torch.int64)
        origins = torch.arange(beams).expand(batch, -1).contiguous()
        zeros = torch.zeros(batch, beams, dtype=torch.int64)
        return cls(sums, tokens, lengths, origins, nothing, tokens.clone(), zeros)

    def tensors(self) -> list[Tensor]:
        """Return all, as `_State` takes them."""
        return [getattr(self, field.name) for field in fields(self)]

    def to(self, device: torch.device) -> _State:
        """Return them on a device."""
        return _State(*(x.to(device) for x in self.tensors()))

    def select(self, images: Sequence[int]) -> _State:
        """Return some images."""
        index = torch.tensor(images, device=self.sums.device)
        return _State(*(x.index_select(0, index) for x in self.tensors()))

    def put(self, images: Sequence[int], part: _State) -> None:
        """Overwrite some images."""
        index = torch.tensor(images, device=self.sums.device)
        for mine, theirs in zip(self.tensors(), part.tensors(), strict=True):
            mine.index_copy_(0, index, theirs)


class _Beams:
    """`SlotTexts` of beam search."""

    def __init__(
        self, config: BeamConfig, end_id: int, batch_size: int, allowed: Allowed | None
    ) -> None:
        self.config, self.end_id, self.allowed = config, end_id, allowed
        lengths, penalty = range(config.max_tokens + 1), config.length_penalty
        self._divisors = torch.tensor([length_divisor(t, penalty) for t in lengths])
        self._best_divisors = torch.tensor(
            [best_divisor(t, config.max_tokens, penalty) for t in lengths]
        )
        self._fresh = _State.first(1, config.num_beams, config.max_tokens)
        self._state = _State.first(batch_size, config.num_beams, config.max_tokens)

    @property
    def newest(self) -> Tensor:
        """(S, R) last token of each running text."""
        last = (self._state.lengths - 1).clamp(min=0)[:, None, None]
        return self._state.tokens.gather(2, last.expand(-1, self.config.num_beams, 1))[..., 0]

    @property
    def origins(self) -> Tensor:
        """(S, R) beams that the running texts continue."""
        return self._state.origins

    def begin(self, slot: int) -> None:
        """Start with no token."""
        self._state.put([slot], self._fresh)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these."""
        self._state = self._state.select(slots)

    def advance(self, logits: Tensor, slots: Sequence[int]) -> list[bool]:
        """Extend every running text of some slots by one token.

        Of twice `num_beams` candidates at least `num_beams` do not end, since each running text
        has one end.
        """
        if logits.device != self._state.sums.device:
            self._state, self._fresh = self._state.to(logits.device), self._fresh.to(logits.device)
            self._divisors = self._divisors.to(logits.device)
            self._best_divisors = self._best_divisors.to(logits.device)
        everything = len(slots) == len(logits)
        state = self._state if everything else self._state.select(slots)
        if not everything:
            logits = logits.index_select(0, torch.tensor(slots, device=logits.device))
        sums, origins, tokens = self._candidates(self._log_probs(logits, state), state)
        generated = _take(state.tokens, origins)  # (n, 2·R, max_tokens)
        place = state.lengths[:, None, None].expand(-1, tokens.shape[1], 1)
        generated.scatter_(2, place, tokens[..., None])
        state.lengths = state.lengths + 1
        is_end = tokens == self.end_id
        self._keep_ended(state, sums, generated, is_end)
        sums = sums.masked_fill(is_end, -torch.inf)
        state.sums, kept = sums.topk(self.config.num_beams, dim=1)
        state.tokens, state.origins = _take(generated, kept), origins.gather(1, kept)
        done: list[bool] = self._done(state, is_end[:, 0]).tolist()
        if not everything:
            self._state.put(slots, state)
        return done

    def _log_probs(self, logits: Tensor, state: _State) -> Tensor:
        """Return (n, R, V) float32 log-probabilities; -inf for what may not come."""
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        if self.allowed is not None:
            mask = allowed_mask(self.allowed, state.tokens, state.lengths)
            log_probs = log_probs.masked_fill(~mask, -torch.inf)
        if self.end_id >= 0:
            early = (state.lengths < self.config.min_tokens)[:, None]
            log_probs[..., self.end_id].masked_fill_(early, -torch.inf)
        return log_probs

    def _candidates(self, log_probs: Tensor, state: _State) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums, the beam each comes from, and tokens, (n, 2·R) each, best first."""
        vocab_size = log_probs.shape[2]
        joint = log_probs.add_(state.sums[..., None]).flatten(1)  # (n, R·V)
        sums, flat = joint.topk(2 * self.config.num_beams, dim=1)
        return sums, flat // vocab_size, flat % vocab_size

    def _keep_ended(self, state: _State, sums: Tensor, generated: Tensor, is_end: Tensor) -> None:
        """Merge what ends now into the n-best lists."""
        ends = is_end | (state.lengths == self.config.max_tokens)[:, None]
        scores = (sums / self._divisors[state.lengths, None]).masked_fill(~ends, -torch.inf)
        scores = torch.cat([state.ended_scores, scores], dim=1)
        lengths = torch.cat([state.ended_lengths, state.lengths[:, None] - is_end.long()], dim=1)
        state.ended_scores, kept = scores.topk(self.config.num_beams, dim=1)
        state.ended_tokens = _take(torch.cat([state.ended_tokens, generated], dim=1), kept)
        state.ended_lengths = lengths.gather(1, kept)

    def _done(self, state: _State, top_ended: Tensor) -> Tensor:
        """Return (n,) bool, True = the image's list is final."""
        last = state.lengths == self.config.max_tokens
        if self.config.stop == "top_ended":
            return last | top_ended
        bound = state.sums[:, 0] / self._best_divisors[state.lengths]
        return last | (bound <= state.ended_scores[:, -1])

    def result(self, slot: int) -> list[Hypothesis]:
        """Return a slot's n-best list, without empty entries.

        Raises:
            NonFiniteError: Probabilities of its tokens were NaN.
        """
        state = self._state
        rows = (state.ended_scores, state.ended_tokens, state.ended_lengths)
        scores, texts, lengths = (x[slot].tolist() for x in rows)
        if any(map(math.isnan, scores)):
            raise NonFiniteError(
                "the model's probabilities of the next token are NaN: its weights are damaged or "
                "too large; load another copy of it"
            )
        return [
            Hypothesis(tuple(ids[:length]), score)
            for score, ids, length in zip(scores, texts, lengths, strict=True)
            if score > -math.inf
        ]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Gather (B, C, T) at (B, K) along the middle axis: (B, K, T)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def length_divisor(num_tokens: int, length_penalty: float) -> float:
    """Return ((5 + t) / 6) ^ length_penalty (Wu et al. 2016, eq. 14).

    Args:
        num_tokens: Generated tokens t, the end token included and the start token not.
        length_penalty: 0 compares sums of log-probabilities; more favours longer texts.
    """
    return float(((5 + num_tokens) / 6) ** length_penalty)


def best_divisor(num_tokens: int, max_tokens: int, length_penalty: float) -> float:
    """Return the largest divisor that a text of more than `num_tokens` tokens can still get.

    A sum of log-probabilities is at most 0 and never grows, so sum / best_divisor is an upper
    bound of the score of everything that a running text can become.
    """
    longest = max_tokens if length_penalty >= 0 else min(num_tokens + 1, max_tokens)
    return length_divisor(longest, length_penalty)
