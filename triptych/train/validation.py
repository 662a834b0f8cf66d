"""Validation in training: when it is due, which model is the best so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from triptych.core.config import check, check_range
from triptych.core.errors import ConfigError, nearest
from triptych.core.outputs import MetricValue

PREFIX = "val/"
"""Of the curves."""

VALIDATIONS = 20
"""Of a run that does not say how many it wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """How a run is validated on data.val or data.val_share; without either, it is not.

    The model after the last step is validated in any case.
    """

    every_steps: int | None = None
    """Steps between validations; None: a twentieth of train.max_steps, or what every_epochs says.
    """

    every_epochs: float | None = None
    """Passes over the training data between validations, instead of every_steps."""

    task: str | None = None
    """What is measured: an evaluation of the task, as `triptych eval --task` names it, or `losses`
    for those of training; None: the first evaluation that model and data allow, else the losses."""

    metric: str | None = None
    """The number that says which model is the best; None: the first one, of captions CIDEr, of
    losses their weighted sum."""

    patience: int | None = None
    """Validations in a row without a better metric after which training ends; None: never early."""

    limit: int | None = None
    """Only the first so many records of the validation data; None takes all."""

    batch_size: int | None = None
    """Samples at a time in a process; None: those of a micro-batch of training."""

    rerank_top_k: int = 0
    """Retrieval: candidates of each query that ITM re-ranks; 0 ranks by similarity alone, which is
    much quicker."""

    def __post_init__(self) -> None:
        for field in ("every_steps", "patience", "limit", "batch_size"):
            value = getattr(self, field)
            check(value is None or value >= 1, field, value, "be at least 1, or absent")
        epochs = self.every_epochs
        check(epochs is None or epochs > 0, "every_epochs", epochs, "be above 0, or absent")
        both = epochs is not None and self.every_steps is not None
        check(not both, "every_epochs", epochs, "be absent where every_steps is given")
        check_range("rerank_top_k", self.rerank_top_k, 0, 1_000_000)

    def steps_between(self, *, max_steps: int, num_records: int, global_batch_size: int) -> int:
        """Return the steps between two validations.

        Args:
            max_steps: Of the run.
            num_records: Records of the training data, all sources together.
            global_batch_size: Samples of a step.
        """
        if self.every_steps is not None:
            return self.every_steps
        if self.every_epochs is not None:
            return max(1, round(self.every_epochs * num_records / global_batch_size))
        return max(1, max_steps // VALIDATIONS)


class Measure(Protocol):
    """Scores the model that is being trained; changes nothing that a step reads."""

    def __call__(self, device: torch.device, precision: str, *, trial: bool) -> list[MetricValue]:
        """Return the metrics, of a few records alone for a trial.

        All processes call it together; the result of rank 0 counts.
        """
        ...


@dataclass(frozen=True, slots=True)
class Validated:
    """What a validation found.

    Attributes:
        step: Optimizer steps done.
        values: Its metrics.
    """

    step: int
    values: tuple[MetricValue, ...]


@dataclass(frozen=True, slots=True)
class Best:
    """The best model so far.

    Attributes:
        step: Optimizer steps done.
        value: Of the metric that decides.
    """

    step: int
    value: float


class Validator:
    """Keeps count of a run's validations; all processes count alike, from the numbers of rank 0.

    Args:
        measure: Scores the model.
        keep: Keeps the model as the best, with what its card says of that; all processes call it
            together.
        config: Which metric decides, and how patient to be.
        every: Steps between validations.
        max_steps: Of the run.
        decides: The metric that decides where the config names none; None: the first.
        told: What is measured on what, in words.

    Attributes:
        best: The best model so far; None before the first finite value.
        last: The last validation; None before the first.
        metric: The name of the metric that decides; None before it is known.
    """

    def __init__(
        self,
        measure: Measure,
        keep: Callable[[Validated, str], None],
        config: ValidationConfig,
        *,
        every: int,
        max_steps: int,
        decides: str | None = None,
        told: str = "",
    ) -> None:
        self.measure, self._keep = measure, keep
        self._patience = config.patience
        self._every, self._max_steps = every, max_steps
        self.metric = config.metric or decides
        self._is_named = config.metric is not None
        self._told = told
        self._settings = {"every_steps": every, "limit": config.limit, "metric": config.metric}
        self._higher = True
        self._without_gain = 0
        self.best: Best | None = None
        self.last: Validated | None = None

    def is_due(self, step: int) -> bool:
        """Return whether the model is validated after a step."""
        return step % self._every == 0 or step == self._max_steps

    @property
    def has_stopped(self) -> bool:
        """Whether patience has run out before the last step."""
        if self._patience is None or self.last is None or self.last.step == self._max_steps:
            return False
        return self._without_gain >= self._patience

    def choose(self, values: Sequence[MetricValue]) -> MetricValue:
        """Return the metric that decides.

        Raises:
            ConfigError: There is no such metric; the message names those that there are.
        """
        named = {value.name: value for value in values}
        if self.metric is None or (self.metric not in named and not self._is_named):
            self.metric = values[0].name
        if self.metric not in named:
            is_part = bool(named.keys() & set(_wholes(self.metric)))
            known = list(named) if is_part else [value.name for value in main_values(values)]
            second = self.metric.endswith("_itm")
            more = "; those that end in _itm need validation.rerank_top_k 16" if second else ""
            raise ConfigError(
                f"validation.metric = {self.metric!r}{nearest(self.metric, known)}: "
                f"the validation gives {', '.join(known)}{more}"
            )
        self._higher = named[self.metric].higher_is_better
        return named[self.metric]

    def begin(self, values: Sequence[MetricValue]) -> str:
        """Take note of a trial; return what will be measured, in words.

        Raises:
            ConfigError: The metric that should decide is not among the values.
        """
        names = {value.name for value in values}
        is_part = self._is_named and names & set(_wholes(self.metric or ""))
        if self.metric in names or not is_part:  # few records may lack that of one class
            self.choose(values)
        way = "higher" if self._higher else "lower"
        patience = f", patience {self._patience}" if self._patience is not None else ""
        return (
            f"validation: {self._told}, every {self._every} steps; the best model by "
            f"{self.metric} ({way} is better) is kept{patience}"
        )

    def add(self, step: int, values: Sequence[MetricValue]) -> bool:
        """Count a validation, and keep the model if it is the best; return whether it is.

        Raises:
            ConfigError: The metric that should decide is not among the values.
        """
        value = self.choose(values).value
        self.last = Validated(step, tuple(main_values(values)))
        if not self._is_better(value):
            self._without_gain += 1
            return False
        self.best, self._without_gain = Best(step, value), 0
        self._keep(self.last, self.note())
        return True

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        return value > self.best.value if self._higher else value < self.best.value

    def line(self, seconds: float) -> str:
        """Return the last validation as one line."""
        assert self.last is not None
        shown = "  ".join(f"{value.name} {value.value:.4f}" for value in self.last.values)
        return (
            f"validation after step {self.last.step}: {shown}  ({self.ranking()}, {seconds:.1f} s)"
        )

    def ranking(self) -> str:
        """Return how the last model stands to the best one, in words."""
        if self.best is None:
            return f"no finite {self.metric} so far"
        if self.last is not None and self.best.step == self.last.step:
            return f"best {self.metric} so far"
        return f"best {self.metric}: {self.best.value:.4f} after step {self.best.step}"

    def stop_line(self) -> str:
        """Return why training ended early."""
        assert self.last is not None
        return (
            f"stopped early after step {self.last.step} of {self._max_steps}: "
            f"{self._without_gain} validations in a row without a better one ({self.ranking()})"
        )

    def note(self) -> str:
        """Return what a model card says of the weights that were validated last."""
        if self.best is None or self.last is None:
            return ""
        here = f"These are the weights of step {self.last.step:,}"
        if self.best.step == self.last.step:
            return f"{here}: by {self.metric} on held-out data, none before were better."
        stopped = ", after which training stopped early" if self.has_stopped else ""
        return (
            f"{here}{stopped}. By {self.metric} on held-out data those of step "
            f"{self.best.step:,} were the best ({self.best.value:.4f}), kept in the run as `best`."
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON values."""
        return {
            "settings": dict(self._settings),
            "metric": self.metric,
            "higher": self._higher,
            "best": None if self.best is None else asdict(self.best),
            "without_gain": self._without_gain,
            "last": None if self.last is None else asdict(self.last),
            "note": self.note(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ConfigError: The run began with other settings.
        """
        for name, began in state["settings"].items():
            if self._settings[name] != began:
                raise ConfigError(
                    f"validation.{name} is {self._settings[name]} now and was {began} when the run "
                    "began: set it back, since the best model is one by the same measure"
                )
        self.metric, self._higher = state["metric"], state["higher"]
        self._without_gain = state["without_gain"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.last = read_validation(state["last"])


def read_validation(stored: Mapping[str, Any] | None) -> Validated | None:
    """Return the last validation out of a validator's state."""
    if stored is None:
        return None
    return Validated(stored["step"], tuple(MetricValue(**value) for value in stored["values"]))


def main_values(values: Sequence[MetricValue]) -> list[MetricValue]:
    """Return the metrics without the parts of one, such as the accuracy of each class."""
    names = {value.name for value in values}
    return [value for value in values if not names & set(_wholes(value.name))]


def _wholes(name: str) -> list[str]:
    """Return the names of the metrics that one may be a part of: `a` and `a/b` of `a/b/c`."""
    places = [place for place, letter in enumerate(name) if letter == "/"]
    return [name[:place] for place in places]
