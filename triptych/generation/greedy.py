"""Greedy search: the likeliest token at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.generation.step import Allowed, DecodeStep, prompt_length, read_prompt
from triptych.generation.stopping import check_length


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
    said = torch.zeros(step.batch_size, 1, 0, dtype=torch.int64, device=logits.device)
    ended = torch.zeros(step.batch_size, 1, dtype=torch.bool, device=logits.device)
    for position in range(max_tokens):
        if position > 0:
            logits = step.logits(said[..., -1])
        logits = logits.float()  # (B, 1, V)
        if allowed is not None:
            logits = logits.masked_fill(~allowed(said), -torch.inf)
        if position < min_tokens and end_id >= 0:
            logits[..., end_id] = -torch.inf
        newest = logits.argmax(dim=-1)  # (B, 1)
        said = torch.cat([said, newest[..., None]], dim=-1)
        ended |= newest == end_id
        if bool(ended.all()):
            break
    return [_until(row, end_id) for row in said[:, 0].tolist()]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
