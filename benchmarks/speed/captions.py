"""Captions of many images: together, in slots that are refilled, over one by one; prints JSON.

mPLUG-base with random weights describes 32 images with 5 beams and 20 tokens, in fp32 and, on a
processor that has instructions for it, in bf16:

- one by one: one call an image;
- together: one call, in which images are encoded eight at a time and decoded in slots, each of
  which the next image takes when its text is done;
- static: as many images a call as there are slots, each call until its longest text is done.

Random weights never end a text, so that all have 20 tokens there. `varied` repeats this with texts
that end after 4 to 20 tokens, drawn for each image, in the precision that `auto` chooses; there,
slots that are refilled matter. In fp32, texts must be the same in all ways, token by token; in
bf16, where the encoders round otherwise in batches, the share of equal texts is told. A model that
was loaded in bf16 keeps weights that were rounded once: `kept_over_rounded` compares this with
autocast alone, which rounds them at every use, on 4 images one by one. With `--model`, a trained
model describes real images in place of all that.

    python -m benchmarks.speed.captions
    python -m benchmarks.speed.captions --model runs/demo/pretrain/model --files scenes/*.jpg
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.mplug_timing import (
    CLOCKS,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from benchmarks.speed.peers_blip import CLS_ID, SEP_ID, Sizes, loaded, mplug
from benchmarks.speed.plain import without_shortcuts
from triptych.core.processes import keep_freed_memory
from triptych.generation.decoding import SlotDecoder, slots_for
from triptych.generation.search import BeamConfig, beam_search
from triptych.models.mplug.model import MPLUG
from triptych.nn.decoder import DecoderMemory, TextDecoder
from triptych.tasks.finetuning.base import fused_memory
from triptych.tasks.finetuning.text_generator import encode_in_parts
from triptych.train.precision import autocast, resolve_precision

CPU = torch.device("cpu")
NUM_BEAMS, MAX_TOKENS, SHORTEST = 5, 20, 4
FEW = 4
Texts = list[tuple[int, ...]]


class EndingDecoder(SlotDecoder):
    """A decoder whose texts end after a number of tokens that was drawn for each image."""

    def __init__(
        self, decoder: TextDecoder, memories: Any, num_slots: int, lengths: Sequence[int]
    ) -> None:
        super().__init__(decoder, memories, num_slots)
        self._lengths = list(lengths[: self.batch_size])
        self._waiting_lengths = iter(lengths[self.batch_size :])

    def logits(self, token_ids: Tensor) -> Tensor:
        """Make the end certain where it is due; the start token was read too."""
        logits = super().logits(token_ids)
        for slot, (read, length) in enumerate(zip(self.cache.lengths, self._lengths, strict=True)):
            if read > length:
                logits[slot, :, SEP_ID] = 1e4
        return logits

    def keep(self, images: Sequence[int]) -> None:
        """Drop all images but these."""
        super().keep(images)
        self._lengths = [self._lengths[image] for image in images]

    def refill(self, image: int) -> bool:
        """Give an image's place to the next one that waits."""
        is_filled = super().refill(image)
        if is_filled:
            self._lengths[image] = next(self._waiting_lengths)
        return is_filled


class Captioner:
    """A model, the images that it describes, and how long their texts are."""

    def __init__(self, model: MPLUG, images: Tensor, lengths: Sequence[int]) -> None:
        self.model, self.images, self.lengths = model, images, lengths
        self.config = BeamConfig(
            num_beams=NUM_BEAMS, min_tokens=min(lengths) - 1, max_tokens=MAX_TOKENS
        )
        self.slots = slots_for(NUM_BEAMS, CPU)

    @torch.inference_mode()
    def describe(self, precision: str, images_per_call: int, count: int | None = None) -> Texts:
        """Return the best text of each image, some images a call."""
        found: Texts = []
        for images in self.images[:count].split(images_per_call):  # type: ignore[no-untyped-call]
            lengths = self.lengths[len(found) : len(found) + len(images)]
            with autocast(CPU, precision):
                memories = encode_in_parts(self._memory, {"image": images}, ("image",))
                step = EndingDecoder(self.model.decoder, memories, self.slots, lengths)
                texts = beam_search(step, start_id=CLS_ID, end_id=SEP_ID, config=self.config)
            found += [hypotheses[0].token_ids for hypotheses in texts]
        return found

    def _memory(self, batch: Any) -> DecoderMemory:
        ids = torch.full((len(batch["image"]), 1), CLS_ID)
        return fused_memory(self.model, batch["image"], ids, torch.ones_like(ids).bool())


