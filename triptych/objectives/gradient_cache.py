"""Contrastive batches larger than memory (Gao et al. 2021, "Scaling Deep Contrastive Learning").

A contrastive loss needs the embeddings of the whole batch at once, but each embedding depends on
its own sample alone. So the batch is encoded in chunks whose activations are thrown away, the loss
and its gradient by each embedding are computed on the joined embeddings, and each chunk is encoded
once more to carry that gradient to the parameters. Memory is that of one chunk; the price is a
second forward pass. Loss and gradients are those of the whole batch.

The second pass is torch's non-reentrant checkpoint, one a chunk, inside the ordinary backward pass:
whatever follows the embeddings (a gather over processes, a temperature, other losses) is
differentiated as usual, and gradients of other objectives on the same parameters add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triptych.core.config import check

Encode = Callable[..., Tensor | tuple[Tensor, ...]]


def encode_in_chunks(
    encode: Encode, *tensors: Tensor, chunk_size: int
) -> Tensor | tuple[Tensor, ...]:
    """Encode a batch with the activations of one chunk at a time, in the backward pass too.

    Random states are replayed: the second pass of a chunk drops what the first one dropped. Without
    a gradient to compute (evaluation) each chunk is encoded once.

    Args:
        encode: From chunks of the tensors to one tensor or several whose rows belong to the rows of
            the chunk. It must not change state: it runs twice. Scalars, such as the sum of a loss
            over the chunk, may be returned as (1,), and come back as (chunks,).
        tensors: The batch; each (B, ...) with one B.
        chunk_size: Rows of a chunk; the last may be shorter.

    Returns:
        What `encode` returns, joined along the rows.
    """
    check(chunk_size >= 1, "chunk_size", chunk_size, "be at least 1")
    chunks = [torch.split(tensor, chunk_size) for tensor in tensors]  # type: ignore[no-untyped-call]
    parts = [_encode(encode, *rows) for rows in zip(*chunks, strict=True)]
    if isinstance(parts[0], Tensor):
        return torch.cat(cast(list[Tensor], parts))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def run_in_chunks(run: Encode, *tensors: Tensor, chunk_size: int | None) -> tuple[Tensor, ...]:
    """Do what `encode_in_chunks` does, or run the whole batch at once without a chunk size.

    Returns:
        A tuple, also where `run` returns one tensor.
    """
    if chunk_size is None:
        found = run(*tensors)
    else:
        found = encode_in_chunks(run, *tensors, chunk_size=chunk_size)
    return (found,) if isinstance(found, Tensor) else found


def _encode(encode: Encode, *rows: Tensor) -> Tensor | tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return encode(*rows)
    found = checkpoint(encode, *rows, use_reentrant=False, preserve_rng_state=True)
    return cast(Tensor | tuple[Tensor, ...], found)
