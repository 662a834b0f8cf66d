"""Greedy search: the likeliest token at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.generation.step import DecodeStep
from triptych.generation.stopping import check_length


@torch.no_grad()
def greedy_search(
    step: DecodeStep,
    *,
    start_id: int,
    end_id: int,
    max_tokens: int,
    min_tokens: int = 0,
    allowed_ids: Tensor | None = None,
) -> list[list[int]]:
    """Generate one text an image.

    Args:
        step: A decoder that has read nothing yet.
        start_id: First token that the decoder reads.
        end_id: Token that ends a text; -1 when texts have a fixed length.
        max_tokens: Longest text, the end token included.
        min_tokens: Tokens before the end token may come.
        allowed_ids: (V,) bool, or (max_tokens, V) with one row a step; True = may be said.

    Returns:
        Token ids of each text, without start and end.

    Raises:
        ConfigError: `max_tokens` exceeds the decoder's positions.
    """
    check_length(step, 0, max_tokens)
    newest = torch.full((step.batch_size, 1), start_id)
    said: list[Tensor] = []
    ended = torch.zeros(step.batch_size, dtype=torch.bool)
    for position in range(max_tokens):
        logits = step.logits(newest)[:, 0].float()  # (B, V)
        if allowed_ids is not None:
            row = allowed_ids if allowed_ids.dim() == 1 else allowed_ids[position]
            logits = logits.masked_fill(~row.to(logits.device), -torch.inf)
        if position < min_tokens and end_id >= 0:
            logits[:, end_id] = -torch.inf
        newest = logits.argmax(dim=1, keepdim=True)
        said.append(newest[:, 0].cpu())
        ended |= said[-1] == end_id
        if bool(ended.all()):
            break
    if not said:
        return [[] for _ in range(step.batch_size)]
    return [_until(row, end_id) for row in torch.stack(said, dim=1).tolist()]


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
