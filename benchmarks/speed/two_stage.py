"""Two-stage retrieval of 1,000 scenes and their captions over the plain loop; prints JSON.

Both sides take the demo's model, the same states and similarities, and re-rank the first 64 of each
query in both directions. The plain loop does what ALBEF's and mPLUG's released code do: image by
image and then caption by caption, it fuses the query with its 64 candidates, copies the image's
states for each pair, and computes texts padded to 30 tokens. The fast side is what `triptych eval`
calls: each pair is scored once for both directions, what depends on the image alone is computed
once for all its texts, and no padding is computed. fp32 on both sides; the scores are compared.

    python -m benchmarks.speed.two_stage --start runs/demo/pretrain/model
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.mplug_timing import (
    CLOCKS,
    build_parser,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from benchmarks.speed.plain import without_shortcuts
from triptych.core.outputs import TextFeatures
from triptych.data.manifest import read_records
from triptych.data.skips import SkipLog
from triptych.evaluation import retrieval
from triptych.evaluation.evaluator import evaluation_mode
from triptych.scenes.write import write_scenes
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.finetuning.retrieval import EncodedSet, score_pairs
from triptych.workflows.scene_data import format_source
from triptych.workflows.search import encode_records

TOP_K = 64
MAX_TOKENS = 30  # the released code pads captions to this length
PAIRS_AT_ONCE = 1 << 20


def encode_scenes(loaded: LoadedModel, number: int) -> EncodedSet:
    """Return the states of new scenes, one caption each."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_scenes(
            Path(folder), 8, num_test=number, formats=("captions",), captions_per_image=1
        )
        records = read_records(format_source(files, "captions", "test")).records
        log = SkipLog(None, len(records), 0.0)
        return encode_records(loaded, records, 64, log, loaded.device).encoded


def padded(text: TextFeatures) -> TextFeatures:
    """Return texts at the released length."""
    more = MAX_TOKENS - text.mask.shape[1]
    return TextFeatures(F.pad(text.tokens, (0, 0, 0, more)), F.pad(text.mask, (0, more)))


def plain_loop(
    loaded: LoadedModel, encoded: EncodedSet, lists: tuple[retrieval.Shortlist, ...]
) -> list[Tensor]:
    """Score both directions query by query, every pair with all its padding."""
    text = padded(encoded.text)
    found = []
    with without_shortcuts():
        for direction, first in enumerate(lists):
            rows = []
            for query, candidates in enumerate(first.candidates):
                fixed = torch.full_like(candidates, query)
                images, texts = (fixed, candidates) if direction == 0 else (candidates, fixed)
                fused = loaded.model.fuse(encoded.image.select(images), text.select(texts))
                logits = loaded.model.match_logits(fused)
                rows.append(logits[:, 1] - logits[:, 0])
            found.append(torch.stack(rows))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=3)
    parser.add_argument("--start", type=Path, default=Path("runs/demo/pretrain/model"))
    parser.add_argument("--scenes", type=int, default=1000, help="images, one caption each")
    options = start(parser, arguments)
    loaded = load_model(options.start, precision="fp32")
    with evaluation_mode(loaded.model), torch.inference_mode():
        encoded = encode_scenes(loaded, options.scenes)
        lists = (
            retrieval.shortlist(encoded.image_embedding, encoded.text_embedding, TOP_K),
            retrieval.shortlist(encoded.text_embedding, encoded.image_embedding, TOP_K),
        )
        asked: list[int] = []

        def score(images: Tensor, texts: Tensor) -> Tensor:
            asked.append(len(images))
            return score_pairs(loaded.model, encoded, torch.stack([images, texts], dim=1))

        def fast() -> list[Tensor]:
            ranked = retrieval.rerank(*lists, score, pairs_at_once=PAIRS_AT_ONCE)
            return [listed.scores for listed in ranked]

        def plain() -> list[Tensor]:
            return plain_loop(loaded, encoded, lists)

        pairs = zip(fast(), plain(), strict=True)
        gap = max(float((one - other).abs().max()) for one, other in pairs)
        scored = sum(asked)
        seconds = time_in_turn(
            {"plain": plain, "fast": fast}, options.rounds, CLOCKS[options.clock]
        )
    assert gap < 1e-4, gap
    print(
        json.dumps(
            {
                "two_stage_over_plain": speedup(seconds, "plain", "fast"),
                "range": ratio_range(seconds, "plain", "fast"),
                "largest_gap": float(f"{gap:.1g}"),
                "pairs_scored": scored,
                "pairs_listed": 2 * TOP_K * options.scenes,
                "protocol": (
                    f"{options.scenes:,} x {options.scenes:,} scenes and captions, k = {TOP_K}, "
                    "the demo's model, fp32"
                ),
            }
            | run_facts(options)
        )
    )


if __name__ == "__main__":
    main()
