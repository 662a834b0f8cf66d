"""transformers' FlavaForPreTraining beside ours with the same weights."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import torch

from triptych.models.flava import convert
from triptych.models.flava.family import flava_full
from triptych.models.flava.model import FLAVA

SIZES = {
    "tiny": {"width": 32, "heads": 2, "depths": (2, 2, 1), "image_size": 32, "patch": 8},
    "deeper": {"width": 48, "heads": 4, "depths": (3, 2, 2), "image_size": 64, "patch": 16},
    "wider": {"width": 96, "heads": 6, "depths": (2, 3, 2), "image_size": 48, "patch": 8},
}
VOCABULARY, CODES, LENGTH = 120, 64, 20


def released_config(*, width, heads, depths, image_size, patch):
    """Return a small config of transformers."""
    from transformers import FlavaConfig

    stack = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 3 * width,
    }
    image, text, multimodal = depths
    return FlavaConfig(
        image_config={
            **stack,
            "num_hidden_layers": image,
            "image_size": image_size,
            "patch_size": patch,
            "vocab_size": CODES,
        },
        text_config={
            **stack,
            "num_hidden_layers": text,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
        },
        multimodal_config={**stack, "num_hidden_layers": multimodal},
        image_codebook_config={"hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": CODES},
        hidden_size=width,
        projection_dim=width,
    )


def released_model(config, seed=0):
    """Build transformers' model; tensors that it starts at zero are drawn too."""
    from transformers import FlavaForPreTraining

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FlavaForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
        model.flava.text_model.embeddings.word_embeddings.weight[0].zero_()
        for name, parameter in model.image_codebook.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=2 / fan_in**0.5 if name.endswith("weight") else 0.1)
    return model


def our_model(theirs, **changes):
    """Build ours with the weights of theirs."""
    foreign = theirs.state_dict()
    base = convert.config_from_folder(theirs.config.to_dict(), flava_full())
    config = dataclasses.replace(convert.config_for(foreign, base), **changes)
    model = FLAVA(config).eval()
    report = convert.import_state_dict(foreign, model)
    assert report.is_complete
    return model


def make_batch(config, seed=1, size=5):
    """Return a batch of pairs with ragged texts and one mismatch, under our names."""
    generator = torch.Generator().manual_seed(seed)
    side = config.image_config.image_size
    num_patches = (side // config.image_config.patch_size) ** 2
    codebook_side = 8 * side // config.image_config.patch_size
    ids = torch.randint(5, VOCABULARY, (size, LENGTH), generator=generator)
    lengths = torch.tensor([LENGTH, 9, 14, 6, 11])[:size]
    mask = torch.arange(LENGTH) < lengths[:, None]
    ids = ids.masked_fill(~mask, 0)
    chosen = (torch.rand(size, LENGTH, generator=generator) < 0.3) & mask
    return {
        "image": torch.randn(size, 3, side, side, generator=generator),
        "codebook_image": 0.1
        + 0.8 * torch.rand(size, 3, codebook_side, codebook_side, generator=generator),
        "hidden_patches": torch.rand(size, num_patches, generator=generator) < 0.4,
        "token_ids": ids,
        "mlm_token_ids": ids.masked_fill(chosen, 4),
        "mlm_labels": ids.masked_fill(~chosen, -100),
        "text_mask": mask,
        "itm_labels": torch.tensor([1, 0, 1, 1, 1])[:size],
    }


def of_kind(batch, kind):
    """Return what a batch of images alone, of texts alone or of pairs holds."""
    images = {"image", "codebook_image", "hidden_patches"}
    texts = {"mlm_token_ids", "mlm_labels", "text_mask"}
    names = {"pair": set(batch), "image": images, "text": texts}[kind]
    return {name: tensor for name, tensor in batch.items() if name in names}


def released_output(theirs, batch, kind):
    """Call transformers' model on a copy of a batch."""
    batch = copy.deepcopy(batch)
    arguments = {}
    if kind in ("pair", "image"):
        arguments |= {
            "pixel_values": batch["image"],
            "codebook_pixel_values": batch["codebook_image"],
            "bool_masked_pos": batch["hidden_patches"],
        }
    if kind in ("pair", "text"):
        arguments |= {
            "input_ids": batch["token_ids"],
            "input_ids_masked": batch["mlm_token_ids"],
            "attention_mask": batch["text_mask"].long(),
            "mlm_labels": batch["mlm_labels"],
        }
    if kind == "pair":
        arguments["itm_labels"] = batch["itm_labels"]
    return theirs(**arguments, return_loss=True)


THEIR_LOSSES = {
    "mim": "mim",
    "mlm": "mlm",
    "itm": "itm",
    "gc": "global_contrastive",
    "mmm_image": "mmm_image",
    "mmm_text": "mmm_text",
}
