"""The Multiway Transformer: one stack of blocks for images, texts and pairs (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.multiway import Layout, MultiwayBlock, gather_scores
from triptych.models.vlmo.positions import RelativePositions
from triptych.nn.attention import key_bias
from triptych.nn.packing import TokenGrid


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Images, texts or pairs as the trunk reads them.

    Attributes:
        image: (B, N, D) embeddings, or None.
        text: (M, L, D) embeddings, or None.
        text_mask: (M, L) bool, True = real token; None without text.
        image_index: (M,) int64, the image of each text of a pair; None means M = B, in order.
    """

    image: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    image_index: Tensor | None = None

    @property
    def is_paired(self) -> bool:
        """Whether each text has an image."""
        return self.image is not None and self.text is not None

    @property
    def num_rows(self) -> int:
        """Images, texts or pairs."""
        found = self.image if self.text is None else self.text
        assert found is not None
        return len(found)

    @property
    def num_image(self) -> int:
        """Image tokens N of a row; 0 for texts alone."""
        return 0 if self.image is None else self.image.shape[1]

    @property
    def num_text(self) -> int:
        """Text tokens L of a padded row; 0 for images alone."""
        return 0 if self.text is None else self.text.shape[1]

    def first_places(self) -> Tensor:
        """Return (M, 1) int64: the place of the [CLS] that speaks for a row, the text's in pairs.

        Places of pairs count within the text.
        """
        found = self.image if self.text is None else self.text
        assert found is not None
        return torch.zeros(len(found), 1, dtype=torch.int64, device=found.device)


@dataclass(frozen=True, slots=True)
class _Running:
    """A sequence on its way through the blocks.

    Attributes:
        x: (Z, D) flat tokens.
        layout: How they stand.
        mask: (M, 1, 1, S) additive scores that hide padding; None without text.
        scores: (depth, H, S, S) of the relative positions; None for absolute ones.
        image_index: As the sequence has it, before the first block.
    """

    x: Tensor
    layout: Layout
    mask: Tensor | None
    scores: Tensor | None
    image_index: Tensor | None

    def bias(self, layer: int) -> Tensor | None:
        """Return what the attention of a block adds to its scores."""
        if self.scores is None:
            return self.mask
        own = self.scores[layer][None]
        return own if self.mask is None else own + self.mask


