"""BERT-style causal decoder with cross-attention in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.nn.attention import KeyValue, Memory, causal_bias, key_bias
from triptych.nn.block import Block
from triptych.nn.encoder import TextConfig, check_text_length
from triptych.nn.heads import VocabularyHead
from triptych.nn.kv_cache import DecoderCache
from triptych.nn.packing import TokenGrid
from triptych.nn.prepacked import prepack, prepack_head


@dataclass(frozen=True, slots=True)
class DecoderMemory:
    """What a decoder reads: per layer the projected keys and values, computed once an image.

    Attributes:
        layers: One `KeyValue` a layer, (B, H, S, K).
        bias: (B, 1, 1, S) additive scores, or None when every token may be read.
    """

    layers: tuple[KeyValue, ...]
    bias: Tensor | None

    @property
    def batch_size(self) -> int:
        """Images B."""
        return self.layers[0].key.shape[0]

    def select(self, index: Tensor) -> DecoderMemory:
        """Return the rows at `index` (M,), which may repeat."""
        bias = None if self.bias is None else self.bias.index_select(0, index)
        return DecoderMemory(tuple(layer.select(index) for layer in self.layers), bias)

    def put(self, row: int, other: DecoderMemory, other_row: int) -> None:
        """Overwrite a row with one of another memory of the same length S."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[row] = theirs[other_row]

    @staticmethod
    def join(rows: Sequence[tuple[DecoderMemory, int]]) -> DecoderMemory:
        """Return single rows of memories of the same length S as one memory, which is a copy."""
        parts = zip(*(memory.tensors() for memory, _ in rows), strict=True)
        copies = [
            torch.stack([part[row] for part, (_, row) in zip(tensors, rows, strict=True)])
            for tensors in parts
        ]
        count = len(rows[0][0].layers)
        pairs = zip(copies[: 2 * count : 2], copies[1 : 2 * count : 2], strict=True)
        layers = tuple(KeyValue(key, value) for key, value in pairs)
        return DecoderMemory(layers, copies[2 * count] if len(copies) > 2 * count else None)

    def tensors(self) -> list[Tensor]:
        """Return keys and values of each layer, and the bias where there is one."""
        found = [x for layer in self.layers for x in (layer.key, layer.value)]
        return found if self.bias is None else [*found, self.bias]


class TextDecoder(nn.Module):
    """Blocks of causal self-attention, cross-attention and FFN, with a tied word head."""

    def __init__(self, config: TextConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = config.embedding()
        self.blocks = nn.ModuleList(Block(config.block(), config.embed_dim) for _ in range(depth))
        self.final_norm = config.final_norm()
        self.head = VocabularyHead(config.embed_dim, config.vocab_size, 1e-12, tied=True)

    def project_memory(self, memory: Tensor, mask: Tensor | None) -> DecoderMemory:
        """Project a memory for every layer.

        Args:
            memory: (B, S, D).
            mask: (B, S) bool, True = may be read; None when all may.
        """
        layers = tuple(_project(block, memory) for block in self._blocks())
        return DecoderMemory(layers, None if mask is None else key_bias(mask, memory.dtype))

    def forward(
        self, token_ids: Tensor, memory: DecoderMemory, text_mask: Tensor | None = None
    ) -> Tensor:
        """Read a whole sequence at once, each token seeing itself and earlier ones.

        Padding must be on the right: no real token then attends to it.

        Args:
            token_ids: (B, L) int64, starting with [CLS].
            memory: Projected memory of the same batch.
            text_mask: (B, L) bool, True = a state is wanted; the others need not be computed and
                are meaningless. None wants all.

        Returns:
            (B, L, D) states; `word_logits` turns them into scores of the next word.
        """
        return self._read(token_ids, text_mask, memory.layers, memory.bias)

    def read_once(
        self, token_ids: Tensor, text_mask: Tensor | None, states: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Do what `forward` does with a memory that nothing else will read.

        For one short text it can be cheaper not to project the memory (`CrossAttention.prepare`).

        Args:
            token_ids: (B, L) int64, as in `forward`.
            text_mask: (B, L) bool, as in `forward`.
            states: (B, S, D) memory.
            mask: (B, S) bool, True = may be read; None when all may.

        Returns:
            (B, L, D) states.
        """
        bias = None if mask is None else key_bias(mask, states.dtype)
        return self._read(token_ids, text_mask, [states] * len(self.blocks), bias)

    def _read(
        self,
        token_ids: Tensor,
        text_mask: Tensor | None,
        layers: Sequence[Memory | Tensor],
        memory_bias: Tensor | None,
    ) -> Tensor:
        check_text_length(token_ids, self.config.max_positions)
        batch, length = token_ids.shape
        grid = (
            TokenGrid(batch, length)
            if text_mask is None
            else TokenGrid.of(text_mask, self.config.embed_dim)
        )
        x = grid.pack(self.embedding(token_ids))  # (T, D)
        bias = causal_bias(length, x.device, x.dtype)
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, bias, layer, memory_bias, grid)
        return grid.pad(x)

    def step(self, token_ids: Tensor, memory: DecoderMemory, cache: DecoderCache) -> Tensor:
        """Read the newest token of each beam and score the next word.

        The beams of an image are query positions of one attention over its memory, which is
        neither copied nor reordered.

        Args:
            token_ids: (B, R) int64.
            memory: Projected memory, B rows.
            cache: Grown by this token.

        Returns:
            (B, R, V) logits of the next word.
        """
        batch, beams = token_ids.shape
        positions = cache.positions(batch, beams, token_ids.device)
        x = self.embedding.step(token_ids, positions)
        for block, layer, layer_cache in zip(
            self._blocks(), memory.layers, cache.layers, strict=True
        ):
            x = block.step(x, layer_cache, layer, memory.bias)
        return self.word_logits(x)

    def word_logits(self, x: Tensor) -> Tensor:
        """Score every word: (..., D) to (..., V)."""
        return self.head(self.final_norm(x), self.embedding.word.weight)  # type: ignore[no-any-return]

    def prepacked(self) -> TextDecoder:
        """Return a copy for `step` whose weights lie as the processor reads them (`prepack`)."""
        twin = prepack(self)
        twin.head = prepack_head(twin.head, twin.embedding.word.weight)  # type: ignore[assignment]
        return twin

    def new_cache(self) -> DecoderCache:
        """Return an empty cache for `step`."""
        return DecoderCache(len(self.blocks))

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


def _project(block: Block, memory: Tensor) -> KeyValue:
    """Project a memory (B, S, D) inside the block; heads are views, so they are split outside."""
    attention = block.cross_attention
    assert attention is not None
    both = block.lend(_keys_and_values, memory.flatten(0, 1))
    return attention.split(both.view(*memory.shape[:2], -1))


def _keys_and_values(block: Block, memory: Tensor) -> Tensor:
    """Map (B·S, D) to keys and values (B·S, 2·D), side by side."""
    return block.cross_attention.key_value(memory)  # type: ignore[union-attr, no-any-return]


def cat_masks(first: Tensor | None, second: Tensor, first_length: int) -> Tensor:
    """Join two key masks along the token axis; a missing first mask counts as all True."""
    if first is None:
        first = torch.ones(len(second), first_length, dtype=torch.bool, device=second.device)
    return torch.cat([first, second], dim=1)
