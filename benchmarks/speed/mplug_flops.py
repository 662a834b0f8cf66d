"""Floating-point operations of mPLUG's networks, counted from their sizes; a multiply-add is two.

Norms, softmax, activations and biases are excluded: they cost time, and few operations. Forward
passes alone are counted. A backward pass has twice as many, so that ratios stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.family import mplug_base_patch16_256
from triptych.nn.kv_cache import COLUMNS


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of a layer's forward pass; a multiply-add counts as two.

    Norms, softmax, activations and biases are excluded. The backward pass has twice as many.

    Attributes:
        width: D.
        heads: H.
        shortcut: Whether a cross-attention takes the cheaper of two equal ways, as here on a CPU
            (`CrossAttention.prepare`), or always projects its memory, as the released code does.
    """

    width: int
    heads: int
    shortcut: bool = False

    def self_attention(self, tokens: float) -> float:
        """Count query, key, value and output projection, scores and weighted sum."""
        return 8 * tokens * self.width**2 + 4 * tokens**2 * self.width

    def feed_forward(self, tokens: float) -> float:
        """Count two matrices of D by 4 D."""
        return 16 * tokens * self.width**2

    def memory(self, tokens: float) -> float:
        """Count the keys and values of a memory."""
        return 4 * tokens * self.width**2

    def read(self, queries: float, memory: float) -> float:
        """Count query and output projection, scores and weighted sum over projected memory."""
        return 4 * queries * self.width**2 + 4 * queries * memory * self.width

    def cross_attention(self, queries: float, memory: float) -> float:
        """Count a cross-attention whose memory nothing else reads."""
        projected = self.memory(memory) + self.read(queries, memory)
        per_head = 4 * queries * memory * self.heads * self.width
        unprojected = 8 * queries * self.width**2 + per_head
        return min(projected, unprojected) if self.shortcut else projected

    def layer(self, letter: str, text: int, image: int) -> float:
        """Count a fusion layer: A asymmetric, C connected, X co-attention."""
        if letter == "C":
            return self.self_attention(text + image) + self.feed_forward(text + image)
        reads = [(text, image)] if letter == "A" else [(text, image), (image, text)]
        return sum(
            self.self_attention(own) + self.cross_attention(own, other) + self.feed_forward(own)
            for own, other in reads
        )

    def network(self, letters: str, text: int, image: int) -> float:
        """Count a fusion network, given by its layers' letters."""
        return sum(self.layer(letter, text, image) for letter in letters)


def base_flops(*, shortcut: bool = False) -> Flops:
    """Return the counter of base size."""
    text = mplug_base_patch16_256().text
    return Flops(text.embed_dim, text.num_heads, shortcut)


def encoder_flops(config: MPLUGConfig, text: int, image: int) -> float:
    """Count both encoders of one pair."""
    sides = (
        (config.vision.depth, image, Flops(config.vision.embed_dim, config.vision.num_heads)),
        (config.text_depth, text, Flops(config.text.embed_dim, config.text.num_heads)),
    )
    pixels = 3 * config.vision.patch_size**2
    patches = 2 * config.vision.num_patches * pixels * config.vision.embed_dim
    return patches + sum(
        depth * (count.self_attention(tokens) + count.feed_forward(tokens))
        for depth, tokens, count in sides
    )


def beam_flops(config: MPLUGConfig, beams: int, tokens: int, memory: int, *, cached: bool) -> float:
    """Count a beam search over one image.

    Step t reads t tokens of each beam and projects the memory for each, or with caches reads the
    newest token and projects nothing; it scores the next word of each beam. With caches, a beam
    attends over the tokens of all beams, in whole groups of columns.
    """
    count = Flops(config.text.embed_dim, config.text.num_heads)
    width, depth = config.text.embed_dim, config.decoder_depth
    head = 2 * width**2 + 2 * width * config.text.vocab_size
    total = depth * count.memory(memory) if cached else 0.0
    for step in range(1, tokens + 1):
        if cached:
            columns = -(-step * beams // COLUMNS) * COLUMNS
            layer = 8 * width**2 + 4 * columns * width
            layer += count.read(1, memory) + count.feed_forward(1)
        else:
            layer = count.self_attention(step) + count.feed_forward(step)
            layer += count.cross_attention(step, memory)
        total += beams * (depth * layer + head)
    return total


def rerank_flops(
    config: MPLUGConfig, texts: int, tokens: float, image: int, *, fast: bool
) -> float:
    """Count six asymmetric layers over the texts of one image.

    The plain way projects the image for each text. The fast way projects it once for all, and its
    last layer computes the first token of each text alone.
    """
    depth = config.fusion_depth
    count = Flops(config.text.embed_dim, config.text.num_heads, shortcut=fast)
    own = count.self_attention(tokens) + count.feed_forward(tokens)
    if not fast:
        return texts * depth * (own + count.cross_attention(tokens, image))
    width = config.text.embed_dim
    scores = 4 * tokens**2 * width  # attention works on whole rows, so not those of one token alone
    last = 4 * (tokens + 1) * width**2 + scores + count.feed_forward(1)
    reads = (depth - 1) * count.cross_attention(texts * tokens, image)
    return reads + count.cross_attention(texts, image) + texts * ((depth - 1) * own + last)


def spell(connected: Collection[int], depth: int) -> str:
    """Return the letters of a skip-connected network."""
    return "".join("C" if layer in connected else "A" for layer in range(depth))
