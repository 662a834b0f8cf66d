"""Compare exported encoders in onnxruntime with their models; prints JSON.

Exports each model as `triptych export onnx` does, which embeds images and captions of the built-in
world in batches of several sizes by both, and gives the largest difference of all numbers.

    python -m benchmarks.speed.onnx
    python -m benchmarks.speed.onnx --models runs/demo/pretrain/model runs/vlmo/pretrain/model
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from triptych.checkpoint.model_folder import load_model_folder, stored_config
from triptych.workflows.onnx_export import CHECKED_BATCHES, OPSET, export_onnx

MODELS = (
    "runs/demo/pretrain/model",
    "runs/vlmo/stagewise/pretrain/model",
    "runs/flava/stagewise/joint/model",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", default=list(map(Path, MODELS)))
    options = parser.parse_args(arguments)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate(options.models):
            family = str(stored_config(load_model_folder(model).config, model)["kind"])
            found = export_onnx(model, Path(folder) / str(number))
            errors[family] = max(errors.get(family, 0.0), found.max_error)
    protocol = f"opset {OPSET}, batches of {', '.join(map(str, CHECKED_BATCHES))}, float32"
    print(
        json.dumps(
            {"onnx_max_error": max(errors.values()), "by_family": errors, "protocol": protocol}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
