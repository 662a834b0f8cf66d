"""What a run has logged so far, as curves: all that the run doctor looks at."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from triptych.train.chance import Chance

RECENT = 10
"""Lines at the end of a curve that say how things stand."""

PATIENCE, PATIENCE_SHARE = 200, 1 / 50
"""Steps after warm-up that a loss gets before it is judged: so many, and this share of the run."""


MAX_STEP = 2**53


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the configuration of a run says.

    Attributes:
        max_steps: Steps of the whole run; None if unknown.
        num_columns: Pairs of a pass, all processes together; 0 if unknown.
        chances: Where the chance values of the losses come from, by objective.
        has_frozen: Whether parts are frozen on purpose.
    """

    max_steps: int | None = None
    num_columns: int = 0
    chances: Mapping[str, Chance] = field(default_factory=dict)
    has_frozen: bool = False


@dataclass(slots=True)
class Curve:
    """The (step, value) points of one number, in order; only finite ones."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def recent(self, number: int = RECENT) -> list[float]:
        """Return the last values."""
        return self.values[-number:]

    def level(self) -> float:
        """Return the mean of the last values."""
        return fmean(self.recent())


NONE = Curve()


class History:
    """The curves of a run.

    Args:
        facts: What the configuration says.

    Attributes:
        curves: By the name of the number.
        step: The last step that was logged.
        not_finite: The first step at which a number was NaN or infinite, and which; None if all
            were finite.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts
        self.curves: dict[str, Curve] = {}
        self.step = 0
        self.not_finite: tuple[int, str] | None = None

    def add(self, line: Mapping[str, Any]) -> bool:
        """Add a line of `metrics.jsonl`; return False for one that is none."""
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not self.step <= step < MAX_STEP:
            return False
        self.step = step
        for name, value in line.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not abs(value) < math.inf or abs(value) > sys.float_info.max:
                self.not_finite = self.not_finite or (step, name)
                continue
            curve = self.curves.setdefault(name, Curve())
            curve.steps.append(step)
            curve.values.append(float(value))
        return True

    def curve(self, name: str) -> Curve:
        """Return a curve; an empty one for a number that was never logged."""
        return self.curves.get(name, NONE)

    def under(self, prefix: str) -> dict[str, Curve]:
        """Return the curves whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): curve
            for name, curve in self.curves.items()
            if name.startswith(prefix)
        }

    @property
    def has_vitals(self) -> bool:
        """Whether the log was written by a version that measures them."""
        return any(name.startswith(("update/", "chance/")) for name in self.curves)

    def objectives(self) -> dict[str, Curve]:
        """Return the curves of the losses, by objective, without their sum."""
        known = self.under("loss/")
        known.pop("total", None)
        return known

    def chance(self, objective: str) -> float | None:
        """Return the chance value of a loss: as logged, or else as the configuration tells it."""
        logged = self.curve(f"chance/{objective}")
        if logged:
            return logged.values[-1]
        known = self.facts.chances.get(objective)
        return None if known is None else known.value(self.columns(known))

    def columns(self, chance: Chance) -> int:
        """Return the candidates of a contrastive loss with a full queue; 0 if unknown."""
        own = self.facts.num_columns
        return own + chance.queue_size if own else 0

    def contrastive(self) -> dict[str, Curve]:
        """Return the curves of the contrastive losses."""
        return {
            name: curve
            for name, curve in self.objectives().items()
            if name in self.facts.chances and self.facts.chances[name].columns
        }

    def warm_from(self) -> int | None:
        """Return the step at which the learning rate has stopped rising; None if it still rises."""
        rates = max(self.under("lr/").values(), key=len, default=NONE)
        if len(rates) < 2:
            return None if not rates else rates.steps[0]
        for (step, rate), (_, later) in pairwise(zip(rates.steps, rates.values, strict=True)):
            if later <= rate:
                return step
        return None

    def is_judged(self, curve: Curve) -> bool:
        """Return whether a loss has had the steps after which it should have learned something."""
        warm = self.warm_from()
        if warm is None or len(curve) < RECENT:
            return False
        patience = max(PATIENCE, round((self.facts.max_steps or 0) * PATIENCE_SHARE))
        return self.step - max(warm, curve.steps[0]) >= patience

    def is_at_rest(self) -> bool:
        """Return whether the learning rate has fallen so far that weights may stay as they are."""
        rates = [curve.values for curve in self.under("lr/").values()]
        return any(values[-1] < 0.02 * max(values) for values in rates)


def middle(values: list[float]) -> float:
    """Return the median; 0 of nothing."""
    return median(values) if values else 0.0
