"""Signals in pairs, a terminal that is closed, clocks that jump, and folders that are closed to us.

After each, the run is resumed and must end as one that nobody touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.toy import toy_batches

from .disk import can_mount
from .forks import (
    USER_ERROR,
    fork,
    kill_all,
    partials,
    same_toy,
    train_toy,
    wait,
    wait_until,
    warm_up,
)

PAUSE_S = 0.01
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOBODY = 65534


class Interruptions:
    """An undisturbed run, and ways to disturb others.

    Args:
        folder: For all runs.
        draw: Gives moments and signals.
    """

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        warm_up(folder)
        self.whole = folder / "whole"
        self.can_mount = can_mount(folder)

    def ends_equal(self, run: Path) -> str:
        """Let a run go on to its end; return what was wrong."""
        code = wait(fork(lambda: train_toy(run)))
        if code != 0:
            return f"the resumed run ended with code {code}"
        return "" if same_toy(run, self.whole) else f"the resumed run differs: {partials(run)}"

    def two_signals(self, run: Path) -> str:
        """Send a signal that asks to stop, and soon another one, which may be SIGKILL."""
        first, second = self.draw.choice(STOP), self.draw.choice((*STOP, signal.SIGKILL))
        gap_s = self.draw.choice((0.0, self.draw.uniform(0, 3 * PAUSE_S)))
        child = fork(lambda: train_toy(run, pause_s=PAUSE_S))
        log = run / "metrics.jsonl"
        if not wait_until(child, lambda: log.is_file() and log.stat().st_size > 0):
            return f"the run ended by itself with code {wait(child)}"
        time.sleep(self.draw.uniform(0, 10 * PAUSE_S))
        for number, pause_s in ((first, gap_s), (second, 0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            time.sleep(pause_s)
        code, told = wait(child), f"{first.name} and {second.name}"
        if code == -signal.SIGKILL and second == signal.SIGKILL:
            return self.ends_equal(run)
        expected = {128 + first, 128 + second}  # either may be taken first
        if code not in expected:
            return f"{told}: code {code}, not {expected}"
        wrong = self.ends_equal(run)
        return f"{told}: {wrong}" if wrong else ""

    def closed_terminal(self, run: Path) -> str:
        """Train below a terminal, with a progress bar, and close the terminal."""
        child, terminal = pty.fork()
        if child == 0:
            os._exit(wait(fork(self._in_terminal(run))))
        log = run / "metrics.jsonl"
        end = time.monotonic() + 60
        while not (log.is_file() and log.read_text().count("\n") >= 3):
            if time.monotonic() > end:
                return "the run did not begin"
            time.sleep(0.002)
        os.close(terminal)  # the system sends SIGHUP to all below it, and writes to it fail
        wait(child)
        note = run / "ended"
        while not note.is_file():
            if time.monotonic() > end:
                return "the run did not stop"
            time.sleep(0.005)
        if note.read_text() != "129":
            return f"the run ended with {note.read_text()}"
        note.unlink()
        return self.ends_equal(run)

    def _in_terminal(self, run: Path) -> Callable[[], object]:
        def work() -> None:
            from tests.train.toy import toy_trainer
            from triptych.train.interrupts import TrainingInterrupted

            def slow(start: int):
                for batch in toy_batches(start):
                    time.sleep(PAUSE_S)
                    yield batch

            ended = "no signal"
            try:
                settings = {"max_steps": 24, "tensorboard": True, "progress": "live"}
                toy_trainer(run, batches=slow, **settings).fit(resume=True)
            except TrainingInterrupted as stop:
                ended = str(stop.exit_code)
            except BaseException as error:
                ended = repr(error)
            (run / "ended").write_text(ended)

        return work

    def clock(self, run: Path) -> str:
        """Let wall clocks jump in a run, kill it, and date all its files anywhere; resume it."""
        jump_s = self.draw.choice((-1, 1)) * 10 ** self.draw.uniform(1, 9)

        def train() -> None:
            real, real_ns, calls = time.time, time.time_ns, [0]

            def away() -> float:
                calls[0] += 1
                return jump_s if calls[0] % 3 else 0.0

            time.time = lambda: max(0.0, real() + away())
            time.time_ns = lambda: max(0, real_ns() + int(away() * 1e9))
            train_toy(run, pause_s=PAUSE_S)

        child = fork(train)
        step = self.draw.randrange(2, 20)
        made = wait_until(child, lambda: (run / "checkpoints" / f"step_{step}").is_dir())
        kill_all([child])
        if not made:
            return f"{jump_s:.0f} s: the run ended by itself"
        for path in run.rglob("*"):
            when = max(0.0, time.time() + self.draw.choice((-1, 1)) * jump_s * self.draw.random())
            os.utime(path, (when, when))
        wrong = self.ends_equal(run)
        return f"{jump_s:.0f} s: {wrong}" if wrong else ""

    def read_only(self, run: Path) -> str:
        """Make the disk of a run read-only while it trains, and writable again."""

        def close() -> None:
            """Mount the folder over itself: a disk with open files cannot be made read-only."""
            subprocess.run(["mount", "--bind", str(run), str(run)], check=True)
            for patience in range(100, -1, -1):  # busy, as long as a file opened since is open
                words = ["mount", "-o", "remount,bind,ro", str(run)]
                if subprocess.run(words, check=patience == 0).returncode == 0:
                    return
                time.sleep(0.05)

        try:
            wrong = self._closed(run, close, "Read-only file system")
        finally:
            subprocess.run(["umount", "-l", str(run)], check=False)
        return wrong or self.ends_equal(run)

    def no_permission(self, run: Path) -> str:
        """Take the right to write from a run that is not root's while it trains, and give it."""
        run.mkdir(parents=True)
        (run / "checkpoints").mkdir()
        root = os.getuid() == 0
        if root:
            for path in (run, run / "checkpoints"):
                os.chown(path, NOBODY, NOBODY)
            for path in self.folder.parents:
                if path.stat().st_mode & 0o001 == 0:
                    return f"{path} lets nobody else in"
        wrong = self._closed(
            run, lambda: (run / "checkpoints").chmod(0o555), "Permission denied", nobody=root
        )
        (run / "checkpoints").chmod(0o755)
        return wrong or self.ends_equal(run)

    def _closed(
        self, run: Path, close: Callable[[], object], reason: str, *, nobody: bool = False
    ) -> str:
        said = self.folder / "said.json"
        said.unlink(missing_ok=True)
        said.touch()
        said.chmod(0o666)
        begin, end = os.pipe()

        def batches(start: int):
            for number, batch in enumerate(toy_batches(start), start):
                if number == 5:
                    os.read(begin, 1)  # until it is closed
                yield batch

        def train() -> None:
            os.close(end)
            if nobody:
                os.setresuid(NOBODY, NOBODY, NOBODY)
            train_toy(run, batches=batches)

        child = fork(train, said)
        if not wait_until(child, lambda: (run / "checkpoints" / "step_5").is_dir()):
            return f"the run ended by itself with code {wait(child)}"
        close()
        os.close(end)
        os.close(begin)
        code = wait(child)
        told = json.loads(said.read_text() or '["", ""]')[1]
        is_clear = reason in told and "who may write there" in told and "resume" in told
        return "" if code == USER_ERROR and is_clear else f"code {code}: {told}"


PARTS = ("two_signals", "closed_terminal", "clock", "read_only", "no_permission")


def measure(folder: Path, number: int, seed: int, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Return of how many of `number` interruptions of each part the run recovered."""
    found = Interruptions(folder, random.Random(seed))
    result: dict[str, Any] = {}
    for part in parts:
        if part == "read_only" and not found.can_mount:
            result["not_done"] = "read_only: no file system may be mounted here"
            continue
        problems = []
        for index in range(number):
            run = folder / f"{part}_{index}"
            wrong = getattr(found, part)(run)
            problems += [wrong] if wrong else []
            shutil.rmtree(run, ignore_errors=True)
        result |= {part: number - len(problems), f"{part}_of": number}
        result |= {f"{part}_problems": problems} if problems else {}
    return result
