"""The Multiway Transformer: one stack of blocks for images, texts and pairs (section 3.2).

Each block has one attention for all modalities and an expert FFN for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.positions import RelativePositions
from triptych.nn.attention import SelfAttention, key_bias
from triptych.nn.block import BlockConfig, FeedForward, gather_tokens
from triptych.nn.packing import TokenGrid
from triptych.nn.recompute import Recompute, run_recomputed


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tokens of M rows stand in one flat tensor (Z, D): all image tokens, then the text.

    Attributes:
        num_rows: Images, texts or pairs M.
        num_image: Image tokens N of a row; 0 for texts alone.
        grid: Rows of the packed text tokens; None for images alone.
    """

    num_rows: int
    num_image: int
    grid: TokenGrid | None = None

    @property
    def num_text_tokens(self) -> int:
        """Text tokens T of all rows."""
        if self.grid is None:
            return 0
        slots = self.grid.slots
        return self.num_rows * self.grid.width if slots is None else slots.shape[0]

    def runs(self, x: Tensor) -> list[tuple[str, Tensor]]:
        """Return the image tokens (M·N, D) and the text tokens (T, D), as far as there are any."""
        if self.grid is None:
            return [("image", x)]
        if not self.num_image:
            return [("text", x)]
        num_text = self.num_text_tokens
        image, text = torch.split(x, [x.shape[0] - num_text, num_text])  # type: ignore[no-untyped-call]
        return [("image", image), ("text", text)]

    def repeat_images(self, x: Tensor, image_index: Tensor) -> Tensor:
        """Put each row's own image (M) in place of the distinct ones (B)."""
        (_, image), (_, text) = self.runs(x)
        rows = image.view(-1, self.num_image, image.shape[-1]).index_select(0, image_index)
        return torch.cat([rows.flatten(0, 1), text])

    def padded(self, x: Tensor) -> Tensor:
        """Return each row's image tokens and its padded text tokens: (M, N + L, D)."""
        parts = dict(self.runs(x))
        found = []
        if "image" in parts:
            found.append(parts["image"].view(self.num_rows, self.num_image, -1))
        if "text" in parts and self.grid is not None:
            found.append(self.grid.pad(parts["text"]))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def per_token(self, image: Tensor, text: Tensor) -> Tensor:
        """Spread a value of each row (M,), one for its image and one for its text: (Z,)."""
        parts = [image.repeat_interleave(self.num_image)]
        if self.grid is not None:
            slots, width = self.grid.slots, self.grid.width
            own = text.repeat_interleave(width) if slots is None else text[slots // width]
            parts.append(own)
        return torch.cat(parts)


class ModalityExpert(nn.Module):
    """The FFN of one modality with its own LayerNorm: FFN(LN(x)).

    Deviation from the paper's equation, as in the released code: the norm belongs to the expert.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D), token by token."""
        return self.mlp(self.norm(x))  # type: ignore[no-any-return]


class MultiwayBlock(nn.Module):
    """x' = x + γ₁ ⊙ MSA(LN(x)); y = x' + γ₂ ⊙ Multiway-FFN(x') (equations 3 and 4).

    The attention, its norm and the layer scales γ are shared by all modalities. Deviation from the
    paper's equations, as in the released code and in BEiT: γ.

    Args:
        config: Sizes.
        layer: Number of the block, from 0: blocks from `config.fused_from` on have the
            vision-language expert too, and later ones are skipped more often in training.
    """

    shard_entries: ClassVar[tuple[str, ...]] = ("read",)
    """See `Block.shard_entries`."""

    def __init__(self, config: VLMoConfig, layer: int) -> None:
        super().__init__()
        block, width = config.block(), config.embed_dim
        self.attention_norm = nn.LayerNorm(width, eps=block.norm_eps)
        self.attention = SelfAttention(
            width, block.num_heads, block.attention_dropout, key_bias=block.key_bias
        )
        names = ["text", "image"] + (["fused"] if layer >= config.fused_from else [])
        if config.experts == "shared":
            names = ["shared"]
        self.experts = nn.ModuleDict({name: ModalityExpert(block) for name in names})
        self.attention_scale = self.mlp_scale = None
        if config.layer_scale is not None:
            self.attention_scale = nn.Parameter(torch.full((width,), config.layer_scale))
            self.mlp_scale = nn.Parameter(torch.full((width,), config.layer_scale))
        self.drop_path = drop_path_rate(config, layer)
        self.recompute: Recompute = "none"

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        bias: Tensor | None,
        *,
        fused: bool = False,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Transform images, texts or pairs.

        Args:
            x: (Z, D) float, flat as `layout` says; of distinct images with `image_index`.
            layout: Of the result.
            bias: Additive scores of [image; text], broadcastable to (M, H, S, S).
            fused: Whether tokens go through the vision-language expert.
            image_index: (M,) int64, the image of each text, where they are distinct ones. What does
                not depend on the text is computed once an image.

        Returns:
            (Z, D).
        """
        inputs = x, layout, bias, fused, image_index
        return run_recomputed(self.recompute, self._transform, *inputs)

    def _transform(
        self,
        x: Tensor,
        layout: Layout,
        bias: Tensor | None,
        fused: bool,
        image_index: Tensor | None,
    ) -> Tensor:
        attended = self._attend(self.attention_norm(x), layout, bias, image_index)
        if image_index is not None:
            x = layout.repeat_images(x, image_index)
        x = x + self._branch(attended, self.attention_scale, layout, apart=False)
        if fused:
            part = self.expert("fused")(x)
        else:
            parts = [self.expert(name)(run) for name, run in layout.runs(x)]
            part = parts[0] if len(parts) == 1 else torch.cat(parts)
        return x + self._branch(part, self.mlp_scale, layout, apart=not fused)

    def read(self, x: Tensor, bias: Tensor | None, positions: Tensor, expert: str) -> Tensor:
        """Transform only the tokens that somebody reads; all tokens are attended.

        Args:
            x: (B, S, D) float.
            bias: Additive scores, broadcastable to (B, H, R, S).
            positions: (B, R) int64, in the sequence.
            expert: "text", "image" or "fused".

        Returns:
            (B·R, D): what `forward` gives at those positions, row by row.
        """
        return run_recomputed(self.recompute, self._read, x, bias, positions, expert)

    def _read(self, x: Tensor, bias: Tensor | None, positions: Tensor, expert: str) -> Tensor:
        normed, num_read = self.attention_norm(x), positions.shape[1]
        layout = Layout(x.shape[0], num_read)
        attended = self.attention(normed, bias, gather_tokens(normed, positions)).flatten(0, 1)
        x = gather_tokens(x, positions).flatten(0, 1)
        x = x + self._branch(attended, self.attention_scale, layout, apart=False)
        part = self.expert(expert)(x)
        return x + self._branch(part, self.mlp_scale, layout, apart=False)

    def expert(self, name: str) -> nn.Module:
        """Return the expert of a name; the shared one where there is no other."""
        return self.experts[name if name in self.experts else "shared"]

    def _attend(
        self, normed: Tensor, layout: Layout, bias: Tensor | None, image_index: Tensor | None
    ) -> Tensor:
        runs = dict(layout.runs(normed))
        if "image" not in runs:
            return self.attention(normed, bias, grid=layout.grid)  # type: ignore[no-any-return]
        image = runs["image"].view(-1, layout.num_image, normed.shape[-1])
        if layout.grid is None:
            return self.attention(image, bias).flatten(0, 1)  # type: ignore[no-any-return]
        assert bias is not None
        return self.attention.joint(image, runs["text"], bias, layout.grid, image_index)

    def _branch(self, part: Tensor, scale: Tensor | None, layout: Layout, *, apart: bool) -> Tensor:
        """Return γ ⊙ part, with whole rows skipped in training; images and texts `apart` or not."""
        part = part if scale is None else part * scale.to(part.dtype)
        if not self.training or self.drop_path == 0.0:
            return part
        image = text = drop_path_factors(layout.num_rows, self.drop_path, part.device)
        if apart:
            text = drop_path_factors(layout.num_rows, self.drop_path, part.device)
        return part * layout.per_token(image, text).to(part.dtype)[:, None]


def drop_path_rate(config: VLMoConfig, layer: int) -> float:
    """Return how often training skips a branch of a block: linear from 0 to the config's rate."""
    return config.drop_path * layer / max(1, config.depth - 1)


def drop_path_factors(num_rows: int, rate: float, device: torch.device) -> Tensor:
    """Draw the factor of each row's residual branch (Huang et al. 2016).

    Returns:
        (M,) float32: 0 with probability `rate`, else 1 / (1 - rate), so that the mean stays.
    """
    return (torch.rand(num_rows, device=device) >= rate).float() / (1 - rate)


def gather_scores(bias: Tensor, positions: Tensor) -> Tensor:
    """Return the scores of the queries at some positions.

    Args:
        bias: (1 or B, H or 1, S or 1, S).
        positions: (B, R) int64.

    Returns:
        (B, H or 1, R or 1, S).
    """
    if bias.shape[2] == 1:
        return bias
    if bias.shape[0] == 1:
        return bias[0][:, positions].transpose(0, 1)
    return bias.gather(2, positions[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[-1]))


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
        return found.shape[0]

    @property
    def num_image(self) -> int:
        """Image tokens N of a row; 0 for texts alone."""
        return 0 if self.image is None else self.image.shape[1]

    @property
    def num_text(self) -> int:
        """Text tokens L of a padded row; 0 for images alone."""
        return 0 if self.text is None else self.text.shape[1]

    def first_positions(self) -> Tensor:
        """Return (M, 1) int64: the position of each row's [CLS], the text's in pairs.

        Positions of pairs count within the text.
        """
        found = self.image if self.text is None else self.text
        assert found is not None
        return torch.zeros(found.shape[0], 1, dtype=torch.int64, device=found.device)


@dataclass(frozen=True, slots=True)
class _Running:
    """A sequence on its way through the blocks.

    Attributes:
        x: (Z, D) flat tokens.
        layout: How they stand.
        mask: (M, 1, 1, S) additive scores that mask padding; None without text.
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
        """Run all rows through the stack at once and read each group's own positions.

        Args:
            sequence: M rows.
            reads: Groups of rows, each with the positions (rows, R) int64 that are read:
                of the image, of the text, or of the text of pairs.
            scores: What `position_scores` returned, for several passes of one step.

        Returns:
            The states of each group, (rows, R, D).
        """
        running, paired = self._start(sequence, scores), sequence.is_paired
        x = self._run(running, range(len(self.blocks) - 1), fused=paired)
        return self._read(sequence, running, x, reads, fused=paired)

    def branches(
        self, sequence: TokenSequence, positions: Tensor, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run images or texts alone both ways: up to the top through their own experts, and
        through the vision-language experts from the block on where pairs meet them.

        Args:
            sequence: B rows of one modality.
            positions: (B, R) int64, of the states that are read.
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
            reads = [(slice(None), positions)]
            found.append(self._read(sequence, running, upper, reads, fused=fused)[0])
        return found[0], found[1]

    def position_scores(self, num_text: int, num_images: int = 1) -> Tensor | None:
        """Return the scores of the relative positions of [images; text], (depth, H, S, S).

        Those of images alone and of shorter texts are parts of them. None for absolute positions.
        """
        if self.relative_positions is None:
            return None
        return self.relative_positions(num_text, num_images)  # type: ignore[no-any-return]

    def _start(self, sequence: TokenSequence, scores: Tensor | None) -> _Running:
        """Flatten a sequence and collect what its attention adds to the scores."""
        image, text, mask = sequence.image, sequence.text, sequence.text_mask
        num_image, num_text = sequence.num_image, sequence.num_text
        if scores is None:
            scores = self.position_scores(num_text, num_image // (1 + self.config.num_patches))
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
        """Run the last block at the positions that are read, and the last norm."""
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
        for rows, positions in reads:
            own = bias if bias is None or bias.shape[0] == 1 else bias[rows]
            own = None if own is None else gather_scores(own, positions + offset)
            states = block.read(tokens[rows], own, positions + offset, expert)  # type: ignore[operator]
            found.append(self.norm(states).view(*positions.shape, -1))
        return found
