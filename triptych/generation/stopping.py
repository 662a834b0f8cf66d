"""Length penalty, and when a search may stop."""

from __future__ import annotations

from triptych.core.errors import ConfigError
from triptych.generation.step import DecodeStep


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
