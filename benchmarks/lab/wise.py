r"""What the line between a model and its fine-tuned one regains; prints JSON.

The models between (WiSE-FT) are scored on the task of the fine-tuning and on retrieval, on one
split. The best by retrieval among those that lose at most a point on the task is chosen, and
compared with both ends on another split, which the choice has not seen. `wise_gain` is yes if it is
within one point of the fine-tuned model there and regains at least half of the retrieval (image to
text, R@1) that fine-tuning lost. A point is 0.01 of the task's first metric: VQA accuracy, or
BLEU-1 of captions.

The stored result is of captions, after `triptych demo --scale tiny` has written runs/demo:

    triptych train mplug.caption --init-from runs/demo/pretrain/model \
        --data runs/demo/data/captions/dataset_scenes.json --reader karpathy --split train \
        --image-root runs/demo/data/images --train.max-steps 400 --out runs/lab_caption
    python -m benchmarks.lab.wise --model runs/demo/pretrain/model \
        --tuned runs/lab_caption/model --data runs/demo/data --limit 400 --choose compositional
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.scenes.layout import SceneFiles
from triptych.workflows.interpolate import (
    ALPHAS,
    HeldOut,
    Point,
    choose,
    open_line,
    own_task,
    sweep,
)
from triptych.workflows.scene_data import scene_source

TOLERANCE = 0.01


def held_out(data: Path, task: str, split: str, limit: int | None) -> tuple[HeldOut, HeldOut]:
    """Return a task's data and the pairs of a split."""
    files = SceneFiles(data)
    own = HeldOut(task=task, source=scene_source(files, task, split), limit=limit)
    return own, HeldOut(task="retrieval", source=scene_source(files, "caption", split))


def plain(point: Point) -> dict[str, float]:
    assert point.guard is not None
    return {"alpha": point.alpha, "own": point.own.value, "guard": point.guard.value}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    line = open_line(options.model, options.tuned)
    task, limit = own_task(line.last), options.limit
    curve = sweep(line, *held_out(options.data, task, options.choose, limit), alphas=ALPHAS)
    chosen = choose(curve, TOLERANCE)
    test = held_out(options.data, task, "test", limit)
    before, kept, after = (plain(p) for p in sweep(line, *test, alphas=(0.0, chosen.alpha, 1.0)))
    lost = before["guard"] - after["guard"]
    regained = (kept["guard"] - after["guard"]) / lost if lost > 0 else float("nan")
    return {
        "wise_gain": {
            "value": kept["own"] >= after["own"] - TOLERANCE and regained >= 0.5,
            "regained": round(regained, 4),
            "own_change": round(kept["own"] - after["own"], 4),
            "test": {"before": before, "chosen": kept, "after": after},
            "curve": [plain(point) for point in curve],
            "protocol": f"alpha chosen on split {options.choose} ({curve[0].own.num_items} items, "
            f"{curve[0].own.name}), numbers on split test",
        }
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the model before")
    parser.add_argument("--tuned", type=Path, required=True, help="the fine-tuned model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the scenes")
    parser.add_argument("--choose", default="val", help="split that alpha is chosen on")
    parser.add_argument("--limit", type=int, help="records of the task in each split")
    print(json.dumps(measure(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
