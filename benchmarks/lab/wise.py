"""What the line between a model and its fine-tuned one regains; prints JSON.

The models between (WiSE-FT) are scored on validation questions and validation pairs. The best by
the pairs among those that lose at most a point on the questions is chosen, and compared with both
ends on test data, which the choice has not seen. `wise_gain` is yes if it is within one point of
the fine-tuned model and regains at least half of the retrieval that fine-tuning lost.

    python -m benchmarks.lab.wise --model BEFORE --tuned AFTER --data SCENES
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.scenes.layout import SceneFiles
from triptych.workflows.interpolate import ALPHAS, HeldOut, Point, choose, open_line, sweep
from triptych.workflows.scene_data import scene_source

TOLERANCE = 0.01


def held_out(data: Path, split: str, limit: int | None) -> tuple[HeldOut, HeldOut]:
    """Return questions and pairs of a split."""
    files = SceneFiles(data)
    own = HeldOut(task="vqa", source=scene_source(files, "vqa", split), limit=limit)
    guard = HeldOut(task="retrieval", source=scene_source(files, "caption", split), limit=limit)
    return own, guard


def plain(point: Point) -> dict[str, float]:
    assert point.guard is not None
    return {"alpha": point.alpha, "own": point.own.value, "guard": point.guard.value}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    line = open_line(options.model, options.tuned)
    curve = sweep(line, *held_out(options.data, "val", options.limit), alphas=ALPHAS)
    chosen = choose(curve, TOLERANCE)
    test = held_out(options.data, "test", options.limit)
    before, kept, after = (plain(p) for p in sweep(line, *test, alphas=(0.0, chosen.alpha, 1.0)))
    lost = before["guard"] - after["guard"]
    regained = (kept["guard"] - after["guard"]) / lost if lost > 0 else float("nan")
    return {
        "wise_gain": {
            "value": kept["own"] >= after["own"] - TOLERANCE and regained >= 0.5,
            "regained": round(regained, 4),
            "own_change": round(kept["own"] - after["own"], 4),
            "test": {"before": before, "chosen": kept, "after": after},
            "validation": [plain(point) for point in curve],
            "protocol": f"alpha chosen on validation data, numbers on test data; questions: "
            f"{curve[0].own.num_items} and VQA accuracy; pairs: retrieval, i2t_r1",
        }
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the model before")
    parser.add_argument("--tuned", type=Path, required=True, help="the fine-tuned model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the scenes")
    parser.add_argument("--limit", type=int, help="records of each split")
    print(json.dumps(measure(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
