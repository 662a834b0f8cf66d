"""Beam search at base size with caches over the released way without; prints JSON.

Both run the same search on the same random weights: one image of 257 image and 16 text tokens,
5 beams (or `--beams`), 20 tokens. Without caches, each step reads the whole text of each beam again
and projects the memory, copied for each beam, again in each layer, as the released code does. One
search with caches comes first and is not timed: like a model in use, the decoder is prepacked from
then on.

    python -m benchmarks.speed.beam --pairs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.generation.decoding import CachedDecoder, DecodeStep
from triptych.generation.search import BeamConfig, Hypothesis, beam_search
from triptych.models.families import model_config
from triptych.nn.decoder import TextDecoder
from triptych.nn.init import init_weights

MEMORY_TOKENS = 257 + 16
CLS_ID, SEP_ID = 101, 102


class UncachedDecoder:
    """`DecodeStep` that remembers nothing but the tokens."""

    def __init__(self, decoder: TextDecoder, memory: Tensor) -> None:
        self.decoder, self.memory = decoder, memory
        self.batch_size, self.max_steps = len(memory), decoder.config.max_positions
        self.texts = torch.zeros(len(memory), 0, dtype=torch.int64)

    def logits(self, token_ids: Tensor) -> Tensor:
        """Read everything again; score the word after the newest token."""
        beams = token_ids.shape[1]
        self.texts = torch.cat([self.texts, token_ids.reshape(-1, 1)], dim=1)
        tiled = self.memory.repeat_interleave(beams, dim=0)
        states = self.decoder(self.texts, self.decoder.project_memory(tiled, None))
        return self.decoder.word_logits(states[:, -1]).reshape(self.batch_size, beams, -1)

    def reorder(self, rows: Tensor) -> None:
        """Keep the texts at `rows`."""
        self.texts = self.texts[rows]

    def keep(self, images: Sequence[int]) -> None:
        """Keep the texts of some images."""
        rows = self.texts.unflatten(0, (len(self.memory), -1))  # type: ignore[no-untyped-call]
        self.texts, self.memory = rows[images].flatten(0, 1), self.memory[images]

    def refill(self, image: int) -> bool:
        """No image waits."""
        del image
        return False


def search(
    decoder: TextDecoder, memory: Tensor, *, cached: bool, num_beams: int = 5
) -> tuple[float, list[Hypothesis]]:
    """Return the seconds of one search and its n-best list."""
    config = BeamConfig(num_beams=num_beams, min_tokens=19, max_tokens=20)
    start = time.perf_counter()
    step: DecodeStep = (
        CachedDecoder(decoder, decoder.project_memory(memory, None))
        if cached
        else UncachedDecoder(decoder, memory)
    )
    found = beam_search(step, start_id=CLS_ID, end_id=SEP_ID, config=config)[0]
    return time.perf_counter() - start, found


def check_same(first: list[Hypothesis], second: list[Hypothesis]) -> None:
    """Fail unless both lists hold the same texts with the same scores."""
    assert [h.token_ids for h in first] == [h.token_ids for h in second]
    for one, other in zip(first, second, strict=True):
        assert abs(one.score - other.score) < 1e-3, (one.score, other.score)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="paired runs; their median counts")
    parser.add_argument("--beams", type=int, default=5, help="beams of the search")
    parser.add_argument("--num-threads", type=int, default=None, help="of torch; all cores")
    arguments = parser.parse_args()
    pairs, beams = arguments.pairs, arguments.beams
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(0)
    config = model_config("mplug_base_patch16_256")
    decoder = TextDecoder(config.text, config.decoder_depth).eval()
    init_weights(decoder, 0.05)
    memory = torch.randn(1, MEMORY_TOKENS, config.text.embed_dim)
    search(decoder, memory, cached=True, num_beams=beams)
    with_cache, without = [], []
    for _ in range(pairs):
        slow, slow_texts = search(decoder, memory, cached=False, num_beams=beams)
        fast, fast_texts = search(decoder, memory, cached=True, num_beams=beams)
        check_same(slow_texts, fast_texts)
        without.append(slow)
        with_cache.append(fast)
    ratios = [slow / fast for slow, fast in zip(without, with_cache, strict=True)]
    print(
        json.dumps(
            {
                "beam_cache_speedup": round(statistics.median(ratios), 2),
                "cached_s": round(statistics.median(with_cache), 3),
                "uncached_s": round(statistics.median(without), 3),
                "num_beams": beams,
                "num_threads": torch.get_num_threads(),
                "pairs": pairs,
            }
        )
    )


if __name__ == "__main__":
    main()
