"""Rounds of the fuzzer: many cases of all kinds, by seeds."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.fuzz.cases import keep, pack
from tests.fuzz.kind import Kind
from tests.fuzz.mutators import remove_tree
from tests.fuzz.worker import Outcome, Worker


class Samples:
    """The valid samples of kinds, each written once.

    Args:
        folder: Empty; samples and cases lie in it.
        kinds: By name.
    """

    def __init__(self, folder: Path, kinds: dict[str, Kind]) -> None:
        self.folder, self.kinds = folder, kinds
        for name, kind in kinds.items():
            (folder / "samples" / name).mkdir(parents=True)
            kind.build(folder / "samples" / name)
        self._numbers = count()

    def of(self, name: str) -> Path:
        """Return the valid sample of a kind."""
        return self.folder / "samples" / name

    def room(self, worker: int = 0) -> Path:
        """Return a path for a case; nothing is there."""
        return self.folder / f"worker{worker}" / f"case{next(self._numbers)}"

    def mutated(self, name: str, rng: random.Random, folder: Path) -> bool:
        """Write a changed copy of a sample; return whether it was sealed."""
        shutil.copytree(self.of(name), folder)
        return self.kinds[name].mutate(rng, folder)


def run_round(
    samples: Samples,
    *,
    seed: int,
    num_cases: int | None,
    minutes: float | None,
    num_workers: int,
    on_fault: Callable[[str, Outcome, Path | None], None],
) -> dict[str, Any]:
    """Read cases of all kinds in turn, and keep those that end badly.

    Args:
        samples: The kinds and their samples.
        seed: Of the changes; the same seed makes the same cases.
        num_cases: How many; None for no limit.
        minutes: How long; None for no limit.
        num_workers: Processes that read.
        on_fault: Told of every fault: the case's name, the fault, and where it was kept.

    Returns:
        Counts, for the report.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in samples.kinds}
    begun = time.monotonic()

    def jobs() -> Iterator[tuple[str, int]]:
        for number in count():
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                return
            for index, name in enumerate(samples.kinds):
                if num_cases is not None and number * len(samples.kinds) + index >= num_cases:
                    return
                yield name, number

    waiting = jobs()
    workers = [Worker(samples.folder / f"worker{index}") for index in range(num_workers)]
    running: dict[int, tuple[str, int, Path, bool]] = {}
    try:
        while True:
            for index, worker in enumerate(workers):
                if index in running:
                    outcome = worker.poll(0.005 if num_workers > 1 else 0.2)
                    if outcome is None:
                        continue
                    name, number, folder, sealed = running.pop(index)
                    counts[name][outcome.verdict] += 1
                    if outcome.verdict == "unclean":
                        fresh = samples.room(index)
                        samples.mutated(name, random.Random(f"{seed}/{name}/{number}"), fresh)
                        case = pack(samples.kinds[name], fresh, samples.of(name), sealed=sealed)
                        on_fault(f"{seed}/{name}/{number}", outcome, keep(case, outcome))
                        remove_tree(fresh)
                    remove_tree(folder)
                job = next(waiting, None)
                if job is not None:
                    name, number = job
                    folder = samples.room(index)
                    rng = random.Random(f"{seed}/{name}/{number}")
                    sealed = samples.mutated(name, rng, folder)
                    running[index] = (name, number, folder, sealed)
                    worker.start(name, folder)
            if not running:
                break
    finally:
        for worker in workers:
            worker.close()
    total = sum(sum(found.values()) for found in counts.values())
    elapsed = time.monotonic() - begun
    return {
        "fuzz_cases": total,
        "fuzz_unclean": sum(found["unclean"] for found in counts.values()),
        "by_kind": {name: dict(sorted(found.items())) for name, found in counts.items()},
        "seed": seed,
        "cases_per_s": round(total / max(elapsed, 1e-9), 1),
    }
