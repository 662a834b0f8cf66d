"""A pre-training batch with captions as long as Conceptual Captions' are."""

from __future__ import annotations

import torch
from torch import Tensor

CLS_ID, SEP_ID, MASK_ID = 101, 102, 103
FIRST_WORD_ID, VOCAB_SIZE = 1996, 30522
MIN_TOKENS, MAX_TOKENS = 5, 30
MEAN_WORDS, STD_WORDS, TOKENS_PER_WORD = 10.3, 4.5, 1.15
"""Words of a CC3M caption (Changpinyo et al. 2021, table 1), and WordPiece's pieces of a word."""


def caption_lengths(count: int, generator: torch.Generator) -> list[int]:
    """Draw lengths in tokens, [CLS] and [SEP] counted, from 5 to 30."""
    words = MEAN_WORDS + STD_WORDS * torch.randn(count, generator=generator)
    tokens = (TOKENS_PER_WORD * words).round().long() + 2
    return [int(n) for n in tokens.clamp(MIN_TOKENS, MAX_TOKENS)]


def make_batch(size: int, image_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random pixels and words with all keys that mPLUG's pre-training reads.

    15 % of the words are masked, and each caption is split before a word drawn uniformly.

    Args:
        size: Pairs.
        image_size: Side of the images in pixels.
        generator: Decides everything.
    """
    captions, masked, labels, prefixes, targets = [], [], [], [], []
    for length in caption_lengths(size, generator):
        words = torch.randint(FIRST_WORD_ID, VOCAB_SIZE, (length - 2,), generator=generator)
        caption = torch.cat([torch.tensor([CLS_ID]), words, torch.tensor([SEP_ID])])
        chosen = torch.randperm(len(words), generator=generator)[: max(1, round(0.15 * len(words)))]
        label = torch.full_like(caption, -100)
        label[chosen + 1] = words[chosen]
        cut = 1 + int(torch.randint(len(words), (), generator=generator))
        captions.append(caption)
        masked.append(caption.masked_fill(label >= 0, MASK_ID))
        labels.append(label)
        prefixes.append(caption[:cut])
        targets.append(torch.cat([caption[:1], caption[cut:]]))
    batch = {"image": torch.randn(size, 3, image_size, image_size, generator=generator)}
    for name, texts in (("", captions), ("prefix_", prefixes), ("target_", targets)):
        batch[f"{name}token_ids"] = _pad(texts, 0)
        lengths = torch.tensor([len(text) for text in texts])
        positions = torch.arange(int(lengths.max()))
        batch["text_mask" if name == "" else f"{name}mask"] = positions < lengths[:, None]
    batch |= {"mlm_token_ids": _pad(masked, 0), "mlm_labels": _pad(labels, -100)}
    numbers = torch.arange(size)
    return batch | {"image_key": numbers, "caption_key": numbers, "index": numbers}


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
