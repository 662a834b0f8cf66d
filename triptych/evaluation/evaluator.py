"""The evaluator: one pass of a task over held-out data, scored by any number of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from triptych.core.outputs import MetricValue, Predictions
from triptych.core.processes import keep_freed_memory
from triptych.evaluation.metrics import Metric


class PredictingTask(Protocol):
    """The part of a task that the evaluator uses.

    Attributes:
        modules: The modules that are put into evaluation mode.
    """

    @property
    def modules(self) -> nn.ModuleDict: ...  # noqa: D102 - documented above

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return predictions for one batch; reads no labels."""
        ...


@contextmanager
def evaluation_mode(modules: nn.Module) -> Iterator[None]:
    """Disable dropout and the like, and restore each module's mode afterwards."""
    training = [module for module in modules.modules() if module.training]
    modules.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def predict_batches(
    task: PredictingTask,
    loader: Iterable[Mapping[str, Tensor]],
    *,
    device: torch.device | None = None,
    offset: int = 0,
) -> Iterator[Predictions]:
    """Predict every batch once.

    Args:
        task: Predicts a batch.
        loader: Batches of tensors, each sample of the split once.
        device: Where batches are moved before `predict`; None leaves them where they are.
        offset: Place of the loader's first sample in the split.
    """
    if device is not None and device.type == "cpu":
        keep_freed_memory()
    with evaluation_mode(task.modules):
        for batch in loader:
            moved = batch if device is None else {k: v.to(device) for k, v in batch.items()}
            if offset:
                moved = {**moved, "index": moved["index"] + offset}
            with torch.inference_mode():
                predictions = task.predict(moved)
            yield predictions


def evaluate(
    task: PredictingTask,
    loader: Iterable[Mapping[str, Tensor]],
    metrics: Sequence[Metric],
    *,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[MetricValue]:
    """Predict every batch once and score the predictions.

    Args:
        task: Predicts a batch.
        loader: Batches of tensors, each sample of the split once.
        metrics: What to compute; each sees every batch.
        device: Where batches are moved before `predict`; None leaves them where they are.
        progress: Called after each batch with the number of samples done.

    Returns:
        The numbers of all metrics, in their order.

    Raises:
        DataError: A sample comes twice, has no reference, or there is none.
        CapabilityError: A metric needs what the task does not predict.
    """
    done = 0
    with evaluation_mode(task.modules):
        for predictions in predict_batches(task, loader, device=device):
            for metric in metrics:
                metric.update(predictions)
            done += len(predictions.index)
            if progress is not None:
                progress(done)
        # A second stage of retrieval still asks the model, so it runs before the mode is restored.
        with torch.inference_mode():
            return [value for metric in metrics for value in metric.compute()]


def to_json(values: Sequence[MetricValue]) -> dict[str, dict[str, Any]]:
    """Return what `json.dump` writes to a results file: {name: {value, low, high, ...}}."""
    return {
        value.name: {
            "value": value.value,
            "low": value.low,
            "high": value.high,
            "num_items": value.num_items,
            "protocol": value.protocol,
        }
        for value in values
    }
