"""Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop after the current step."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from triptych.core.processes import let_go_of_closed_terminals, stop_signals


class TrainingInterrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The run was asked to stop, and has saved a checkpoint.

    Attributes:
        signal_number: SIGINT, SIGTERM or SIGHUP.
        step: Optimizer steps done.
        checkpoint: The checkpoint to resume from.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: Path) -> None:
        self.signal_number = signal_number
        self.step = step
        self.checkpoint = checkpoint
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: stopped after step {step}; saved {checkpoint}")

    def __reduce__(self) -> tuple[type[TrainingInterrupted], tuple[int, int, Path]]:
        return type(self), (self.signal_number, self.step, self.checkpoint)

    @property
    def exit_code(self) -> int:
        """The shell's code for a signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number


class InterruptGuard:
    """While entered, the first of `stop_signals` only sets `requested`; a second Ctrl-C aborts.

    `agreed` is the signal that all processes stop for. A signal may come at any moment, so only
    `settle`, which they call together, sets it.

    Outside the main thread Python allows no handlers, and the guard does nothing. Forked loader
    workers inherit the handlers: there Ctrl-C and SIGHUP are ignored, since the parent ends
    them, and SIGTERM ends the worker.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.agreed: int | None = None
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def settle(self, any_requested: bool) -> None:
        """Stop after this step if any process was asked to.

        Args:
            any_requested: Whether any of the processes that train together had `requested` set
                when they exchanged it; the same on each of them.
        """
        if any_requested:
            self.agreed = signal.SIGTERM if self.requested is None else self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self.requested is not None:
            raise KeyboardInterrupt
        elif self.requested is None:
            self.requested = number
            let_go_of_closed_terminals()  # before a line of progress fails there
