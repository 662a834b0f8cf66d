"""What one training step computes and keeps, counted from sizes alone.

A `StepWork` lists the passes that a task makes through its stacks of blocks for one sample. Nothing
is run and nothing is allocated: `triptych/train/estimate.py` turns it into memory and time before a
model exists. Tests compare the operations with torch's counter and what is kept with the tensors
that autograd saves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Operations of a forward pass, and the numbers that it keeps for the backward pass.

    Attributes:
        flops: Floating-point operations of matrix products; one multiply-add counts as two.
        inputs: Numbers of the residual stream that enter blocks.
        sums: Numbers of the residual stream inside blocks.
        products: Results of matrix products and attention that the backward pass reads.
        projected: Results of the products at the end of a sublayer, which it does not read; they
            are kept where everything between products is computed again.
        cheap: Results of norms and activations, and copies: they cost little to compute again.
        casts: Copies of residual states in 16 bits; without autocast there are none.
        scores: Numbers that attention adds to its scores, given to the block: its kernel keeps them
            in 16 bits; recomputation keeps what was given.
        masks: Numbers of dropout masks, one byte each.
        outputs: Numbers that no recomputation spares, such as log-probabilities of words, in fp32.
    """

    flops: float = 0.0
    inputs: float = 0.0
    sums: float = 0.0
    products: float = 0.0
    projected: float = 0.0
    cheap: float = 0.0
    casts: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    outputs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return both together."""
        return Cost(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: float) -> Cost:
        """Return several of it."""
        return Cost(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    def kept_bytes(self, recompute: Recompute, half: int, stream: int) -> float:
        """Return the bytes that are kept from the forward to the backward pass.

        Args:
            recompute: What is computed again instead.
            half: Bytes of a number that a matrix product reads or gives: 2, or 4 in fp32.
            stream: Bytes of a number of the residual stream.
        """
        kept = stream * self.inputs + 4 * self.outputs
        kept += (half if recompute == "none" else stream) * self.scores
        if recompute == "full":
            return kept
        kept += half * self.products
        if recompute == "selective":
            return kept + half * self.projected
        kept += stream * self.sums + half * self.cheap + self.masks
        return kept + (half * self.casts if half < stream else 0.0)


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    return sum(costs, start=Cost())


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """What the cost of a transformer block depends on.

    Attributes:
        width: Width D of the states.
        mlp_dim: Hidden width of the FFN.
        heads: Attention heads.
        dropout: Whether training drops the outputs of sublayers.
        layer_scale: Whether the outputs of sublayers are scaled by learned factors.
        packed: Whether texts are stored without their padding: what attention gives is then copied
            before its output projection.
    """

    width: int
    mlp_dim: int
    heads: int
    dropout: bool = False
    layer_scale: bool = False
    packed: bool = False

    def self_attention(
        self,
        tokens: float,
        pairs: float,
        *,
        readers: float | None = None,
        slots: float | None = None,
        biased: float = 0.0,
    ) -> Cost:
        """Count qkv, attention and output projection.

        Of n tokens, each projection has 2·n·D² operations, and scores and values 4·D for each pair
        of a query and a key.

        Args:
            tokens: Tokens that are attended to.
            pairs: Pairs of a query and a key.
            readers: Tokens whose output is read, where not all are.
            slots: Tokens with their padding, which queries, keys and values have; `tokens` if there
                is none.
            biased: Pairs that have a learned bias of their own in each head.
        """
        width, asking = self.width, tokens if readers is None else readers
        padded = tokens if slots is None else slots
        return Cost(
            flops=4 * tokens * width**2 + 4 * asking * width**2 + 4 * pairs * width,
            inputs=tokens * width,
            products=(2 * padded + 2 * (padded if readers is None else readers)) * width,
            projected=asking * width,
            cheap=tokens * width + asking * width * (self.layer_scale + self.packed),
            scores=self.heads * biased,
            masks=asking * width if self.dropout else 0,
        )

    def cross_attention(
        self, tokens: float, memory: float, memory_width: int, pairs: float
    ) -> Cost:
        """Count the attention of `tokens` to a memory that this block projects itself.

        Args:
            tokens: Queries.
            memory: Tokens of the memory, each projected to a key and a value: 4·D·C operations.
            memory_width: Width C of the memory.
            pairs: Pairs of a query and a key.
        """
        width = self.width
        return Cost(
            flops=4 * tokens * width**2 + 4 * memory * width * memory_width + 4 * pairs * width,
            sums=tokens * width,
            products=2 * tokens * width + 2 * memory * width,
            projected=tokens * width,
            cheap=(1 + self.packed) * tokens * width,
            casts=memory * memory_width,
            masks=tokens * width if self.dropout else 0,
        )

    def mlp(self, tokens: float) -> Cost:
        """Count the FFN: two products of 2·D·F operations a token."""
        width, hidden = self.width, self.mlp_dim
        return Cost(
            flops=4 * tokens * width * hidden,
            sums=tokens * width,
            products=tokens * hidden,
            projected=tokens * width,
            cheap=tokens * (width + hidden) + tokens * width * self.layer_scale,
            masks=tokens * width if self.dropout else 0,
        )

    def block(
        self,
        tokens: float,
        pairs: float,
        *,
        readers: float | None = None,
        slots: float | None = None,
        biased: float = 0.0,
    ) -> Cost:
        """Count self-attention and FFN; the FFN runs on the readers alone."""
        attention = self.self_attention(tokens, pairs, readers=readers, slots=slots, biased=biased)
        return attention + self.mlp(tokens if readers is None else readers)


def linear(tokens: float, inputs: int, outputs: int) -> Cost:
    """Count one linear layer; what it reads is kept."""
    return Cost(flops=2 * tokens * inputs * outputs, products=tokens * inputs)


def word_head(tokens: float, width: int, vocab_size: int, *, taught: bool = False) -> Cost:
    """Count a dense layer and a score for every entry of a vocabulary, at the tokens that are read.

    The loss keeps the logarithms of the probabilities, and with a teacher its distribution too.
    """
    kept = tokens * vocab_size * (3 if taught else 1)
    return linear(tokens, width, width) + Cost(
        flops=2 * tokens * width * vocab_size, products=tokens * width, outputs=kept
    )


def patches(image_size: int, patch_size: int, width: int, stem_widths: tuple[int, ...]) -> Cost:
    """Count the projection of patches, and the convolutions of stride 2 before it if any."""
    flops, kept, channels, side = 0.0, 0.0, 3, image_size
    for stem in stem_widths:
        side //= 2
        flops += 2 * 9 * channels * stem * side**2
        kept += 3 * stem * side**2  # before the norm, before GELU, after it
        channels = stem
    num_patches = (image_size // patch_size) ** 2
    inputs = channels * side**2 // num_patches
    return Cost(flops=flops + 2 * num_patches * inputs * width, products=kept + channels * side**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPass:
    """One way through a stack of blocks, for one sample.

    Attributes:
        name: What tables call it.
        cost: Of all its blocks.
        largest: Of the block that keeps most: the backward pass holds it once more.
        blocks: Name of the stack among the task's modules; empty for what is not in blocks. Each of
            its blocks is entered once: a sharded block is gathered each time.
        first: First block that is entered.
        trained: Whether there is a backward pass.
    """

    name: str
    cost: Cost
    largest: Cost = Cost()
    blocks: str = ""
    first: int = 0
    trained: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastWork:
    """A contrastive loss of B rows against G columns.

    Attributes:
        embed_dim: Width E of an embedding.
        branches: Pairs of embeddings that are compared: 1, or 2 where fused ones are too.
        matrices: (B, G) matrices of fp32 that exist at once at the peak, where there are no tiles.
        queue: Columns of a queue beside those of the batch.
        gathers: How often the image and text embeddings of all processes travel: as columns, as
            the gradients of these, and as candidates for hard negatives.
    """

    embed_dim: int
    branches: int = 1
    matrices: int = 8
    queue: int = 0
    gathers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """All passes of one training step, for one sample.

    Attributes:
        passes: Through stacks, and through what lies outside them.
        contrast: The contrastive loss, if there is one.
        chunk_size: Samples whose activations are kept at a time, the rest being computed again
            (gradient cache); None keeps all of a micro-batch.
        exchanged_bytes: Bytes of a sample that travel to other processes beside embeddings, such as
            images that are hard negatives there.
        input_bytes: Bytes of a sample's input tensors.
        held_bytes: Bytes of a sample that a gradient cache holds between its passes.
        recomputes_cheap: Whether blocks compute norms and activations again by themselves, even
            where nothing is to be recomputed.
    """

    passes: tuple[StackPass, ...]
    contrast: ContrastWork | None = None
    chunk_size: int | None = None
    exchanged_bytes: float = 0.0
    input_bytes: float = 0.0
    held_bytes: float = 0.0
    recomputes_cheap: bool = False

    def entries(self, unit: str, *, trained: bool) -> int:
        """Return how many passes with, or without, a backward pass enter a block.

        Args:
            unit: Name of the block, which ends in its number: "model.fusion.blocks.3".
            trained: Which passes.
        """
        stack, _, number = unit.rpartition(".")
        return sum(
            p.trained == trained and p.blocks == stack and p.first <= int(number)
            for p in self.passes
        )

    def forward_flops(self, *, trained: bool) -> float:
        """Return the operations of the forward passes with, or without, a backward pass."""
        return sum(p.cost.flops for p in self.passes if p.trained == trained)

    def model_flops(self) -> float:
        """Return what one sample costs: a backward pass is two forward passes."""
        return 3 * self.forward_flops(trained=True) + self.forward_flops(trained=False)

    def computed_flops(self, recompute: Recompute) -> float:
        """Return the operations with those that are done again in the backward pass.

        Selective recomputation repeats no matrix product; full recomputation repeats the forward
        pass once, a gradient cache does so too, and both together do it twice.
        """
        again = (recompute == "full") + (self.chunk_size is not None)
        return self.model_flops() + again * self.forward_flops(trained=True)

    def kept_bytes(self, recompute: Recompute, half: int, stream: int) -> float:
        """Return the bytes that one sample keeps; what lies outside blocks is never recomputed.

        Args:
            recompute: What blocks compute again.
            half: Bytes of a number that a matrix product reads or gives.
            stream: Bytes of a number of the residual stream.
        """
        found = 0.0
        for step in self.passes:
            if step.trained and step.blocks:
                cost = replace(step.cost, cheap=0.0) if self.recomputes_cheap else step.cost
                found += cost.kept_bytes(recompute, half, stream)
            elif step.trained:
                found += step.cost.kept_bytes("none", half, stream)
        return found

    def largest(self, half: int, stream: int) -> float:
        """Return the bytes that the block which keeps most keeps of one sample."""
        kept = [p.largest.kept_bytes("none", half, stream) for p in self.passes if p.trained]
        return max(kept, default=0.0)
