"""A plugin: mPLUG's pre-training logs the samples of each step, and may be sent signals.

With `TRIPTYCH_PLUGINS=benchmarks.parity.sample_log`, each process writes `STEP/RANK.json` in the
folder that `SAMPLE_LOG` names: how many processes there are, and the `index` of its samples.
`SAMPLE_SIGNALS`, a JSON list of [step, rank, signal], sends each signal once, after that step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.core.config import kind_of
from triptych.distributed.env import rank, world_size
from triptych.tasks.pretraining.mplug import SPEC, MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.registry import TASKS
from triptych.tasks.spec import TaskSpec

FOLDER, SIGNALS = "SAMPLE_LOG", "SAMPLE_SIGNALS"


class LoggedPretraining(MPLUGPretraining):
    """Writes down what each step trains on."""

    def __init__(self, model: Any, config: MPLUGPretrainingConfig) -> None:
        super().__init__(model, config)
        self.folder = Path(os.environ[FOLDER])
        self._indices: list[int] = []

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return the losses of a micro-batch, and remember its samples."""
        self._indices += batch["index"].tolist()
        return super().losses(batch, active=active)

    def after_step(self, step: int) -> None:
        """Log the step, and send the signals that are due."""
        super().after_step(step)
        path = self.folder / str(step) / f"{rank()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([world_size(), self._indices]), encoding="utf-8")
        self._indices = []
        for number, (due, receiver, signal) in enumerate(json.loads(os.environ.get(SIGNALS, "[]"))):
            sent = self.folder / f"sent_{number}"
            if (step, rank()) == (due, receiver) and not sent.exists():
                sent.touch()
                os.kill(os.getpid(), signal)


def logged_spec() -> TaskSpec[Any]:
    """Return mPLUG's pre-training with the log."""
    return replace(SPEC, build=lambda config, model, *_: LoggedPretraining(model, config))


def read_samples(folder: Path) -> dict[int, list[int]]:
    """Return the samples of each step, of all processes together, in order of their indices.

    A step that was done again, after a kill, counts once: as it was done the last time.
    """
    found = {}
    for step in sorted(int(path.name) for path in folder.iterdir() if path.is_dir()):
        own = folder / str(step)
        world = json.loads((own / "0.json").read_text(encoding="utf-8"))[0]
        parts = [json.loads((own / f"{r}.json").read_text(encoding="utf-8")) for r in range(world)]
        found[step] = sorted(index for _, indices in parts for index in indices)
    return found


if FOLDER in os.environ:
    TASKS[kind_of(MPLUGPretrainingConfig)] = logged_spec()
