"""Batches of pairs at FLAVA's released size, for both implementations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.data.masking import BlockMaskingConfig, block_masks

PADDED_LENGTH = 77
"""What transformers' processor pads every text to."""

MASK_ID, FIRST_WORD, NUM_WORDS = 103, 1996, 30522
"""Of bert-base-uncased: [MASK], the first whole word, and all tokens."""


@dataclass(frozen=True, slots=True)
class PairedBatch:
    """The same pairs as both sides read them.

    Attributes:
        ours: Texts end with the longest of the batch.
        theirs: Arguments of FlavaForPreTraining; texts of 77 tokens.
    """

    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]


def make_batch(size: int, *, image_size: int = 224, patch_size: int = 16) -> PairedBatch:
    """Draw pairs: captions of 10 to 20 words in 12 to 27 tokens, block masks, every eighth swapped.

    A word is a token, or two for a third of the words; [CLS] and [SEP] are added.
    """
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(10, 21, (size,), generator=draw)
    pieces = (torch.rand(size, generator=draw) * words / 3).long()
    mask = torch.arange(int((words + pieces).max()) + 2) < (words + pieces + 2)[:, None]
    shape = mask.shape
    ids = torch.randint(FIRST_WORD, NUM_WORDS, shape, generator=draw).masked_fill(~mask, 0)
    chosen = (torch.rand(shape, generator=draw) < 0.15) & mask
    grid = image_size // patch_size
    keys = np.random.default_rng(0).integers(2**63, size=size).astype(np.uint64)
    ours = {
        "image": torch.randn(size, 3, image_size, image_size, generator=draw),
        "codebook_image": 0.1 + 0.8 * torch.rand(size, 3, 8 * grid, 8 * grid, generator=draw),
        "hidden_patches": torch.from_numpy(block_masks(keys, grid, BlockMaskingConfig())),
        "token_ids": ids,
        "mlm_token_ids": ids.masked_fill(chosen, MASK_ID),
        "mlm_labels": ids.masked_fill(~chosen, -100),
        "text_mask": mask,
        "itm_labels": (torch.arange(size) % 8 != 7).long(),
    }
    return PairedBatch(ours, _theirs(ours))


def _theirs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    def padded(name: str, value: int) -> Tensor:
        tensor = batch[name].long()
        return F.pad(tensor, (0, PADDED_LENGTH - tensor.shape[1]), value=value)

    return {
        "pixel_values": batch["image"],
        "codebook_pixel_values": batch["codebook_image"],
        "bool_masked_pos": batch["hidden_patches"],
        "input_ids": padded("token_ids", 0),
        "input_ids_masked": padded("mlm_token_ids", 0),
        "attention_mask": padded("text_mask", 0),
        "mlm_labels": padded("mlm_labels", -100),
        "itm_labels": batch["itm_labels"],
    }
