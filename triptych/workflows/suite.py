"""All benchmarks of a paper on the data at hand, with the averages that the paper takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.core.errors import ConfigError, nearest
from triptych.core.files import folder_for_one
from triptych.core.machine import current_commit, describe_machine
from triptych.papers.benchmarks import SUITES, Suite, find_benchmark
from triptych.workflows.scoring import Outcome, Scoring, Store, number_of, score_benchmark

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over the numbers of a suite.

    Attributes:
        name: Such as "vision".
        value: The mean over those that there are; None where there is none.
        num_scored: How many there are.
        num_items: How many the paper averages.
    """

    name: str
    value: float | None
    num_scored: int
    num_items: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the paper's average, and not that of a part."""
        return self.num_scored == self.num_items


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What a suite gave.

    Attributes:
        suite: What was asked for.
        outcomes: By benchmark, in the suite's order.
        averages: The paper's.
    """

    suite: Suite
    outcomes: Mapping[str, Outcome]
    averages: tuple[Average, ...]


def find_suite(name: str) -> Suite:
    """Return a suite by its name.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    if name not in SUITES:
        raise ConfigError(
            f"there is no suite {name!r}{nearest(name, SUITES)}: take {', '.join(SUITES)}"
        )
    return SUITES[name]


def run_suite(
    suite: Suite,
    base: Path | None,
    scoring: Scoring,
    *,
    on_start: Callable[[str], None] = lambda text: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> SuiteResult:
    """Score every benchmark of a suite that the data and the models at hand allow.

    What an earlier call has scored with the same model, data and protocol is kept, so that an
    interrupted suite goes on, and new data are all that is scored.

    Args:
        suite: Which benchmarks.
        base: The pre-trained model; None scores fine-tuned ones alone.
        scoring: How; its `out` receives `results.json`.
        on_start: Told before something that may take long.
        on_outcome: Called with each outcome as soon as it is there.

    Raises:
        ConfigError: The folder holds something else.
    """
    with folder_for_one(scoring.out):
        facts = {
            "suite": suite.name,
            "model": None if base is None else str(base),
            "machine": describe_machine(),
            "commit": current_commit(),
        }
        store = Store(scoring.out / RESULTS, facts)
        outcomes: dict[str, Outcome] = {}
        for name in suite.benchmarks:
            earlier = store.outcomes.get(name)
            outcome = score_benchmark(find_benchmark(name), base, scoring, earlier, on_start)
            outcomes[name] = outcome
            store.add(name, outcome)
            on_outcome(outcome)
        averages = compute_averages(suite, outcomes)
        store.beside["averages"] = {
            average.name: {
                "value": average.value,
                "scored": average.num_scored,
                "of": average.num_items,
            }
            for average in averages
        }
        store.write()
    return SuiteResult(suite, outcomes, averages)


def compute_averages(suite: Suite, outcomes: Mapping[str, Outcome]) -> tuple[Average, ...]:
    """Return the averages of a suite; the macro average is the mean of the others.

    Each item counts once, whatever its number of samples. A macro average has a value only where
    every average has one, and is whole only where all of them are.
    """
    found = []
    for name, items in suite.averages.items():
        values = [value for item in items if (value := _item(item, outcomes)) is not None]
        mean = sum(values) / len(values) if values else None
        found.append(Average(name, mean, len(values), len(items)))
    if suite.macro:
        parts = [average for average in found if average.name in suite.macro]
        means = [average.value for average in parts if average.value is not None]
        macro = sum(means) / len(means) if len(means) == len(parts) else None
        num_whole = sum(average.is_whole for average in parts)
        found.append(Average("macro", macro, num_whole, len(parts)))
    return tuple(found)


def _item(item: str, outcomes: Mapping[str, Outcome]) -> float | None:
    """Return the number of an item such as "glue_cola.score"; None where it is not there."""
    name, _, metric = item.partition(".")
    outcome = outcomes.get(name)
    if outcome is None or outcome.status != "scored":
        return None
    return number_of(find_benchmark(name), metric, outcome)
