"""Multi-head attention: one kernel rule, self-attention, cross-attention on projected memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.dropout import dropout as drop
from triptych.nn.kv_cache import MASKED, LayerCache
from triptych.nn.lora import LoRALinear, linear_rows
from triptych.nn.packing import TokenGrid

SDPA_MIN_KEYS_CPU_FP32 = 192
"""From this many keys on, torch's CPU kernel is the faster one (benchmarks/speed/attention.py)."""


def use_sdpa(query: Tensor, key: Tensor, dropout: float = 0.0) -> bool:
    """Say whether torch's scaled-dot-product kernel is the faster one for these tensors.

    The rule is measured: on CUDA always; on a CPU in bf16 never (the kernel is 2-3x slower than
    matmul and softmax there), nor with dropout (there is no kernel for it); on a CPU in fp32 from
    192 keys on. In an exported graph, which holds for any number of keys, never.

    Args:
        query: (B, H, L, K).
        key: (B, H, S, K).
        dropout: Share of attention weights that are dropped.
    """
    if torch.compiler.is_exporting():
        return False
    if query.device.type != "cpu":
        return True
    if query.dtype != torch.float32 or dropout > 0.0:
        return False
    return key.shape[-2] >= SDPA_MIN_KEYS_CPU_FP32


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
    if use_sdpa(query, key, dropout):
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    return _attend_by_products(query, key, value, bias, dropout)


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0
) -> Tensor:
    weights = _softmax(_scores(query, key, bias))
    return drop(weights.to(value.dtype), dropout) @ value


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dim, in float32 where torch's bf16 kernel is slow.

    On a CPU that kernel works on 32 numbers at a time and takes ten times as long for each of the
    rest; float32 is measured to be the faster way, casts included, from a rest of 1/12 on.
    """
    length = scores.shape[-1]
    slow = scores.dtype == torch.bfloat16 and scores.device.type == "cpu"
    if slow and 12 * (length % 32) > length:
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def _scores(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return Q Kᵀ / √K + bias (B, H, L, S), the scale and the sum being part of the product."""
    batch, heads, _, width = query.shape
    flat_query, flat_key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    if bias is not None:
        bias = bias.expand(batch, heads, -1, -1).flatten(0, 1)  # (B·H, L | 1, S)
    flat = _scaled_product(flat_query, flat_key, bias, 1 / math.sqrt(width))
    return flat.unflatten(0, (batch, heads))  # type: ignore[no-any-return, no-untyped-call]


