"""Masked language modelling: which tokens are hidden, and by what (BERT, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    """Choose tokens to predict and hide them: 80 % [MASK], 10 % a random token, 10 % unchanged.

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
        The ids with chosen tokens hidden, and labels: the true id where chosen, else -100.
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
