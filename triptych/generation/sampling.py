"""Sampling: texts drawn token by token, from all tokens or from the likely ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.core.config import check, check_range
from triptych.generation.decoding import (
    MAX_TOKENS,
    DecodeStep,
    check_length,
    prompt_length,
)
from triptych.generation.slots import Lines, grow


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How texts are drawn. The defaults draw from the model's own distribution.

    Attributes:
        num_samples: Texts K drawn for each image, independently.
        temperature: Divides the logits: below 1 prefers likely tokens.
        top_k: Only the k likeliest tokens may come; 0 disables the limit.
        top_p: Only the nucleus may come: the fewest likeliest tokens that together have at least
            this probability (Holtzman et al. 2020), after `top_k`; 1 disables the limit.
        min_tokens: Tokens before the end token may come.
        max_tokens: Longest text, the end token included and the prompt not.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_tokens: int = 1
    max_tokens: int = 20

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check_range("num_samples", self.num_samples, 1, 100_000)
        check_range("temperature", self.temperature, 1e-4, 1e4)  # beyond, logits overflow
        check_range("top_k", self.top_k, 0, 1_000_000)
        check(0 < self.top_p <= 1, "top_p", self.top_p, "be in (0, 1]")
        check_range("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        check(
            0 <= self.min_tokens < self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"be in [0, {self.max_tokens}), below max_tokens",
        )


@dataclass(frozen=True, slots=True)
class Samples:
    """Drawn texts.

    Attributes:
        token_ids: (B, K, T) int64 tokens, the end token included, then the end token as padding.
        mask: (B, K, T) bool, True = drawn; the end token counts, what follows it does not.
        ended: (B, K) bool, False = the text was cut at `max_tokens`.
    """

    token_ids: Tensor
    mask: Tensor
    ended: Tensor

    def texts(self) -> list[list[tuple[int, ...]]]:
        """Return the tokens of each image's texts, without the end token."""
        lengths = (self.mask.sum(dim=-1) - self.ended.long()).tolist()
        return [
            [tuple(ids[:length]) for ids, length in zip(*image, strict=True)]
            for image in zip(self.token_ids.tolist(), lengths, strict=True)
        ]


@torch.no_grad()
def sample_texts(
    step: DecodeStep,
    *,
    start_id: int,
    end_id: int,
    config: SamplingConfig,
    generator: torch.Generator | None = None,
    numbers: Tensor | None = None,
    prompt: Tensor | None = None,
) -> Samples:
    """Draw texts for each image.

    Args:
        step: A decoder that has read nothing yet.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text.
        config: How to draw.
        generator: Source of randomness, on any device; None takes torch's own for the model's.
        numbers: (B, K, max_tokens) in [0, 1), which then decide every draw, in place of a
            generator: the token at which the cumulated probability exceeds the number.
        prompt: (B, T) int64 tokens after the start token, the same number for each image.

    Raises:
        ConfigError: `max_tokens` exceeds the decoder's positions.
    """
    check_length(step, prompt_length(prompt), config.max_tokens)

    def draw(logits: Tensor, said: Tensor, lengths: Tensor, images: Sequence[int]) -> Tensor:
        del said
        early = lengths < config.min_tokens
        log_probs = token_log_probs(logits, config, end_id, early)
        if numbers is None:
            return _draw(log_probs, generator)
        row = torch.tensor(images, device=numbers.device)
        return _token_at(log_probs, numbers[row, :, lengths.to(row.device)].to(logits.device))

    count, size = config.num_samples, config.max_tokens
    together = numbers is None  # then the draws of a step come from one stream
    lines = Lines(draw, step.batch_size, count, end_id, size, together=together)
    found = grow(step, lines, count, start_id=start_id, prompt=prompt)
    masks = torch.stack([line.mask for line in found])
    longest = int(masks.any(dim=0).any(dim=0).sum())
    return Samples(
        torch.stack([line.token_ids for line in found])[..., :longest],
        masks[..., :longest],
        torch.stack([line.ended for line in found]),
    )


def token_log_probs(
    logits: Tensor, config: SamplingConfig, banned: int = -1, where: Tensor | None = None
) -> Tensor:
    """Return the log-probabilities that the next token is drawn with.

    Args:
        logits: (..., V).
        config: Temperature, `top_k` and `top_p`.
        banned: A token that may not come in some of the texts; -1 bans none.
        where: (B,) bool, True = texts in which it may not come; None for all (B, ..., V).

    Returns:
        (..., V) float32, -inf for what cannot come; they add up to probability 1.
    """
    logits = logits.float() / config.temperature
    if banned >= 0:
        gone = torch.arange(logits.shape[-1], device=logits.device) == banned
        if where is not None:
            gone = gone & where.view(-1, *[1] * (logits.ndim - 1))
        logits = logits.masked_fill(gone, -torch.inf)
    if 0 < config.top_k < logits.shape[-1] or config.top_p < 1:
        logits = _likely_part(logits, config)
    return torch.log_softmax(logits, dim=-1)


def _likely_part(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Set all but the likely tokens to -inf."""
    falling, order = logits.sort(dim=-1, descending=True)
    if config.top_k > 0:
        falling[..., config.top_k :] = -torch.inf
    probabilities = torch.softmax(falling, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier tokens
    falling = falling.masked_fill(before >= config.top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, falling)


def _draw(log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one token from each distribution: (B, K, V) to (B, K)."""
    rows = log_probs.exp().flatten(0, 1)
    if generator is not None:
        rows = rows.to(generator.device)
    drawn = torch.multinomial(rows, 1, generator=generator)
    return drawn.view(log_probs.shape[:2]).to(log_probs.device)


def _token_at(log_probs: Tensor, numbers: Tensor) -> Tensor:
    """Return the first token whose cumulated probability exceeds a number: (B, K, V) to (B, K)."""
    shares = log_probs.exp()
    passed = shares.cumsum(dim=-1) > numbers[..., None]
    # where rounding keeps the whole sum below the number, the last possible token is taken
    last = shares.shape[-1] - 1 - (shares > 0).flip(-1).int().argmax(dim=-1)
    return torch.where(passed.any(dim=-1), passed.int().argmax(dim=-1), last)
