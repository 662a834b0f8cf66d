"""A small FLAVA and batches for it; processes of a test import this module."""

import dataclasses

import torch

from triptych.models.flava.config import FLAVAConfig, FLAVAFusionConfig, FLAVAVisionConfig
from triptych.models.flava.model import FLAVA
from triptych.nn.encoder import TextConfig
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

WORDS, CODES, PATCHES, LENGTH = 30, 11, 9, 8


def small_config(**changes):
    """Return a config of three widths, without a codebook."""
    config = FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
        ),
        text=TextConfig(
            vocab_size=WORDS,
            embed_dim=24,
            num_heads=2,
            mlp_ratio=2.0,
            max_positions=16,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=2,
        fusion=FLAVAFusionConfig(embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0),
        proj_dim=12,
        num_codes=CODES,
        init_std=0.15,
    )
    return dataclasses.replace(config, **changes)


def make_task(model=None, **settings):
    """Build the task with reproducible weights."""
    if model is None:
        torch.manual_seed(0)
        model = FLAVA(small_config())
    return FLAVAPretraining(model, FLAVAPretrainingConfig(**settings))


def make_pairs(size=6, seed=1, itm_labels=(1, 0, 1, 1, 0, 1)):
    """Return pairs with ragged texts, some of them mismatched."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([LENGTH, 4, 6, 3, 7, 5, 2, 8])[:size]
    mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(5, WORDS, (size, LENGTH), generator=generator).masked_fill(~mask, 0)
    chosen = (torch.rand(size, LENGTH, generator=generator) < 0.4) & mask
    return {
        "image": torch.randn(size, 3, 12, 12, generator=generator),
        "hidden_patches": torch.rand(size, PATCHES, generator=generator) < 0.4,
        "image_codes": torch.randint(0, CODES, (size, PATCHES), generator=generator),
        "token_ids": ids,
        "mlm_token_ids": ids.masked_fill(chosen, 4),
        "mlm_labels": ids.masked_fill(~chosen, -100),
        "text_mask": mask,
        "itm_labels": torch.tensor(itm_labels)[:size],
        "index": torch.arange(size),
    }


def of_kind(batch, kind):
    """Return what a batch of images alone, of texts alone or of pairs holds."""
    images = {"image", "image_codes", "codebook_image", "hidden_patches", "index"}
    texts = {"mlm_token_ids", "mlm_labels", "text_mask", "index"}
    names = {"pair": set(batch), "image": images, "text": texts}[kind]
    return {name: tensor for name, tensor in batch.items() if name in names}


def gradients(task, losses):
    """Return every parameter's gradient of the sum, zeros where there is none."""
    named = dict(task.modules.named_parameters())
    found = torch.autograd.grad(sum(losses.values()), named.values(), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }
