"""What a demo was asked for, what it planned and how long it took, in `demo.json` of its folder.

So the same command continues an interrupted demo with the same plan.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from triptych.core.config import check, from_dict, to_dict
from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.core.files import has_entries, write_json
from triptych.core.outputs import MetricValue
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig, source_flags
from triptych.demo.plan import SIZES, DemoSize, Speeds
from triptych.recipes.config import RunConfig
from triptych.train.precision import has_bf16

DEMO_FILE = "demo.json"

MINUTES_BF16, MINUTES_FP32 = 8.0, 10.0
"""The budget of a demo that is given neither minutes nor a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """What a demo is asked for.

    Attributes:
        scale: smoke, tiny or small.
        minutes: The budget; None takes the whole scale, however long that is.
        seed: Seed of scenes and training.
        num_threads: CPU threads; None leaves torch's choice.
        data: The user's own images with captions; None takes the built-in scenes.
        max_bad_share: Share of own data that may be unusable.
    """

    scale: str = "tiny"
    minutes: float | None = None
    seed: int = 0
    num_threads: int | None = None
    data: DataSourceConfig | None = None
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        """Reject what no demo can do."""
        if self.scale not in SIZES:
            raise ConfigError(f"scale = {self.scale!r}: must be one of {', '.join(SIZES)}")
        check(self.seed >= 0, "seed", self.seed, "be at least 0")
        is_budget = self.minutes is None or 0 < self.minutes < float("inf")
        check(is_budget, "minutes", self.minutes, "be above 0; for no limit, give --scale tiny")
        is_share = 0 <= self.max_bad_share <= 1
        check(is_share, "max_bad_share", self.max_bad_share, "be from 0 to 1")

    @property
    def size(self) -> DemoSize:
        """The whole scale."""
        return SIZES[self.scale]

    def command(self, out: Path | None = None) -> str:
        """Return the command line of this demo; without a folder, that of any folder."""
        words = ["triptych demo"]
        if self.data is not None:
            words.append(f"--data {shlex.quote(self.data.path)}{source_flags(self.data)}")
            words.append(f"--max-bad-share {self.max_bad_share:g}")
        words.append(f"--scale {self.scale}")
        words += [] if self.minutes is None else [f"--minutes {self.minutes:g}"]
        words.append(f"--seed {self.seed}")
        words += [] if self.num_threads is None else [f"--num-threads {self.num_threads}"]
        words += [] if out is None else [f"--out {shlex.quote(str(out))}"]
        return " ".join(words)


