"""Contests with BLIP-base of transformers: captions, and matching of many texts an image."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Ways, Work
from benchmarks.speed.mplug_batch import caption_lengths
from triptych.core.machine import cpu_has_bf16
from triptych.generation.decoding import SlotDecoder, slots_for
from triptych.generation.search import BeamConfig, beam_search
from triptych.models.base import match_pairs, num_parameters
from triptych.models.mplug.family import mplug_base_patch16_256
from triptych.models.mplug.model import MPLUG
from triptych.nn.init import init_weights
from triptych.nn.prepacked import round_linear_weights
from triptych.tasks.finetuning.base import fused_memory
from triptych.tasks.finetuning.text_generator import encode_in_parts
from triptych.train.precision import autocast

CPU = torch.device("cpu")
CLS_ID, SEP_ID = 101, 102
NUM_TOKENS = 20
TEXTS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of both sides.

    Attributes:
        depth: Layers of the image encoder and of the decoder or BLIP's text encoder; mPLUG's text
            encoder and fusion network have half as many each.
        width: Of their states; a head has 64.
        image_size: In pixels, in patches of 16.
        vocab_size: Tokens.
    """

    depth: int = 12
    width: int = 768
    image_size: int = 256
    vocab_size: int = 30522


def mplug(sizes: Sizes) -> MPLUG:
    """Return mPLUG-base with random weights."""
    config = mplug_base_patch16_256(image_size=sizes.image_size, vocab_size=sizes.vocab_size)
    heads, half = sizes.width // 64, sizes.depth // 2
    text = replace(config.text, embed_dim=sizes.width, num_heads=heads)
    vision = replace(config.vision, embed_dim=sizes.width, num_heads=heads, depth=sizes.depth)
    config = replace(config, text=text, vision=vision, decoder_depth=sizes.depth, text_depth=half)
    if half != config.fusion_depth:
        config = replace(config, fusion_depth=half, connected_layers=(half - 1,))
    torch.manual_seed(0)
    model = MPLUG(config).eval().requires_grad_(False)
    init_weights(model.decoder, 0.05)
    return model


def blip(kind: str, sizes: Sizes) -> nn.Module:
    """Return a model of transformers with random weights: the released base sizes."""
    import transformers

    heads = sizes.width // 64
    shared = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * sizes.width,
    }
    tokens = {"bos_token_id": sizes.vocab_size, "sep_token_id": SEP_ID, "pad_token_id": 0}
    text = {"vocab_size": sizes.vocab_size + 2, "encoder_hidden_size": sizes.width}
    config = transformers.BlipConfig(
        vision_config={**shared, "image_size": sizes.image_size, "patch_size": 16},
        text_config={**shared, **text, **tokens},
        image_text_hidden_size=256,
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = getattr(transformers, kind)(config)
    return model.eval().requires_grad_(False)


def loaded(model: MPLUG) -> dict[str, MPLUG]:
    """Return a model as `triptych.load` returns it in fp32 and, where it is of use, in bf16."""
    found = {"fp32": model}
    if cpu_has_bf16():
        found["bf16"] = copy.deepcopy(model)
        round_linear_weights(found["bf16"], torch.bfloat16)
    return found


def in_precisions(run: Callable[[str], object]) -> Ways:
    """Return ways in fp32 and, where the processor has instructions for it, in bf16."""
    names = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    return {name: _inferring(run, name) for name in names}


def _inferring(run: Callable[[str], object], precision: str) -> Callable[[], object]:
    def way() -> object:
        with torch.inference_mode():
            return run(precision)

    return way


def captions(batch_size: int, sizes: Sizes | None = None) -> Work:
    """Return captions of a batch of images, 5 beams, 20 tokens each."""
    sizes = sizes or Sizes()
    ours, theirs = loaded(mplug(sizes)), _both(blip("BlipForConditionalGeneration", sizes))
    images = torch.randn(batch_size, 3, sizes.image_size, sizes.image_size)
    config = BeamConfig(num_beams=5, min_tokens=NUM_TOKENS - 1, max_tokens=NUM_TOKENS)

    def search(precision: str) -> int:
        model = ours[precision]

        def memory(part: Any) -> Any:
            ids = torch.full((len(part["image"]), 1), CLS_ID)
            return fused_memory(model, part["image"], ids, torch.ones_like(ids, dtype=torch.bool))

        with autocast(CPU, precision):
            memories = encode_in_parts(memory, {"image": images}, ("image",))
            step = SlotDecoder(model.decoder, memories, slots_for(config.num_beams, CPU))
            found = beam_search(step, start_id=CLS_ID, end_id=SEP_ID, config=config)
        return min(len(texts[0].token_ids) for texts in found)

    def generate(precision: str) -> int:
        model = theirs[precision]
        pixels = images.to(next(model.parameters()).dtype)
        found: Tensor = model.generate(  # type: ignore[operator]
            pixel_values=pixels, num_beams=5, min_new_tokens=NUM_TOKENS, max_new_tokens=NUM_TOKENS
        )
        return found.shape[1] - 1

    shortest = {"ours": search("fp32"), "peer": generate("fp32")}
    assert shortest["ours"] >= NUM_TOKENS - 1 and shortest["peer"] >= NUM_TOKENS, shortest
    parameters = {"ours": num_parameters(ours["fp32"]), "peer": num_parameters(theirs["fp32"])}
    facts = {"images": batch_size, "tokens": NUM_TOKENS, "parameters": parameters}
    return Work(in_precisions(search), in_precisions(generate), facts)


def captions_1() -> Work:
    """One image."""
    return captions(1)


def captions_8() -> Work:
    """Eight images."""
    return captions(8)


def captions_16() -> Work:
    """Sixteen images."""
    return captions(16)


def matching(sizes: Sizes | None = None) -> Work:
    """Return ITM scores of 64 texts of one image, whose encoder counts too."""
    sizes = sizes or Sizes()
    ours, theirs = loaded(mplug(sizes)), _both(blip("BlipForImageTextRetrieval", sizes))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(caption_lengths(TEXTS, generator))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, sizes.vocab_size, mask.shape, generator=generator) * mask
    image = torch.randn(1, 3, sizes.image_size, sizes.image_size, generator=generator)
    pairs = torch.zeros(TEXTS, dtype=torch.int64)

    def match(precision: str) -> Tensor:
        model = ours[precision]
        with autocast(CPU, precision):
            encoded = model.encode_image(image), model.encode_text(ids, mask)
            return match_pairs(model, *encoded, pairs)

    def score(precision: str) -> Tensor:
        model: Any = theirs[precision]
        pixels = image.to(next(model.parameters()).dtype)
        states = model.vision_model(pixel_values=pixels).last_hidden_state.expand(TEXTS, -1, -1)
        found = model.text_encoder(
            input_ids=ids,
            attention_mask=mask.long(),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.int64),
        )
        scores: Tensor = model.itm_head(found.last_hidden_state[:, 0])
        return scores

    with torch.inference_mode():
        assert match("fp32").shape == score("fp32").shape == (TEXTS, 2)
    facts = {"texts": TEXTS, "mean_tokens": round(float(lengths.float().mean()), 1)}
    return Work(in_precisions(match), in_precisions(score), facts)


def _both(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model in fp32 and, where it is of use, in bf16."""
    found = {"fp32": model}
    if cpu_has_bf16():
        found["bf16"] = copy.deepcopy(model).to(torch.bfloat16)
    return found