class MultiwayTrunk(nn.Module):
    """Blocks, the last LayerNorm, and the relative positions if the model has them.

    Images alone go through image experts and texts alone through text experts in every block; a
    pair goes through both, side by side, and from block `fused_from` on through the
    vision-language expert.

    Padding is not computed. Where only some tokens of the result are read, the last block computes
    those alone: its keys and values are those of all tokens, so the result is the same.
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

    def forward(self, sequence: TokenSequence) -> tuple[Tensor | None, Tensor | None]:
        """Run images or texts through their own experts, pairs through those of pairs.

        Returns:
            Image states (M, N, D) and text states (M, L, D), meaningless at padding; None for what
            the sequence has not.
        """
        running = self._start(sequence, None)
        x = self._run(running, range(len(self.blocks)), fused=sequence.is_paired)
        states = self.norm(running.layout.padded(x))
        num_image, num_text = sequence.num_image, sequence.num_text
        image, text = torch.split(states, [num_image, num_text], dim=1)  # type: ignore[no-untyped-call]
        return (image if num_image else None), (text if num_text else None)

    def read(
        self,
        sequence: TokenSequence,
        reads: Sequence[tuple[slice, Tensor]],
        scores: Tensor | None = None,
    ) -> list[Tensor]:
        """Run all rows through the stack at once and read each group's own places.

        Args:
            sequence: M rows.
            reads: Groups of rows, each with the places (rows, R) int64 that are read: of the image,
                of the text, or of the text of pairs.
            scores: What `position_scores` returned, for several passes of one step.

        Returns:
            The states of each group, (rows, R, D).
        """
        running, paired = self._start(sequence, scores), sequence.is_paired
        x = self._run(running, range(len(self.blocks) - 1), fused=paired)
        return self._read(sequence, running, x, reads, fused=paired)

    def branches(
        self, sequence: TokenSequence, places: Tensor, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run images or texts alone both ways: up to the top through their own experts, and
        through the vision-language experts from the block on where pairs meet them.

        Args:
            sequence: B rows of one modality.
            places: (B, R) int64, places that are read.
            scores: As for `read`.

        Returns:
            States of both branches, each (B, R, D).
        """
        running, first = self._start(sequence, scores), self.config.fused_from
        last = len(self.blocks) - 1
        x = self._run(running, range(first), fused=False)
        found = []
        for fused in (False, True):
            upper = self._run(running, range(first, last), fused=fused, x=x)
            reads = [(slice(None), places)]
            found.append(self._read(sequence, running, upper, reads, fused=fused)[0])
        return found[0], found[1]

    def position_scores(self, num_text: int, with_image: bool = True) -> Tensor | None:
        """Return the scores of the relative positions of [image; text], (depth, H, S, S).

        Those of images alone and of shorter texts are parts of them. None for absolute positions.
        """
        if self.relative_positions is None:
            return None
        return self.relative_positions(num_text, with_image)  # type: ignore[no-any-return]

    def _start(self, sequence: TokenSequence, scores: Tensor | None) -> _Running:
        """Flatten a sequence and collect what its attention adds to the scores."""
        image, text, mask = sequence.image, sequence.text, sequence.text_mask
        num_image, num_text = sequence.num_image, sequence.num_text
        if scores is None:
            scores = self.position_scores(num_text, num_image > 0)
        else:
            first = 0 if num_image else 1 + self.config.num_patches
            part = slice(first, first + num_image + num_text)
            scores = scores[..., part, part]
        parts, grid, hidden = [], None, None
        if image is not None:
            parts.append(image.flatten(0, 1))
        if text is not None:
            assert mask is not None
            grid = TokenGrid.of(mask, text.shape[-1])
            parts.append(grid.pack(text))
            keys = nn.functional.pad(mask, (num_image, 0), value=True)
            hidden = key_bias(keys, text.dtype)
        x = parts[0] if len(parts) == 1 else torch.cat([parts[0].to(parts[1].dtype), parts[1]])
        layout = Layout(sequence.num_rows, num_image, grid)
        return _Running(x, layout, hidden, scores, sequence.image_index)

    def _run(
        self, running: _Running, layers: range, *, fused: bool, x: Tensor | None = None
    ) -> Tensor:
        """Run some blocks on `x`, or on the tokens at the start."""
        x = running.x if x is None else x
        for layer in layers:
            x = self.blocks[layer](
                x,
                running.layout,
                running.bias(layer),
                fused=fused and layer >= self.config.fused_from,
                image_index=running.image_index if layer == 0 else None,
            )
        return x

    def _read(
        self,
        sequence: TokenSequence,
        running: _Running,
        x: Tensor,
        reads: Sequence[tuple[slice, Tensor]],
        *,
        fused: bool,
    ) -> list[Tensor]:
        """Run the last block at the places that are read, and the last norm."""
        last = len(self.blocks) - 1
        block, layout = self.blocks[last], running.layout
        if last == 0 and running.image_index is not None:
            x = layout.repeat_images(x, running.image_index)
        tokens, bias = layout.padded(x), running.bias(last)  # (M, N + L, D)
        expert = "image" if sequence.text is None else "text"
        if fused and last >= self.config.fused_from:
            expert = "fused"
        offset = sequence.num_image if sequence.is_paired else 0
        found = []
        for rows, places in reads:
            own = bias if bias is None or len(bias) == 1 else bias[rows]
            own = None if own is None else gather_scores(own, places + offset)
            states = block.read(tokens[rows], own, places + offset, expert)  # type: ignore[operator]
            found.append(self.norm(states))
        return found
