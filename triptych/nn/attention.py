"""Multi-head attention: one kernel rule, self-attention, cross-attention on projected memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.kv_cache import LayerCache

MASKED = -1e4
"""Added to the score of a masked key; exp(-1e4) is exactly 0 in fp32 and bf16."""

SDPA_MIN_KEYS_CPU_FP32 = 256
"""From this many keys on, torch's CPU kernel is the faster one (benchmarks/attention.py)."""


def use_sdpa(query: Tensor, key: Tensor) -> bool:
    """Say whether torch's scaled-dot-product kernel is the faster one for these tensors.

    The rule is measured: on CUDA always; on a CPU in bf16 never (the kernel is 2-3x slower than
    matmul and softmax there); on a CPU in fp32 from 256 keys on.

    Args:
        query: (B, H, L, K).
        key: (B, H, S, K).
    """
    if query.device.type != "cpu":
        return True
    return query.dtype == torch.float32 and key.shape[-2] >= SDPA_MIN_KEYS_CPU_FP32


def key_bias(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn a key mask into an additive score bias.

    Args:
        mask: (B, S) bool, True = may be attended.
        dtype: Floating-point type of the result.

    Returns:
        (B, 1, 1, S), 0 where True and `MASKED` where False.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, MASKED)[:, None, None, :]


def causal_bias(length: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the (1, 1, L, L) additive bias that hides later positions."""
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill(hidden, MASKED)[
        None, None
    ]


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Return softmax(Q Kᵀ / √K + bias) V with the faster of two equal kernels.

    Args:
        query: (B, H, L, K).
        key: (B, H, S, K).
        value: (B, H, S, K).
        bias: Additive scores, broadcastable to (B, H, L, S).
        dropout: Share of attention weights that are dropped, in [0, 1).

    Returns:
        (B, H, L, K).
    """
    if use_sdpa(query, key):
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    weights = torch.softmax(_scores(query, key, bias), dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return weights.to(value.dtype) @ value


def _scores(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return Q Kᵀ / √K + bias (B, H, L, S), the scale and the sum being part of the product."""
    batch, heads, _, width = query.shape
    flat_query, flat_key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    scale = 1 / math.sqrt(width)
    if bias is None:
        flat = torch.baddbmm(flat_query.new_zeros(()), flat_query, flat_key, beta=0, alpha=scale)
    else:
        bias = bias.to(query.dtype).expand(batch, heads, -1, -1).flatten(0, 1)  # (B·H, L | 1, S)
        flat = torch.baddbmm(bias, flat_query, flat_key, alpha=scale)
    return flat.unflatten(0, (batch, heads))  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Projected keys and values of a memory, computed once and used by many queries.

    Attributes:
        key: (B, H, S, K).
        value: (B, H, S, K).
    """

    key: Tensor
    value: Tensor

    def select(self, index: Tensor) -> KeyValue:
        """Return the rows at `index` (M,): (M, H, S, K)."""
        return KeyValue(self.key.index_select(0, index), self.value.index_select(0, index))

    def cat(self, other: KeyValue) -> KeyValue:
        """Append another memory along the token axis."""
        return KeyValue(
            torch.cat([self.key, other.key], dim=2), torch.cat([self.value, other.value], dim=2)
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, S, D) to (B, H, S, K)."""
    return x.reshape(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (B, H, S, K) to (B, S, D)."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed projection (Vaswani et al. 2017, section 3.2).

    The rows of `qkv` are the query, key and value projections in that order, as in CLIP. A bias of
    the keys moves all scores of a query alike, so that the softmax does not see it; BEiT and VLMo
    leave it out (`key_bias` False).
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, *, key_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=key_bias)
        self.query_bias = None if key_bias else nn.Parameter(torch.zeros(embed_dim))
        self.value_bias = None if key_bias else nn.Parameter(torch.zeros(embed_dim))
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, readers: Tensor | None = None
    ) -> Tensor:
        """Let tokens attend to all tokens that the bias leaves.

        Args:
            x: (B, S, D) float.
            bias: Additive scores, broadcastable to (B, H, S, S), or (B, H, R, S) with `readers`.
            readers: (B, R, D) the tokens that attend, where not all outputs are needed.

        Returns:
            (B, S, D), or (B, R, D) with `readers`.
        """
        query, key, value = self._project(x, readers)  # each (B, H, S, K), or query (B, H, R, K)
        dropout = self.dropout if self.training else 0.0
        return self.out(merge_heads(attend(query, key, value, bias, dropout)))  # type: ignore[no-any-return]

    def _project(self, x: Tensor, readers: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        width, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
        if self.query_bias is not None and self.value_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        if readers is None:
            qkv = F.linear(x, weight, bias).unflatten(-1, (3, self.num_heads, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value
        query = split_heads(F.linear(readers, weight[:width], bias[:width]), self.num_heads)
        both = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, self.num_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def step(self, x: Tensor, cache: LayerCache) -> Tensor:
        """Attend from one new token of each beam to that beam's earlier tokens and itself.

        Args:
            x: (B, R, D), the newest token of each beam.
            cache: Earlier keys and values; the new ones are appended.

        Returns:
            (B, R, D).
        """
        batch, beams, _ = x.shape
        qkv = self.qkv(x).reshape(batch * beams, 1, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B·R, H, 1, K)
        key, value = cache.append(key, value)  # (B·R, H, T, K)
        attended = merge_heads(attend(query, key, value))  # (B·R, 1, D)
        return self.out(attended.reshape(batch, beams, -1))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention from text to a memory whose projections can be reused.

    The rows of `key_value` are the key and value projections in that order.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, memory_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(memory_dim, 2 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def project(self, memory: Tensor) -> KeyValue:
        """Project a memory (B, S, D) once; the result serves any number of queries."""
        both = self.key_value(memory).unflatten(-1, (2, self.num_heads, -1))  # (B, S, 2, H, K)
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, S, K)
        return KeyValue(key, value)

    def forward(self, x: Tensor, memory: KeyValue, bias: Tensor | None = None) -> Tensor:
        """Let each query token attend to the memory.

        Args:
            x: (B, L, D) queries; L may count beams instead of positions.
            memory: Projected keys and values, (B, H, S, K) each.
            bias: Additive scores, broadcastable to (B, H, L, S).

        Returns:
            (B, L, D).
        """
        query = split_heads(self.query(x), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        return self.out(merge_heads(attend(query, memory.key, memory.value, bias, dropout)))  # type: ignore[no-any-return]