def default_minutes() -> float | None:
    """Return the budget where none is given: less where the processor computes bf16 itself.

    None, the whole demo, with a GPU.
    """
    if torch.cuda.is_available():
        return None
    return MINUTES_BF16 if has_bf16(torch.device("cpu")) else MINUTES_FP32


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number of the demo beside what guessing gives.

    Attributes:
        key: Name in `results.json`, such as "i2t_r1" or "compositional_vqa".
        task: Such as "retrieval".
        split: "test" or "compositional", or "held out" of the user's own data.
        value: The number with interval and protocol.
        chance: What drawing at random gives; None where that has no meaning.
        blind: What the best answer without looking gives; None where there is none.
    """

    key: str
    task: str
    split: str
    value: MetricValue
    chance: float | None = None
    blind: float | None = None


@dataclass(slots=True)
class Demo:
    """A demo in its folder: what it was asked for, and what it has found so far.

    Attributes:
        folder: Holds data, runs and results.
        settings: What was asked for.
        console: Where to report.
        plan: What it does of its scale; None until that is known.
        speeds: What was measured for a budget.
        scores: Every number, in the order of the table.
        configs: The resolved configuration of each stage.
        times_s: Seconds of each stage, those before an interruption included.
        earlier_s: Seconds that the demo took before it was interrupted.
        predictions: Generated texts and boxes by (task, split) and position.
        records: The records that were scored, by (task, split).
        notes: Sentences about own data, for terminal and report.
    """

    folder: Path
    settings: DemoSettings
    console: Console
    plan: DemoSize | None = None
    speeds: Speeds | None = None
    scores: list[Score] = field(default_factory=list)
    configs: dict[str, RunConfig] = field(default_factory=dict)
    times_s: dict[str, float] = field(default_factory=dict)
    earlier_s: float = 0.0
    predictions: dict[tuple[str, str], dict[int, object]] = field(default_factory=dict)
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> DemoSize:
        """What is done: the plan, or the whole scale."""
        return self.plan or self.settings.size

    @property
    def is_full(self) -> bool:
        """Whether the whole scale is done."""
        return self.size == self.settings.size

    @property
    def index(self) -> Path:
        """Folder of the index of the images that training never saw."""
        return self.folder / "index"

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        return None if self.settings.minutes is None else 60 * self.settings.minutes

    def spent_s(self) -> float:
        """Return the seconds of all stages, and those until the first began."""
        start_s = 0.0 if self.speeds is None else self.speeds.start_s
        return start_s + sum(self.times_s.values())

    def run(self, stage: str) -> Path:
        """Return the run folder of a stage: pretrain, vqa or grounding."""
        return self.folder / stage

    def model(self, stage: str) -> Path:
        """Return the model folder of a stage."""
        return self.run(stage) / "model"

    def example_image(self) -> Path:
        """Return an image that training never saw."""
        split = "test" if self.settings.data is None else "held out"
        image = self.records["caption", split][0].image
        assert image is not None
        return Path(image.path)

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def save(self) -> None:
        """Write `demo.json`."""
        state = {
            "settings": to_dict(self.settings),
            "times_s": self.times_s,
            "plan": None if self.plan is None else to_dict(self.plan),
            "speeds": None if self.speeds is None else to_dict(self.speeds),
        }
        write_json(self.folder / DEMO_FILE, state)

    @contextmanager
    def timed(self, stage: str, text: str) -> Iterator[None]:
        """Say what begins, and add its seconds, finished or not, to those of earlier calls."""
        self.console.print(f"[bold]{text}[/bold]")
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.times_s[stage] = self.times_s.get(stage, 0.0) + spent
            self.save()


def check_folder(folder: Path, settings: DemoSettings) -> None:
    """Raise where a folder holds something other than an interrupted demo of these settings.

    Raises:
        ConfigError: It does; the message says how to continue, or to choose another.
    """
    if not has_entries(folder):
        return
    if not (folder / DEMO_FILE).is_file():
        raise ConfigError(
            f"{folder} holds other files: choose another folder with --out (`make demo "
            "DEMO_OUT=...`)"
        )
    if _settings(_read(folder)) != settings:
        raise ConfigError(
            f"{folder} holds another demo: continue it with `{resume_command(folder)}`, choose "
            f"another folder with --out, or delete {folder}"
        )


def open_demo(folder: Path, settings: DemoSettings, console: Console) -> Demo:
    """Note the settings of a new demo, or return an interrupted one with its plan and times."""
    demo = Demo(folder, settings, console)
    if (folder / DEMO_FILE).is_file():
        state = _read(folder)
        demo.times_s = state["times_s"]
        demo.earlier_s = sum(demo.times_s.values())
        if state.get("plan") is not None:
            demo.plan = from_dict(DemoSize, state["plan"])
        if state.get("speeds") is not None:
            demo.speeds = from_dict(Speeds, state["speeds"])
    else:
        demo.save()
    return demo


def resume_command(folder: Path) -> str | None:
    """Return the command that continues the demo in a folder; None if there is none."""
    if not (folder / DEMO_FILE).is_file():
        return None
    return _settings(_read(folder)).command(folder)


def _settings(state: dict[str, Any]) -> DemoSettings:
    return from_dict(DemoSettings, state["settings"])


def _read(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / DEMO_FILE).read_text(encoding="utf-8"))
    return state
