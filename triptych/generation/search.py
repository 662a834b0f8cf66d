"""Greedy search, and beam search batched over images without a loop over beams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.core.config import check, check_range
from triptych.generation.decoding import (
    MAX_TOKENS,
    Allowed,
    DecodeStep,
    check_length,
    prompt_length,
    read_prompt,
)


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
    logits = read_prompt(step, start_id, prompt)
    generated = torch.zeros(step.batch_size, 1, 0, dtype=torch.int64, device=logits.device)
    ended = torch.zeros(step.batch_size, 1, dtype=torch.bool, device=logits.device)
    for position in range(max_tokens):
        if position > 0:
            logits = step.logits(generated[..., -1])
        logits = logits.float()  # (B, 1, V)
        if allowed is not None:
            logits = logits.masked_fill(~allowed(generated), -torch.inf)
        if position < min_tokens and end_id >= 0:
            logits[..., end_id] = -torch.inf
        newest = logits.argmax(dim=-1)  # (B, 1)
        generated = torch.cat([generated, newest[..., None]], dim=-1)
        ended |= newest == end_id
        if bool(ended.all()):
            break
    return [_until(row, end_id) for row in generated[:, 0].tolist()]


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
    """
    check_length(step, prompt_length(prompt), config.max_tokens)
    logits = read_prompt(step, start_id, prompt)
    state = _Search(config, end_id, step.batch_size, logits.device)
    for position in range(config.max_tokens):
        if position > 0:
            logits = step.logits(state.newest)
        state.advance(_log_probs(logits, state, allowed), position)
        if position + 1 == config.max_tokens or bool(state.done.all()):
            break
        step.reorder(state.rows)
    return state.hypotheses()


def _log_probs(logits: Tensor, state: _Search, allowed: Allowed | None) -> Tensor:
    """Return (B, R, V) float32 log-probabilities; -inf for what the constraint forbids."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    if allowed is None:
        return log_probs
    return log_probs.masked_fill(~allowed(state.tokens[..., : state.length]), -torch.inf)


class _Search:
    """The running and the ended texts of all images.

    Attributes:
        sums: (B, R) sums of log-probabilities of the running texts, falling; R is 1 before the
            first step.
        tokens: (B, R, max_tokens) their tokens, of which `length` are filled.
        rows: (B·R,) flat rows that the running texts continue.
        done: (B,) bool, True = the image's list is final.
        ended_scores: (B, R) scores of the best ended texts, falling; -inf where there is none.
        ended_tokens: (B, R, max_tokens) their tokens.
        ended_lengths: (B, R) how many of these are the text, without the end token.
    """

    def __init__(
        self, config: BeamConfig, end_id: int, batch_size: int, device: torch.device
    ) -> None:
        beams, size = config.num_beams, config.max_tokens
        self.config, self.end_id, self.length = config, end_id, 0
        self.sums = torch.zeros(batch_size, 1, device=device)
        self.tokens = torch.zeros(batch_size, 1, size, dtype=torch.int64, device=device)
        self.rows = torch.arange(batch_size, device=device)
        self.done = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.ended_scores = torch.full((batch_size, beams), -torch.inf, device=device)
        self.ended_tokens = torch.zeros(batch_size, beams, size, dtype=torch.int64, device=device)
        self.ended_lengths = torch.zeros(batch_size, beams, dtype=torch.int64, device=device)

    @property
    def newest(self) -> Tensor:
        """(B, R) last token of each running text."""
        return self.tokens[..., self.length - 1]

    def advance(self, log_probs: Tensor, position: int) -> None:
        """Extend every running text by one token.

        Of twice `num_beams` candidates at least `num_beams` do not end, since each running text
        has one end.

        Args:
            log_probs: (B, R, V).
            position: Tokens generated so far.
        """
        if position < self.config.min_tokens and self.end_id >= 0:
            log_probs[..., self.end_id] = -torch.inf
        sums, origins, tokens = self._candidates(log_probs)
        generated = _take(self.tokens, origins)  # (B, 2·R, max_tokens)
        generated[..., position] = tokens
        self.length = position + 1
        is_end = tokens == self.end_id
        self._keep_ended(sums, generated, is_end)
        self._keep_running(sums, generated, origins, is_end, log_probs.shape[1])
        self._mark_done(is_end[:, 0])

    def _candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums, the running text each comes from, and tokens, (B, 2·R) each, best first."""
        vocab_size, wanted = log_probs.shape[2], 2 * self.config.num_beams
        joint = (self.sums[..., None] + log_probs).flatten(1)  # (B, R·V)
        sums, flat = joint.topk(min(wanted, joint.shape[1]), dim=1)
        missing = wanted - sums.shape[1]
        if missing > 0:
            sums = torch.nn.functional.pad(sums, (0, missing), value=-torch.inf)
            flat = torch.nn.functional.pad(flat, (0, missing))
        return sums, flat // vocab_size, flat % vocab_size

    def _keep_ended(self, sums: Tensor, generated: Tensor, is_end: Tensor) -> None:
        """Merge what ends now into the n-best lists of images that are not done."""
        last = self.length == self.config.max_tokens
        ends = torch.ones_like(is_end) if last else is_end
        scores = sums / length_divisor(self.length, self.config.length_penalty)
        scores = scores.masked_fill(~ends | self.done[:, None], -torch.inf)
        scores = torch.cat([self.ended_scores, scores], dim=1)
        lengths = torch.cat([self.ended_lengths, self.length - is_end.long()], dim=1)
        self.ended_scores, kept = scores.topk(self.config.num_beams, dim=1)
        self.ended_tokens = _take(torch.cat([self.ended_tokens, generated], dim=1), kept)
        self.ended_lengths = lengths.gather(1, kept)

    def _keep_running(
        self, sums: Tensor, generated: Tensor, origins: Tensor, is_end: Tensor, num_origins: int
    ) -> None:
        """Go on with the best candidates that have not ended."""
        sums = sums.masked_fill(is_end, -torch.inf)
        self.sums, kept = sums.topk(self.config.num_beams, dim=1)
        self.tokens = _take(generated, kept)
        first = torch.arange(len(sums), device=sums.device)[:, None] * num_origins
        self.rows = (first + origins.gather(1, kept)).flatten()  # (B·R,)

    def _mark_done(self, top_ended: Tensor) -> None:
        if self.config.stop == "top_ended":
            self.done |= top_ended
            return
        divisor = best_divisor(self.length, self.config.max_tokens, self.config.length_penalty)
        self.done |= self.sums[:, 0] / divisor <= self.ended_scores[:, -1]

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Return the n-best lists, without empty entries."""
        images = zip(
            self.ended_scores.tolist(),
            self.ended_tokens.tolist(),
            self.ended_lengths.tolist(),
            strict=True,
        )
        return [
            [
                Hypothesis(tuple(ids[:length]), score)
                for score, ids, length in zip(*image, strict=True)
                if score > float("-inf")
            ]
            for image in images
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
