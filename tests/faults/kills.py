"""kill -9 at random moments: each run must end bitwise as one that nobody touched.

`one`: a run in one process, at any moment. `save`: the same, while a checkpoint is being written.
`ranks`: two processes that train together; one of them is killed, and the other ended as
`triptych train` ends it. `recipe`: mPLUG with queue, momentum teacher and dropout
(`tests.workflows.kills`). `parent`: a recipe on two processes that `triptych train` starts; it, or
one of the two, is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.processes import children_of, runs
from tests.train.toy import exact_lines
from tests.workflows import kills as recipe_kills
from triptych.checkpoint import sharded
from triptych.scenes.write import write_scenes
from triptych.train.metrics_log import read_metrics
from triptych.workflows.run import train_run

from . import forks
from .forks import content_of, fork, kill_all, same_toy, train_toy, wait, wait_until

CHEAP = ("one", "save", "ranks") * 3
"""Kinds that take a second on a free core."""

CYCLE = (*CHEAP, "recipe", *CHEAP, "parent")
"""Kinds of kills, in turn."""


class Kills:
    """Undisturbed runs, and what is compared with them.

    Args:
        folder: For all runs.
        draw: Gives the moments.
    """

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.duration_s = forks.warm_up(folder)
        self._wholes: dict[str, tuple[Path, float]] = {}
        self._scenes: Any = None

    def kill(self, kind: str, number: int) -> dict[str, Any]:
        """Kill one run once, let it go on to its end, and compare it.

        Returns:
            `kind`, `equal`, and how many seconds or steps the run had.
        """
        run = self.folder / f"{kind}_{number}"
        while True:
            killed, detail = getattr(self, f"_{kind}")(run)
            if killed:
                break
            shutil.rmtree(run, ignore_errors=True)  # it was faster: take another moment
        wrong = self._wrong(kind, run)
        if not wrong:
            shutil.rmtree(run, ignore_errors=True)
        return {"kind": kind, "equal": not wrong, "wrong": wrong, **detail}

    def _wrong(self, kind: str, run: Path) -> str:
        """Let a run go on to its end; return what is not as in the undisturbed one."""
        if kind in ("one", "save"):
            code = wait(fork(lambda: train_toy(run)))
            return _told([code], same_toy(run, self.folder / "whole"))
        if kind == "ranks":
            whole, _ = self._whole("ranks")
            codes = [wait(child) for child in self._fork_ranks(run)]
            return _told(codes, same_toy(run, whole))
        whole, _ = self._whole(kind)
        code = wait(fork(lambda: self._train(kind, run)))
        if code != 0:
            return _told([code], equal=False)
        return ", ".join([*_other_files(run, whole), *forks.partials(run)])

    def _one(self, run: Path) -> tuple[bool, dict[str, Any]]:
        moment_s = self.draw.uniform(0, 0.9 * self.duration_s)
        child = fork(lambda: train_toy(run, every=self.draw.choice((1, 3))))
        time.sleep(moment_s)
        return kill_all([child]) == [-signal.SIGKILL], {"seconds": round(moment_s, 3)}

    def _save(self, run: Path) -> tuple[bool, dict[str, Any]]:
        """Kill while a checkpoint is under way; writing is slowed, or it would be over at once."""
        step = self.draw.randrange(1, forks.MAX_STEPS)
        folder = run / "checkpoints"

        def train() -> None:
            write = sharded.write_tensors

            def slow(*arguments: Any, **options: Any) -> dict[str, Any]:
                time.sleep(0.005)
                done = write(*arguments, **options)
                time.sleep(0.005)
                return done

            sharded.write_tensors = slow
            train_toy(run)

        child = fork(train)
        delay_s = self.draw.uniform(0, 0.015)
        if wait_until(child, lambda: any(folder.glob(f".tmp_*_step_{step}"))):
            time.sleep(delay_s)
        killed = kill_all([child]) == [-signal.SIGKILL]
        return killed and bool(forks.partials(run)), {"step": step}

    def _ranks(self, run: Path) -> tuple[bool, dict[str, Any]]:
        _, duration_s = self._whole("ranks")
        moment_s, victim = self.draw.uniform(0, 0.9 * duration_s), self.draw.randrange(2)
        children = self._fork_ranks(run)
        time.sleep(moment_s)
        (code,) = kill_all([children[victim]])
        kill_all([children[1 - victim]])  # it may wait for the dead one; `triptych train` ends it
        return code == -signal.SIGKILL, {"seconds": round(moment_s, 3), "rank": victim}

    def _fork_ranks(self, run: Path) -> list[int]:
        run.mkdir(parents=True, exist_ok=True)
        meeting = run.with_name(f"{run.name}_{time.monotonic_ns()}")

        def train(rank: int) -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
            )
            train_toy(run)
            dist.destroy_process_group()

        return [fork(lambda: train(0)), fork(lambda: train(1))]

    def _recipe(self, run: Path) -> tuple[bool, dict[str, Any]]:
        _, duration_s = self._whole("recipe")
        moment_s = self.draw.uniform(0, 0.9 * duration_s)
        child = fork(lambda: self._train("recipe", run))
        time.sleep(moment_s)
        return kill_all([child]) == [-signal.SIGKILL], {"seconds": round(moment_s, 3)}

    def _parent(self, run: Path) -> tuple[bool, dict[str, Any]]:
        """Kill `triptych train` or a process that it started, once they train or before."""
        _, duration_s = self._whole("parent")
        moment_s = self.draw.uniform(0, 0.9 * duration_s)
        child = fork(lambda: self._train("parent", run))
        time.sleep(moment_s)
        with contextlib.suppress(FileNotFoundError):
            everyone = [child, *children_of(child)]
            victim = self.draw.choice(everyone)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            code = wait(child)  # the others end by themselves
            end = time.monotonic() + 20
            while any(map(runs, everyone[1:])) and time.monotonic() < end:
                time.sleep(0.02)
            left = sum(map(runs, everyone[1:]))
            detail = {"seconds": round(moment_s, 3), "parent": victim == child, "left": left}
            return code != 0 and left == 0, detail
        return False, {}

    def _train(self, kind: str, run: Path) -> None:
        config = recipe_kills.full_run(
            self._scenes, checkpoint_every_steps=1, tensorboard=True, max_steps=6
        )
        if kind == "parent":
            config = replace(config, train=replace(config.train, num_processes=2))
            config = replace(config, model=replace(config.model, name="mplug_tiny"))
        train_run(config, run, resume=True)

    def _whole(self, kind: str) -> tuple[Path, float]:
        """Return the undisturbed run of a kind, and how long it took."""
        if kind not in self._wholes:
            run = self.folder / f"whole_{kind}"
            if self._scenes is None and kind != "ranks":
                self._scenes = write_scenes(
                    self.folder / "scenes", 16, num_val=2, num_test=2, formats=("captions",)
                )
            if kind == "recipe":
                self._train(kind, self.folder / "warm_recipe")  # late imports, once for all
            started = time.perf_counter()
            if kind == "ranks":
                codes = [wait(child) for child in self._fork_ranks(run)]
            else:
                codes = [wait(fork(lambda: self._train(kind, run)))]
            assert not any(codes), f"the undisturbed run {run} failed"
            self._wholes[kind] = run, time.perf_counter() - started
        return self._wholes[kind]


def _told(codes: Sequence[int], equal: bool) -> str:
    if any(codes):
        return f"the resumed run ended with {codes}"
    return "" if equal else "the resumed run differs"


def _other_files(run: Path, whole: Path) -> list[str]:
    """Return what differs of the model and the checkpoint that two runs left, and of their logs."""
    steps = [line["step"] for line in read_metrics(whole / "metrics.jsonl")]
    seal = Path("checkpoints") / f"step_{steps[-1]}" / "checkpoint.json"
    names = [seal, *(p.relative_to(whole) for p in (whole / "model").iterdir())]
    found = [str(n) for n in names if content_of(run / n) != content_of(whole / n)]
    return [*found, *([] if exact_lines(run) == exact_lines(whole) else ["metrics.jsonl"])]


def measure(folder: Path, number: int, seed: int, kinds: tuple[str, ...] = CYCLE) -> dict[str, Any]:
    """Return how many of `number` killed runs ended equal, and which did not."""
    kills = Kills(folder, random.Random(seed))
    outcomes = []
    for index in range(number):
        outcome = kills.kill(kinds[index % len(kinds)], index)
        outcomes.append(outcome)
        if not outcome["equal"]:
            print(json.dumps(outcome), file=sys.stderr, flush=True)
    return {
        "kills_equal": sum(outcome["equal"] for outcome in outcomes),
        "kills_equal_of": number,
        "kinds": dict(Counter(outcome["kind"] for outcome in outcomes)),
        "unequal": [outcome for outcome in outcomes if not outcome["equal"]],
    }
