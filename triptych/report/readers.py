"""Loss curves out of a run's `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from triptych.core.errors import DataError

_PREFIX = "loss/"


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) points of each loss, by its name without `loss/`.

    Lines look like `{"step": 10, "loss/itc": 2.3, "samples_per_s": 800.0}`. A half-written last
    line, as a run leaves it that is still going on, is left out.

    Args:
        path: The file.

    Raises:
        DataError: There is no such file, or a line before the last is not JSON with a `step`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; a run writes it when it logs its first step")
    lines = path.read_text(encoding="utf-8").splitlines()
    series: dict[str, list[tuple[int, float]]] = {}
    for number, text in enumerate(lines, start=1):
        try:
            values = json.loads(text)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}:{number}: not a line of metrics ({error}); mend or remove it"
            ) from error
        for key, value in values.items():
            if key.startswith(_PREFIX):
                series.setdefault(key.removeprefix(_PREFIX), []).append((step, float(value)))
    return series