def _scaled_product(first: Tensor, second: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return scale · first second + bias of batches of matrices."""
    if bias is None:
        return torch.baddbmm(first.new_zeros(()), first, second, beta=0, alpha=scale)
    return torch.baddbmm(bias.to(first.dtype), first, second, alpha=scale)


def _shares_image(image: Tensor, image_index: Tensor, bias: Tensor, dropout: float) -> bool:
    """Say whether the attention within images is computed once for all texts of an image.

    It is the same for each text only without dropout and with a bias that hides keys of the text
    alone, which is the only kind without a row a query. It was measured on a CPU in evaluation; in
    training it would keep more for the backward pass than a fused kernel does.
    """
    if dropout > 0.0 or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return image.device.type == "cpu" and len(image_index) > len(image) and bias.shape[2] == 1


def _add_keys(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    queries: Tensor,
    more_keys: Tensor,
    more_values: Tensor,
    bias: Tensor,
) -> Tensor:
    """Let images attend to themselves and a text each, at the cost of the text's keys alone.

    The weights of a softmax over two groups of keys are those of each group, times the share of the
    group. So an image's own keys count as one more key of each text, whose score is the logarithm
    of the sum of their exponentials and whose value is what the image takes from itself.

    Args:
        query: (B, H, N, K) of the images.
        key: (B, H, N, K) of the images.
        value: (B, H, N, K) of the images.
        index: (M,) int64, the image of each text.
        queries: (M, H, N, K), the queries at `index`.
        more_keys: (M, H, L, K) of the texts.
        more_values: (M, H, L, K) of the texts.
        bias: (M, 1, 1, N + L) additive scores, of which the first N are 0.

    Returns:
        (M, H, N, K).
    """
    scores = _scores(query, key, None)
    itself = _softmax(scores).to(value.dtype) @ value  # (B, H, N, K)
    # float32: an error of this one score moves the weight of the whole image
    total = scores.float().logsumexp(-1, keepdim=True)  # (B, H, N, 1)
    of_text = _scores(queries, more_keys, bias[..., -more_keys.shape[2] :]).float()
    weights = torch.softmax(torch.cat([of_text, total.index_select(0, index)], dim=-1), dim=-1)
    weights = weights.to(value.dtype)
    of_text, of_image = weights[..., :-1], weights[..., -1:]
    return of_text @ more_values + of_image * itself.index_select(0, index)


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


@dataclass(frozen=True, slots=True)
class MemoryStates:
    """A memory as it is: so few queries read it that projecting it would cost more than them.

    Attributes:
        states: (B, S, D).
    """

    states: Tensor

    def select(self, index: Tensor) -> MemoryStates:
        """Return the rows at `index` (M,): (M, S, D)."""
        return MemoryStates(self.states.index_select(0, index))


Memory = KeyValue | MemoryStates
"""What a cross-attention reads."""


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
        self,
        x: Tensor,
        bias: Tensor | None = None,
        readers: Tensor | None = None,
        grid: TokenGrid | None = None,
        readers_grid: TokenGrid | None = None,
    ) -> Tensor:
        """Let tokens attend to all tokens that the bias leaves.

        Args:
            x: (B, S, D) float, or packed (T, D) with `grid`.
            bias: Additive scores, broadcastable to (B, H, S, S), or (B, H, R, S) with `readers`.
            readers: (B, R, D) the tokens that attend, where not all outputs are needed; packed
                with `grid`.
            grid: Rows of packed tokens; the bias must mask the slots where none stands.
            readers_grid: Rows of packed readers; `grid` if absent.

        Returns:
            (B, S, D), or (T, D) with `grid`; of the shape of `readers` where they are given.
        """
        readers_grid = readers_grid or grid
        query, key, value = self._project(x, readers, grid, readers_grid)  # each (B, H, S, K)
        dropout = self.dropout if self.training else 0.0
        attended = merge_heads(attend(query, key, value, bias, dropout))
        packed = attended if readers_grid is None else readers_grid.pack(attended)
        return self.out(packed)  # type: ignore[no-any-return]

    def joint(
        self,
        image: Tensor,
        text: Tensor,
        bias: Tensor,
        grid: TokenGrid,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Attend over image and text as one sequence [image; text].

        Args:
            image: (B, N, D) float; projected once however many texts it goes with.
            text: (T, D) packed tokens of M texts.
            bias: Additive scores, broadcastable to (M, H, N + L, N + L); of a key mask, 0 for the
                image.
            grid: Rows of the text.
            image_index: (M,) int64, the image of each text; None means M = B, in order.

        Returns:
            (M·N + T, D): the image tokens of all rows, then the packed text tokens.
        """
        own = self._project(image)  # each (B, H, N, K)
        words = self._project(text, grid=grid)  # each (M, H, L, K)
        parts = own
        if image_index is not None:
            parts = tuple(part.index_select(0, image_index) for part in own)  # type: ignore[assignment]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(parts[1:], words[1:], strict=True))
        dropout = self.dropout if self.training else 0.0
        if image_index is not None and _shares_image(image, image_index, bias, dropout):
            of_image = _add_keys(*own, image_index, parts[0], words[1], words[2], bias)
            of_text = attend(words[0], keys, values, bias)
        else:
            queries = torch.cat([parts[0], words[0]], dim=2)
            attended = attend(queries, keys, values, bias, dropout)  # (M, H, N + L, K)
            of_image, of_text = torch.tensor_split(attended, [image.shape[1]], dim=2)
        flat_image = merge_heads(of_image).flatten(0, 1)
        return self.out(torch.cat([flat_image, grid.pack(merge_heads(of_text))]))  # type: ignore[no-any-return]

    def _project(
        self,
        x: Tensor,
        readers: Tensor | None = None,
        grid: TokenGrid | None = None,
        readers_grid: TokenGrid | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        bias: Tensor = self.qkv.bias
        if self.query_bias is not None and self.value_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        if readers is None:
            qkv = linear_rows(self.qkv, x, None, bias)
            qkv = qkv if grid is None else grid.spread(qkv)
            qkv = qkv.view(*qkv.shape[:2], 3, self.num_heads, -1)  # (B, S, 3, H, K)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value
        query = linear_rows(self.qkv, readers, slice(width), bias[:width])
        query = query if readers_grid is None else readers_grid.spread(query)
        query = split_heads(query, self.num_heads)
        both = linear_rows(self.qkv, x, slice(width, None), bias[width:])
        both = both if grid is None else grid.spread(both)
        both = both.view(*both.shape[:2], 2, self.num_heads, -1)  # (B, S, 2, H, K)
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
        width = x.shape[-1] // self.num_heads
        qkv = self.qkv(x).reshape(-1, cache.columns.group_size, 3, self.num_heads, width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (G, H, g, K)
        key, value = cache.append(key, value)  # (G, H, C, K)
        # one kernel for any number of columns, which other images of the batch may set
        attended = merge_heads(_attend_by_products(query, key, value, cache.columns.bias))
        return self.out(attended.reshape(x.shape))  # type: ignore[no-any-return]


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
        return self.split(self.key_value(memory))

    def split(self, both: Tensor) -> KeyValue:
        """Split keys and values that stand side by side, (B, S, 2·D), into heads."""
        both = both.view(*both.shape[:-1], 2, self.num_heads, -1)  # (B, S, 2, H, K)
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, S, K)
        return KeyValue(key, value)

    def prepare(self, memory: Tensor, num_queries: int) -> Memory:
        """Make a memory (B, S, D) ready in the cheaper of two equal ways.

        Scores are qᵀ(W x): either the memory is projected, W x, or the queries are, Wᵀq, and the
        same for the values. The second way multiplies each query with the whole width of the
        memory in each head; on a CPU it is the faster one for the texts of few tokens that the
        first way would project hundreds of image tokens for.

        Args:
            memory: (B, S, D).
            num_queries: Queries that each row of the memory will serve.
        """
        if memory.device.type == "cpu" and self._reads_states(memory.shape[1], num_queries):
            return MemoryStates(memory)
        return self.project(memory)

    def _reads_states(self, num_memory: int, num_queries: int) -> bool:
        """Count the multiplications of both ways."""
        if isinstance(self.key_value, LoRALinear):  # its weight alone is not the whole projection
            return False
        width, memory_dim = self.query.out_features, self.key_value.in_features
        projected = num_memory * width * (memory_dim + num_queries)
        unprojected = num_queries * memory_dim * (width + num_memory * self.num_heads)
        return unprojected < projected

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        bias: Tensor | None = None,
        grid: TokenGrid | None = None,
    ) -> Tensor:
        """Let each query token attend to the memory.

        Args:
            x: (B, L, D) queries; L may count beams instead of positions. Packed (T, D) with
                `grid`.
            memory: Of B rows; what `project` or `prepare` returned.
            bias: (B, 1, 1, S) additive scores.
            grid: Row of the memory that each packed query reads.

        Returns:
            (B, L, D), or (T, D) with `grid`.
        """
        query = self.query(x)
        query = query if grid is None else grid.spread(query)  # (B, L, D)
        dropout = self.dropout if self.training else 0.0
        if isinstance(memory, KeyValue):
            heads = split_heads(query, self.num_heads)
            attended = merge_heads(attend(heads, memory.key, memory.value, bias, dropout))
        else:
            attended = self._read_states(query, memory.states, bias, dropout)
        return self.out(attended if grid is None else grid.pack(attended))  # type: ignore[no-any-return]

    def _read_states(
        self, query: Tensor, states: Tensor, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend to states (B, S, C) without projecting them: (B, L, D) queries to (B, L, D)."""
        batch, length, width = query.shape
        heads, num_states, memory_dim = self.num_heads, *states.shape[1:]
        to_key, to_value = self.key_value.weight.view(2, heads, -1, memory_dim).unbind(0)
        folded = query.reshape(batch * length, heads, -1).transpose(0, 1) @ to_key  # (H, B·L, C)
        folded = folded.view(heads, batch, length, memory_dim).transpose(0, 1)
        folded = folded.reshape(batch, heads * length, memory_dim)
        states = states.to(folded.dtype)
        bias = None if bias is None else bias[:, 0]  # (B, 1, S)
        scale = 1 / math.sqrt(width // heads)
        scores = _scaled_product(folded, states.transpose(1, 2), bias, scale)
        weights = drop(_softmax(scores).to(states.dtype), dropout)  # (B, H·L, S)
        read = (weights @ states).view(batch, heads, length, memory_dim).transpose(0, 1)
        read = read.reshape(heads, batch * length, memory_dim)
        value = read @ to_value.transpose(1, 2)  # (H, B·L, K)
        value = value.transpose(0, 1).reshape(batch, length, width)
        value_bias = self.key_value.bias[width:]
        if dropout == 0.0:  # the weights of a query sum to 1
            return value + value_bias.to(value.dtype)
        total = weights.view(batch, heads, length, num_states).sum(-1).transpose(1, 2)  # (B, L, H)
        return value + (total[..., None] * value_bias.view(heads, -1)).flatten(2).to(value.dtype)
