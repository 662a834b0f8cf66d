"""The Task protocol: the trainer's whole knowledge of what it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from triptych.core.outputs import BatchKind, Predictions


class Task(Protocol):
    """A model with its heads and objectives, ready to be trained.

    `step` is always the number of optimizer steps done.

    Attributes:
        modules: Everything that is trained, saved and optimised, momentum copies and queues (as
            buffers) included. Parameters with `requires_grad` False are saved, not optimised.
        batch_keys: Keys that `losses` reads; checked once against the loader's first batch.
        objective_names: Every objective that `losses` can compute.
    """

    @property
    def modules(self) -> nn.ModuleDict: ...  # noqa: D102 - documented above

    @property
    def batch_keys(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def objective_names(self) -> frozenset[str]: ...  # noqa: D102

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return unweighted scalar losses.

        Called once a micro-batch, so `accumulate` times before one `after_step`.

        Args:
            batch: What the loader yields, on the training device.
            active: Objectives whose weight is not zero at this step; each must be in the result.

        Returns:
            Scalars by objective. Other keys are logged and have no gradient.
        """
        ...

    def after_step(self, step: int) -> None:
        """Update what gradients do not train: momentum copies, queues, temperature clamp.

        Args:
            step: Optimizer steps done, including this one (1 in the first call).
        """
        ...

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return predictions for a batch; reads no labels. The trainer itself never calls it."""
        ...


class DataState(Protocol):
    """What tells a run that goes on whether its data is still the same."""

    def begin(self, saved: dict[str, Any] | None, step: int) -> list[str]:
        """Look at the data, on all processes together; return what to tell the user.

        Args:
            saved: What `state` returned when the checkpoint was written; None for a new run, empty
                where the checkpoint holds nothing of the kind.
            step: Of the checkpoint.

        Raises:
            CheckpointError: The data has changed.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        ...


@runtime_checkable
class MixedTask(Protocol):
    """A task that takes batches of several kinds, one per step, such as image-text pairs and texts.

    `losses` is asked for the active objectives of the batch's kind and no others, so `active` tells
    the kind. `batch_keys` holds the keys that all kinds have.

    Attributes:
        batch_kinds: What batches of each kind hold and can be trained on, by name.
    """

    @property
    def batch_kinds(self) -> Mapping[str, BatchKind]: ...  # noqa: D102


@runtime_checkable
class WatchedTask(Protocol):
    """A task that says more of itself than its losses, for the log and `train/doctor.py`."""

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the last micro-batch, whose names have a slash.

        Called once after each micro-batch's `losses`; they are means over the micro-batches, the
        processes and the steps of a line.

        Args:
            spread: Whether those of embeddings are wanted, too.
        """
        ...

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the task's state after a step that is logged."""
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """A task with state outside `modules` that a resumed run needs."""

    def extra_state(self) -> dict[str, Any]:
        """Return nested dicts and lists of tensors and JSON values (tuples come back as lists)."""
        ...

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        ...
