"""The Multiway Transformer: one stack of blocks for images, texts and pairs (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.multiway import MultiwayBlock, Route, gather_scores
from triptych.models.vlmo.positions import RelativePositions
from triptych.nn.attention import key_bias


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Images, texts or pairs as the trunk reads them: text first, then the image.

    Attributes:
        tokens: (B, S, D) embeddings.
        num_text: Text tokens L at the front; 0 for images alone.
        text_mask: (B, L) bool, True = real token; None without text.
    """

    tokens: Tensor
    num_text: int = 0
    text_mask: Tensor | None = None

    @classmethod
    def text(cls, tokens: Tensor, mask: Tensor) -> TokenSequence:
        """Return texts (B, L, D) with their mask (B, L)."""
        return cls(tokens, tokens.shape[1], mask)

    @classmethod
    def pairs(
        cls, text: Tensor, mask: Tensor, image: Tensor, image_index: Tensor | None = None
    ) -> TokenSequence:
        """Return each text (M, L, D) in front of its image, a row of (B, N, D).

        Args:
            text: (M, L, D).
            mask: (M, L) bool, True = real token.
            image: (B, N, D).
            image_index: (M,) int64, the image of each text; None means M = B, in order.
        """
        if image_index is not None:
            image = image.index_select(0, image_index)
        return cls(torch.cat([text, image.to(text.dtype)], dim=1), text.shape[1], mask)

    @property
    def has_image(self) -> bool:
        """Whether an image follows the text."""
        return self.tokens.shape[1] > self.num_text

    def rows(self, rows: slice, tokens: Tensor) -> TokenSequence:
        """Return some rows, with the tokens (B, S, D) of all rows as they are by now."""
        mask = None if self.text_mask is None else self.text_mask[rows]
        return TokenSequence(tokens[rows], self.num_text, mask)


class MultiwayTrunk(nn.Module):
    """Blocks, the last LayerNorm, and the relative positions if the model has them.

    Images alone go through image experts and texts alone through text experts in every block; a
    pair goes through both, side by side, and from block `fused_from` on through the
    vision-language expert.

    Where only some tokens of the result are read, the last block computes those alone: its keys and
    values are those of all tokens, so the result is the same.
    """

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(MultiwayBlock(config, i) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.block().norm_eps)
        self.relative_positions: RelativePositions | None = None
        if config.positions == "relative":
            self.relative_positions = RelativePositions(
                config.grid_size, config.max_text_tokens, config.depth, config.num_heads
            )

    def forward(self, sequence: TokenSequence, readers: Tensor | None = None) -> Tensor:
        """Run images or texts through their own experts, pairs through those of pairs.

        Args:
            sequence: B rows of S tokens.
            readers: (B, R) int64, places that are read; for pairs, places of text. None means all.

        Returns:
            (B, S, D) states, or (B, R, D) with `readers`.
        """
        everything = slice(None)
        return self.read(sequence, [(everything, readers)])[0]

    def read(
        self, sequence: TokenSequence, reads: Sequence[tuple[slice, Tensor | None]]
    ) -> list[Tensor]:
        """Run all rows through the stack at once and read each group's own places.

        Args:
            sequence: B rows of S tokens.
            reads: Groups of rows, each with the places (rows, R) int64 that are read, or None.

        Returns:
            The states of each group, (rows, R, D) or (rows, S, D).
        """
        scores, last = self._scores(sequence), len(self.blocks) - 1
        paired = sequence.num_text > 0 and sequence.has_image
        x = self._run(sequence, scores, range(last), fused=paired)
        return [
            self.norm(
                self._run(sequence.rows(rows, x), scores, range(last, last + 1), paired, readers)
            )
            for rows, readers in reads
        ]

    def branches(self, sequence: TokenSequence, readers: Tensor) -> tuple[Tensor, Tensor]:
        """Run images or texts alone both ways: up to the top through their own experts, and
        through the vision-language experts from the block on where pairs meet them.

        Args:
            sequence: B rows of one modality.
            readers: (B, R) int64, places that are read.

        Returns:
            States of both branches, each (B, R, D).
        """
        scores, first = self._scores(sequence), self.config.fused_from
        x = self._run(sequence, scores, range(first), fused=False)
        upper, rest = sequence.rows(slice(None), x), range(first, len(self.blocks))
        own = self._run(upper, scores, rest, fused=False, readers=readers)
        return self.norm(own), self.norm(self._run(upper, scores, rest, True, readers))

    def _scores(self, sequence: TokenSequence) -> Tensor | None:
        """Return the relative positions' scores (depth, H, S, S)."""
        if self.relative_positions is None:
            return None
        return self.relative_positions(sequence.num_text, sequence.has_image)  # type: ignore[no-any-return]

    def _run(
        self,
        sequence: TokenSequence,
        scores: Tensor | None,
        layers: range,
        fused: bool,
        readers: Tensor | None = None,
    ) -> Tensor:
        """Run some blocks; the last of them computes the places `readers` alone."""
        x, mask = sequence.tokens, None
        if sequence.text_mask is not None:
            num_image = x.shape[1] - sequence.num_text
            mask = nn.functional.pad(sequence.text_mask, (0, num_image), value=True)
            mask = key_bias(mask, x.dtype)  # (B, 1, 1, S)
        for layer in layers:
            bias = mask if scores is None else scores[layer][None]
            if bias is not None and scores is not None and mask is not None:
                bias = bias + mask
            chosen = readers if layer == layers[-1] else None
            if chosen is not None and bias is not None:
                bias = gather_scores(bias, chosen)
            route = self._route(sequence, layer, fused, chosen)
            x = self.blocks[layer](x, bias, route, chosen)
        return x

    def _route(
        self, sequence: TokenSequence, layer: int, fused: bool, readers: Tensor | None
    ) -> Route:
        """Return the expert of each run of tokens, or of the readers."""
        length, num_text = sequence.tokens.shape[1], sequence.num_text
        if readers is not None:
            length = readers.shape[1]
            num_text = length if num_text else 0
        if fused and layer >= self.config.fused_from:
            return [("fused", length)]
        runs = [("text", num_text), ("image", length - num_text)]
        return [run for run in runs if run[1]]
