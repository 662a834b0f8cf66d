"""The run doctor: what ails a run, told from its log alone, live or afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from triptych.train.history import History, RunFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong with a run.

    Attributes:
        name: Which finding, one of docs/how-to/diagnose.md.
        where: The objective, source or side of the model; empty where it is the whole run.
        evidence: The numbers that show it, in words.
        value: The number that decided.
        chance: What the number is by chance, or where it should lie; None where there is no such
            value.
        next_step: What to do.
    """

    name: str
    where: str = ""
    evidence: str
    value: float
    chance: float | None = None
    next_step: str

    @property
    def title(self) -> str:
        """The name and where."""
        return f"{self.name} ({self.where})" if self.where else self.name

    def line(self) -> str:
        """Return the finding as one line."""
        return f"{self.title}: {self.evidence}. {self.next_step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """Finds one kind of trouble.

    Attributes:
        looks_for: In words.
        look: A pure function of the history.
        needs: Names, or beginnings of names, of the numbers that it reads; any of them will do.
        contrastive: Whether it means only runs with a contrastive loss.
        always: Whether logs of this version may lack the numbers although the run is of that kind.
    """

    looks_for: str
    look: Callable[[History], Iterable[Finding]]
    needs: tuple[str, ...]
    contrastive: bool = False
    always: bool = False

    def lacks(self, history: History) -> bool:
        """Return whether the log has none of the numbers that it needs, though it should."""
        if any(name.startswith(self.needs) for name in history.curves):
            return False
        if self.contrastive and not history.contrastive():
            return False
        return self.always or not history.has_vitals


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the doctor says of a run.

    Attributes:
        step: The last step that was logged.
        max_steps: Steps of the whole run; None if unknown.
        findings: What is wrong.
        unread: What could not be looked for, and what the log lacks for it.
        waiting: Losses that have not had enough steps to be judged.
    """

    step: int
    max_steps: int | None
    findings: tuple[Finding, ...]
    unread: Mapping[str, str]
    waiting: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "step": self.step,
            "max_steps": self.max_steps,
            "findings": [asdict(finding) for finding in self.findings],
            "not_looked_for": dict(self.unread),
            "too_early_for": list(self.waiting),
        }


def find(history: History) -> list[Finding]:
    """Return all findings of a history, in the order of the table of detectors."""
    from triptych.train.detectors import DETECTORS  # it builds on this module

    return [finding for detector in DETECTORS for finding in detector.look(history)]


def diagnose(history: History) -> Diagnosis:
    """Return what ails a run, and what could not be told."""
    from triptych.train.detectors import DETECTORS

    unread = {
        detector.looks_for: ", ".join(f"{name}*" for name in detector.needs)
        for detector in DETECTORS
        if detector.lacks(history)
    }
    unread |= {
        f"{name} at its chance value": f"chance/{name}"
        for name in history.objectives().keys() & history.facts.chances.keys()
        if history.chance(name) is None
    }
    waiting = [name for name, curve in history.objectives().items() if not history.is_judged(curve)]
    return Diagnosis(
        step=history.step,
        max_steps=history.facts.max_steps,
        findings=tuple(find(history)),
        unread=unread,
        waiting=tuple(waiting),
    )


EVERY_STEPS = 10
"""Least steps between two looks at a run that is going on."""


class LiveDoctor:
    """Tells of each finding once, when it first appears.

    Args:
        facts: What the configuration says.
        lines: What the run has logged before, if it goes on; what can be found in it was told then.
    """

    def __init__(self, facts: RunFacts, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.history = History(facts)
        for line in lines:
            self.history.add(line)
        self._looked = self.history.step
        self._told = {finding.title for finding in find(self.history)}

    def add(self, step: int, numbers: Mapping[str, float]) -> list[str]:
        """Take a line of the log; return what is new, a line each."""
        self.history.add({"step": step, **numbers})
        if step - self._looked < EVERY_STEPS and step != self.history.facts.max_steps:
            return []
        self._looked = step
        found = [finding for finding in find(self.history) if finding.title not in self._told]
        self._told |= {finding.title for finding in found}
        return [f"doctor, step {step}: {finding.line()}" for finding in found]
