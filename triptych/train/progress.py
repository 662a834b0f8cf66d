"""Show a run's progress: a live display on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from triptych.core.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The state of a run after a step.

    Attributes:
        step: Optimizer steps done.
        max_steps: Total number of optimizer steps.
        losses: Losses by objective, the total included.
        samples_per_s: Samples a second over the last steps.
        data_wait_share: Fraction of the time spent waiting for the loader, in [0, 1].
        seconds_left: Estimated time to the last step.
    """

    step: int
    max_steps: int
    losses: dict[str, float]
    samples_per_s: float
    data_wait_share: float
    seconds_left: float

    def line(self) -> str:
        """Return the report as one line."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        return (
            f"step {self.step}/{self.max_steps}  {losses}  {self.samples_per_s:.1f} samples/s  "
            f"data wait {self.data_wait_share:.0%}  {format_duration(self.seconds_left)} left"
        )


class Progress(Protocol):
    """Where reports and messages go."""

    def update(self, report: StepReport) -> None:
        """Show the state after a step; called each step, shown only from time to time."""
        ...

    def message(self, text: str) -> None:
        """Print a line that stays."""
        ...

    def close(self) -> None:
        """Show the last report and leave the terminal as it was."""
        ...


class SilentProgress:
    """Shows nothing."""

    def update(self, report: StepReport) -> None:
        """Ignore the report."""

    def message(self, text: str) -> None:
        """Ignore the message."""

    def close(self) -> None:
        """Do nothing."""


class PlainProgress:
    """Prints a line after the first step, then one every `every_s` seconds, and the last.

    Args:
        console: Where to print.
        every_s: Seconds between lines.
        clock: Returns seconds; tests pass their own.
    """

    def __init__(
        self,
        console: Console,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._every_s, self._clock = console, every_s, clock
        self._next = float("-inf")
        self._pending: StepReport | None = None

    def update(self, report: StepReport) -> None:
        """Print the report if it is due."""
        self._pending = report
        if self._clock() >= self._next:
            self._next = self._clock() + self._every_s
            self.close()

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Print the last report, unless it was already printed."""
        if self._pending:
            self.message(self._pending.line())
        self._pending = None


class LiveProgress:
    """Redraws a bar with the numbers below it, at most `1 / every_s` times a second.

    It draws from the training thread: the loader's workers would fork a separate drawing thread.

    Args:
        console: The terminal.
        every_s: Seconds between redraws.
    """

    def __init__(self, console: Console, every_s: float = 0.2) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._every_s, self._next = every_s, float("-inf")
        self._pending: StepReport | None = None
        self._live.start()

    def update(self, report: StepReport) -> None:
        """Redraw if it is due."""
        self._pending = report
        if time.monotonic() >= self._next:
            self._draw(report)
            self._next = time.monotonic() + self._every_s

    def message(self, text: str) -> None:
        """Print a line above the display."""
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Draw the last report and stop."""
        if self._pending:
            self._draw(self._pending)
        self._live.stop()

    def _draw(self, report: StepReport) -> None:
        bar = ProgressBar(total=report.max_steps, completed=report.step, width=60)
        self._live.update(Group(bar, Text(report.line())), refresh=True)


def build_progress(
    mode: Literal["auto", "live", "plain", "off"], console: Console | None = None
) -> Progress:
    """Return the display for a mode; `auto` asks whether the console is a terminal."""
    console = console or Console()
    if mode == "off":
        return SilentProgress()
    if mode == "live" or (mode == "auto" and console.is_terminal):
        return LiveProgress(console)
    return PlainProgress(console)


class StepClock:
    """Times of the last steps, split into waiting for data and the rest.

    Args:
        samples_per_step: Samples in one step.
        window: Number of steps to average the rates over.
        clock: Returns seconds; tests pass their own.
    """

    def __init__(
        self,
        samples_per_step: int,
        window: int = 50,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._samples, self._clock = samples_per_step, clock
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)
        self._began = self._start = clock()
        self._wait = 0.0

    def start_step(self) -> None:
        """Begin a step."""
        self._start, self._wait = self._clock(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for the loader."""
        start = self._clock()
        yield
        self._wait += self._clock() - start

    def end_step(self) -> None:
        """End the step that began last."""
        self._steps.append((self._wait, self._clock() - self._start))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run, or its resumption, began."""
        return self._clock() - self._began

    @property
    def samples_per_s(self) -> float:
        """Samples a second over the window."""
        return self._samples / max(self._mean_s, 1e-9)

    @property
    def data_wait_share(self) -> float:
        """Fraction of the window spent waiting for the loader, in [0, 1]."""
        total = sum(step for _, step in self._steps)
        return sum(wait for wait, _ in self._steps) / total if total else 0.0

    def seconds_for(self, steps: int) -> float:
        """Return the time that `steps` more steps will take at the current rate."""
        return steps * self._mean_s

    @property
    def _mean_s(self) -> float:
        return sum(step for _, step in self._steps) / len(self._steps) if self._steps else 0.0


def format_duration(seconds: float) -> str:
    """Return `1 h 05 min`, `12 min 03 s` or `7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
