"""Block masks of a whole batch against loops over its images: the figure `masking_speedup`.

`masking_speedup` is over the loop of transformers' FLAVA image processor, a mask at a time, which
FLAVA's data loaders run (`pip install triptych[bench]`). `speedup_over_plain_loop` is over a lean
loop in Python and NumPy of the same rules, below. The three are called in turn in one process; a
figure is the median over rounds of the ratio of the processor time of neighbouring runs. Prints
JSON.

    python -m benchmarks.speed.masking
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from triptych.data.masking import BlockMaskingConfig, block_masks

GRID, TARGET, LEAST, ASPECT, TRIES = 14, 75, 16, 0.3, 10


def loop_mask(draw: random.Random) -> NDArray[np.bool_]:
    """Hide blocks of one image's 14 x 14 patches, one block and one patch at a time."""
    mask = np.zeros((GRID, GRID), dtype=np.bool_)
    hidden = 0
    while hidden < TARGET:
        added = _loop_block(mask, TARGET - hidden, draw)
        if added == 0:
            break
        hidden += added
    return mask


def _loop_block(mask: NDArray[np.bool_], todo: int, draw: random.Random) -> int:
    """Try to add a block to a mask, and return how many patches it newly hides."""
    for _ in range(TRIES):
        area = draw.uniform(LEAST, todo)
        aspect = math.exp(draw.uniform(math.log(ASPECT), math.log(1 / ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= GRID or width >= GRID:
            continue
        top, left = draw.randint(0, GRID - height), draw.randint(0, GRID - width)
        num_new = height * width - mask[top : top + height, left : left + width].sum()
        if 0 < num_new <= todo:
            for row in range(top, top + height):
                for column in range(left, left + width):
                    if not mask[row, column]:
                        mask[row, column] = True
            return int(num_new)
    return 0


def measure(batch_size: int = 256, rounds: int = 15) -> dict[str, float]:
    """Return `masking_speedup` and what it is made of.

    Args:
        batch_size: Images in a batch.
        rounds: Runs of each of the three.
    """
    from transformers.models.flava.image_processing_pil_flava import FlavaMaskingGenerator

    config, draw, rng = BlockMaskingConfig(), random.Random(0), np.random.default_rng(0)
    released = FlavaMaskingGenerator()
    runs: dict[str, Callable[[], object]] = {
        "released": lambda: [released() for _ in range(batch_size)],
        "plain": lambda: [loop_mask(draw) for _ in range(batch_size)],
        "batch": lambda: block_masks(
            rng.integers(2**64, size=batch_size, dtype=np.uint64), GRID, config
        ),
    }
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:  # the first warms up
                spent[name].append(time.process_time() - start)
    figures = {
        "masking_speedup": round(_median_ratio(spent["released"], spent["batch"]), 1),
        "speedup_over_plain_loop": round(_median_ratio(spent["plain"], spent["batch"]), 1),
    }
    times = {f"{name}_ms": round(1000 * statistics.median(s), 2) for name, s in spent.items()}
    return {**figures, **times, "batch_size": batch_size}


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(json.dumps(measure(options.batch_size, options.rounds)))


if __name__ == "__main__":
    main()