def compare(captioner: Captioner, precision: str, rounds: int, clock: str) -> dict[str, Any]:
    """Time the three ways in turn."""
    count = len(captioner.images)
    sizes = {"one_by_one": 1, "static": captioner.slots, "together": count}
    texts = {name: captioner.describe(precision, size) for name, size in sizes.items()}
    equal = sum(a == b for a, b in zip(texts["one_by_one"], texts["together"], strict=True))
    if precision == "fp32":
        assert texts["one_by_one"] == texts["static"] == texts["together"]
    ways: dict[str, Callable[[], object]] = {
        name: (lambda size=size: captioner.describe(precision, size))
        for name, size in sizes.items()
    }
    seconds = time_in_turn(ways, rounds, CLOCKS[clock], warm=False)
    lengths = [len(text) for text in texts["together"]]
    return {
        "together_over_one_by_one": speedup(seconds, "one_by_one", "together"),
        "range": ratio_range(seconds, "one_by_one", "together"),
        "together_over_static": speedup(seconds, "static", "together"),
        "ms_per_image": {name: round(ms / count, 1) for name, ms in median_ms(seconds).items()},
        "equal_texts": f"{equal} of {count}",
        "tokens": {"mean": round(sum(lengths) / count, 1), "range": [min(lengths), max(lengths)]},
    }


def kept_over_rounded(kept: Captioner, exact: Captioner, rounds: int, clock: str) -> float:
    """Compare a model with bf16 weights to one in fp32 that autocast alone rounds, one by one."""

    def rounded() -> None:
        with without_shortcuts():
            exact.describe("bf16", 1, FEW)

    ways = {"kept": lambda: kept.describe("bf16", 1, FEW), "rounded": rounded}
    return speedup(time_in_turn(ways, rounds, CLOCKS[clock], warm=False), "rounded", "kept")


def on_random_weights(num_images: int, rounds: int, clock: str) -> dict[str, Any]:
    """Return all figures of mPLUG-base with random weights."""
    sizes = Sizes()
    images = torch.randn(num_images, 3, sizes.image_size, sizes.image_size)
    models = loaded(mplug(sizes))
    captioners = {
        precision: Captioner(model, images, [MAX_TOKENS] * num_images)
        for precision, model in models.items()
    }
    found: dict[str, Any] = {
        precision: compare(captioner, precision, rounds, clock)
        for precision, captioner in captioners.items()
    }
    if "bf16" in found:
        found["kept_over_rounded"] = kept_over_rounded(
            captioners["bf16"], captioners["fp32"], rounds, clock
        )
        ms = {name: found[name]["ms_per_image"] for name in ("fp32", "bf16")}
        found["bf16_over_fp32"] = {
            way: round(ms["fp32"][way] / ms["bf16"][way], 2) for way in ms["fp32"]
        }
    auto = resolve_precision("auto", CPU)
    figure = found[auto]["together_over_one_by_one"]
    lengths = torch.randint(SHORTEST, MAX_TOKENS + 1, (num_images,)).tolist()
    varied = Captioner(models[auto], images, lengths)
    return {
        "captions_per_s_batched_over_one_by_one": figure,
        **found,
        "varied": {"precision": auto} | compare(varied, auto, rounds, clock),
        "images": num_images,
    }


def on_files(folder: str, files: Sequence[str], rounds: int, clock: str) -> dict[str, Any]:
    """Return the figure of a trained model on real images, as `load(folder).caption` says them."""
    import triptych

    engine = triptych.load(folder, device="cpu")
    images = [engine.prepare(path) for path in files]
    ways: dict[str, Callable[[], object]] = {
        "one_by_one": lambda: [engine.caption(image) for image in images],
        "together": lambda: engine.caption(images),
    }
    texts = {name: way() for name, way in ways.items()}
    seconds = time_in_turn(ways, rounds, CLOCKS[clock], warm=False)
    pairs = list(zip(texts["one_by_one"], texts["together"], strict=True))  # type: ignore[call-overload]
    return {
        "together_over_one_by_one": speedup(seconds, "one_by_one", "together"),
        "range": ratio_range(seconds, "one_by_one", "together"),
        "ms_per_image": {n: round(ms / len(files), 1) for n, ms in median_ms(seconds).items()},
        "equal_texts": f"{sum(one == other for one, other in pairs)} of {len(files)}",
        "precision": engine.precision,
        "images": len(files),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=2)
    parser.add_argument("--images", type=int, default=32, help="with random weights")
    parser.add_argument("--model", help="folder of a trained model")
    parser.add_argument("--files", nargs="+", help="images for it")
    options = start(parser, arguments)
    keep_freed_memory()
    if options.model:
        found = on_files(options.model, options.files, options.rounds, options.clock)
    else:
        found = on_random_weights(options.images, options.rounds, options.clock)
    print(json.dumps(found | run_facts(options)))


if __name__ == "__main__":
    main()
