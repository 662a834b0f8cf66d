"""A small model with its words, and plain loops that the tasks are compared with."""

import torch

from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig
from triptych.text import Tokenizer

WORDS = ["red blue star circle", "a red star", "is it a picture of what ?"]
IMAGE_SIZE = 16


def tiny_tokenizer():
    return Tokenizer.train(WORDS, vocab_size=90, num_unused=2)


def tiny_config(vocab_size, *, dropout=0.0, memory="fused", width=16, connected=(1,), **text):
    return MPLUGConfig(
        vision=VisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            embed_dim=width,
            depth=1,
            num_heads=2,
            attention_dropout=dropout,
            position_init_std=0.7,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            embed_dim=width,
            num_heads=2,
            max_positions=16,
            dropout=dropout,
            attention_dropout=dropout,
            **{"pre_norm": True, **text},
        ),
        text_depth=1,
        fusion_depth=2,
        connected_layers=connected,
        decoder_depth=1,
        proj_dim=8,
        init_std=0.3,
        decoder_memory=memory,
    )


def tiny_model(tokenizer, *, seed=1, **sizes):
    torch.manual_seed(seed)
    return MPLUG(tiny_config(tokenizer.vocab_size, **sizes)).eval()


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


@torch.no_grad()
def plain_memory(model, image, ids):
    """Fuse one image (1, 3, S, S) with the text of these ids."""
    token_ids = torch.tensor([ids])
    text = model.encode_text(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    encoded = model.encode_image(image)
    return model.decoder_memory(encoded, model.fuse(encoded, text))


@torch.no_grad()
def plain_log_probs(model, memory, read, said):
    """Return log p of each token of `said` after `read`, reading the whole text at each step."""
    found, read = [], list(read)
    for token in said:
        states = model.decode(torch.tensor([read]), memory)
        logits = model.decoder.word_logits(states)[0, -1]
        found.append(float(torch.log_softmax(logits, 0)[token]))
        read.append(token)
    return found
