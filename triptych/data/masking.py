"""Which tokens are masked (BERT, section 3.1), and which patches (BEiT, algorithm 1).

The patches of all images of a batch are masked at once. Every number that an image needs is
computed from one key of its own and a counter, so its mask does not depend on the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.core.config import check
from triptych.text import Tokenizer

IGNORE_INDEX = -100
SHARE_MASKED = 0.8  # of the chosen tokens: replaced by [MASK]
SHARE_RANDOM = 0.1  # replaced by a random word; the rest stays as it is

IdArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskingVocabulary:
    """What masking needs to know of a vocabulary of V tokens.

    Attributes:
        mask_id: Id of [MASK].
        is_maskable: (V,) bool, False = special or unused token, never chosen.
        is_word: (V,) bool, True = holds a letter or a digit.
        is_continuation: (V,) bool, True = goes on the word before it.
        random_ids: Ids that may replace a chosen token: no special, no unused token.
    """

    mask_id: int
    is_maskable: NDArray[np.bool_]
    is_word: NDArray[np.bool_]
    is_continuation: NDArray[np.bool_]
    random_ids: IdArray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> MaskingVocabulary:
        """Collect the facts of a tokenizer."""
        is_maskable = np.ones(tokenizer.vocab_size, dtype=np.bool_)
        is_maskable[sorted(tokenizer.special_ids | tokenizer.unused_ids)] = False
        return cls(
            mask_id=tokenizer.mask_id,
            is_maskable=is_maskable,
            is_word=tokenizer.is_word,
            is_continuation=tokenizer.is_continuation,
            random_ids=np.flatnonzero(is_maskable).astype(np.int64),
        )


def mask_tokens(
    ids: IdArray,
    vocabulary: MaskingVocabulary,
    rng: np.random.Generator,
    probability: float = 0.15,
    whole_word: bool = False,
) -> tuple[IdArray, IdArray]:
    """Choose tokens to predict and mask them: 80 % [MASK], 10 % a random token, 10 % unchanged.

    Every token (every word, with `whole_word`) is chosen with `probability`. Where this chooses
    no real word of a caption that has one, one real word is chosen at random, so that a short
    caption is never without a target; where no word is real, as in "& $ +", one token that may be
    hidden is. A token of a caption of n words is then chosen with
    probability p + (1 - p)^n / n.

    Args:
        ids: (L,) token ids.
        vocabulary: Facts of the vocabulary.
        rng: Source of all choices.
        probability: Share of tokens that is chosen, 0 to 1.
        whole_word: Whether the pieces of a word are chosen together. What replaces a piece is
            drawn for each piece, as in BERT's whole-word code.

    Returns:
        The ids with chosen tokens masked, and labels: the true id where chosen, else -100.
    """
    length = len(ids)
    draws = rng.random((3, length))
    maskable = vocabulary.is_maskable[ids]
    if whole_word:
        group = np.cumsum(~vocabulary.is_continuation[ids])  # word number of each token
        draws[0] = draws[0, np.searchsorted(group, group)]  # the draw of the word's first token
    chosen = maskable & (draws[0] < probability)
    is_word = vocabulary.is_word[ids] & maskable
    needed = is_word if is_word.any() else maskable
    if needed.any() and not (chosen & needed).any():
        # no draw is below `probability`: which word has the smallest one is uniform
        chosen |= maskable & (draws[0] == draws[0, needed].min())
    return _replace(ids, chosen, draws[1:], vocabulary)


def _replace(
    ids: IdArray,
    chosen: NDArray[np.bool_],
    draws: NDArray[np.float64],
    vocabulary: MaskingVocabulary,
) -> tuple[IdArray, IdArray]:
    """Hide the chosen tokens; `draws` is (2, L): what replaces each, and which random id."""
    labels = np.where(chosen, ids, IGNORE_INDEX)
    what, which = draws
    masked = np.where(chosen & (what < SHARE_MASKED), vocabulary.mask_id, ids)
    is_random = chosen & (what >= SHARE_MASKED) & (what < SHARE_MASKED + SHARE_RANDOM)
    if is_random.any():
        candidates = vocabulary.random_ids
        masked[is_random] = candidates[(which[is_random] * len(candidates)).astype(np.int64)]
    return masked, labels


Keys = NDArray[np.uint64]
Draws = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_GRID = 64
TRIES_AT_ONCE = 16
ALL_ONES = np.uint64(2**64 - 1)

# SplitMix64 (Steele, Lea & Flood 2014): its step and the two factors of its mixing function
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMaskingConfig:
    """How many patches are masked, and in blocks of what shape.

    The defaults are BEiT's and FLAVA's, which are given there for 14 x 14 patches.

    Attributes:
        hidden_share: Largest share of patches that is masked (75 of 196; the mean is 74.5).
        min_block_share: Smallest area of a block, as a share of all patches (16 of 196).
        min_aspect: Smallest height / width of a block; the largest is its inverse (0.3).
        num_tries: Attempts to place a block before masking stops (10).
    """

    hidden_share: float = 75 / 196
    min_block_share: float = 16 / 196
    min_aspect: float = 0.3
    num_tries: int = 10

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name in ("hidden_share", "min_block_share"):
            value = getattr(self, name)
            check(0 <= value <= 1, name, value, "be from 0 to 1")
        check(0 < self.min_aspect <= 1, "min_aspect", self.min_aspect, "be in (0, 1]")
        check(self.num_tries >= 1, "num_tries", self.num_tries, "be at least 1")


def draw_mask_key(rng: np.random.Generator) -> int:
    """Draw the key of one image's mask from the image's generator."""
    return int(rng.integers(2**64, dtype=np.uint64))


def block_masks(keys: Keys, grid_size: int, config: BlockMaskingConfig) -> BoolArray:
    """Mask blocks of patches in each image of a batch.

    A block has an area uniform between the least one and what is still to be masked, a uniform
    logarithm of the aspect, and a uniform position. It is taken if it is less high and less wide
    than the grid and masks a new patch, but not more than are still to be masked. An image is done
    when its number is reached, or when `num_tries` blocks in a row are not taken. As in the
    released code, an area may be drawn below the least one once less than that is to be masked.

    Args:
        keys: (B,) 64-bit keys, one an image; equal keys give equal masks.
        grid_size: Patches on each side, at most 64.
        config: Numbers and forms.

    Returns:
        (B, P) bool in row-major order, True = masked.
    """
    check(1 <= grid_size <= MAX_GRID, "grid_size", grid_size, f"be from 1 to {MAX_GRID}")
    num_patches = grid_size**2
    num_hidden = round(config.hidden_share * num_patches)
    blocks = _Blocks(grid_size, num_hidden, config)
    free = np.full((blocks.num_words, len(keys)), ALL_ONES)  # bit of a patch: 1 = not masked
    todo = np.full(len(keys), float(num_hidden))  # 0 once an image is done
    last_try = np.full(len(keys), config.num_tries)  # an image is done unless it takes a block
    for number, drawn in blocks.tries(keys):
        new = blocks.words(drawn, todo)  # (words, B)
        new &= free
        num_new = np.add.reduce(np.bitwise_count(new), axis=0, dtype=np.float64)
        taken = (num_new > 0) & (num_new <= todo)
        new *= taken
        free ^= new
        num_new *= taken
        todo -= num_new
        np.putmask(last_try, taken, number + config.num_tries)
        if number >= config.num_tries:
            todo *= last_try > number
        if not todo.any():
            break
    return _unpack(~free, num_patches)


class _Blocks:
    """Rectangles of a grid as bit words: the rows that they cover and the columns that they cover.

    Heights from the grid's on, and so widths, are no block: their words are zero.
    """

    def __init__(self, grid_size: int, num_hidden: int, config: BlockMaskingConfig) -> None:
        self._least = config.min_block_share * grid_size**2
        self._log_aspect = math.log(config.min_aspect)
        self._num_starts = grid_size + 1  # first patches of a side; a side of 0 has the most
        longest = math.sqrt(max(num_hidden, self._least) / config.min_aspect)
        self._words = _side_words(grid_size, max(grid_size, math.ceil(longest) + 1))
        self._first = np.array([[0], [self._words.shape[1] // 2]])  # of rows, of columns
        self.num_words = len(self._words)

    def tries(self, keys: Keys) -> Iterator[tuple[int, tuple[Draws, ...]]]:
        """Yield the number of each try, from 1, and what `words` needs of it, without an end."""
        number = 0
        while True:
            area, aspect, *start = _uniforms(keys, number)  # each (tries, B)
            aspect = np.exp((1 - 2 * aspect) * self._log_aspect)
            aspects = np.stack([aspect, 1 / aspect], axis=1)  # (tries, 2, B): height, width
            start_share = np.stack(start, axis=1)
            square = area[:, None] * aspects
            least = self._least * (aspects - square)
            offset = start_share * self._num_starts + self._first
            slope = self._num_starts - start_share
            for drawn in zip(square, least, slope, offset, strict=True):
                number += 1
                yield number, drawn

    def words(self, drawn: tuple[Draws, ...], todo: Draws) -> Keys:
        """Return one block for each image, (words, B), given how many patches it may mask."""
        square, least, slope, offset = drawn  # each (2, B)
        sides = np.rint(np.sqrt(least + square * todo))  # √(area · aspect), √(area / aspect)
        # = first + sides * num_starts + start_share * (num_starts - sides)
        index = (offset + sides * slope).astype(np.intp)
        words = self._words.take(index, axis=1)  # (words, 2, B)
        return words[:, 0] & words[:, 1]  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def _side_words(grid_size: int, longest: int) -> Keys:
    """Return the patches in the rows, then in the columns, of each side length and first patch.

    Returns:
        (words, 2 · (longest + 1) · (grid_size + 1)); the length is slower than the first patch.
    """
    length, first = np.divmod(np.arange((longest + 1) * (grid_size + 1)), grid_size + 1)
    length = np.where(length < grid_size, length, 0)[:, None]
    line = np.arange(grid_size)
    inside = (line >= first[:, None]) & (line < first[:, None] + length)  # (sides, grid)
    shape = (len(inside), grid_size, grid_size)
    rows = np.broadcast_to(inside[:, :, None], shape).reshape(len(inside), -1)
    columns = np.broadcast_to(inside[:, None, :], shape).reshape(len(inside), -1)
    return _pack(np.concatenate([rows, columns]))


def _pack(bits: BoolArray) -> Keys:
    """Return rows of bits (n, P) as 64-bit words (words, n)."""
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 64)))
    return np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little").view(np.uint64).T)


def _unpack(words: Keys, num_bits: int) -> BoolArray:
    """Return 64-bit words (words, n) as rows of bits (n, P)."""
    rows = np.ascontiguousarray(words.T).view(np.uint8)
    bits = np.unpackbits(rows, axis=1, count=num_bits, bitorder="little")
    return bits.view(np.bool_)


def _uniforms(keys: Keys, num_before: int) -> Draws:
    """Return the draws of the next tries from each key's SplitMix64 stream.

    Returns:
        (4, tries, B) in [0, 1), each of 32 bits.
    """
    numbers = np.arange(1, 2 * TRIES_AT_ONCE + 1, dtype=np.uint64) + np.uint64(2 * num_before)
    state = keys + (numbers * _STEP).reshape(2, TRIES_AT_ONCE, 1)
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    state ^= state >> np.uint64(31)
    halves = state.astype("<u8", copy=False).view("<u4").reshape(*state.shape, 2)
    draws: Draws = np.multiply(halves.transpose(0, 3, 1, 2), 2.0**-32, order="C")
    return draws.reshape(4, TRIES_AT_ONCE, len(keys))
