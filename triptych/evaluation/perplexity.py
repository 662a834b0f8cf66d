"""Perplexity: how surprised a model is by texts that people wrote; lower is better."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.evaluation.bootstrap import bootstrap_sums, interval_text
from triptych.evaluation.metrics import ByIndex

Floats = npt.NDArray[np.float64]


def compute_perplexity(nll: npt.ArrayLike, tokens: npt.ArrayLike) -> float:
    """Return exp(sum of negative log-likelihoods / number of tokens): the mean is over tokens.

    Args:
        nll: (N,) summed negative log-likelihood of each text, in nats.
        tokens: (N,) how many tokens of it were predicted.

    Raises:
        DataError: There is no token, the lengths differ, or a number is not finite or below 0.
    """
    table = np.stack([_column(nll, "nll"), _column(tokens, "tokens")], axis=1)
    return float(_perplexities(table.sum(0)[None])[0])


def _column(values: npt.ArrayLike, name: str) -> Floats:
    column = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(column).all() or (column < 0).any():
        raise DataError(f"perplexity: {name} must be finite and at least 0")
    return column


def _perplexities(sums: Floats) -> Floats:
    """Return (R,) perplexities of (R, 2) sums; those of no token are infinite."""
    if not sums[:, 1].any():
        raise DataError("perplexity: there is no token to predict; evaluate at least one text")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.exp(np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.inf))


class PerplexityMetric:
    """Perplexity per token, under the name that is given.

    Args:
        expected: How many texts there are.
        name: Key of the number.
        protocol: Under what the texts are likely, in one sentence.
    """

    def __init__(self, expected: int, name: str, protocol: str) -> None:
        self.name, self._protocol = name, protocol
        self._found: ByIndex[tuple[float, int]] = ByIndex(name, expected)

    def update(self, predictions: Predictions) -> None:
        """Take in the summed "nll" and the number of "tokens" of each text."""
        scores: Mapping[str, npt.ArrayLike] = predictions.scores
        if not {"nll", "tokens"} <= scores.keys():
            raise CapabilityError(f"{self.name}: the task gives no likelihood of texts")
        nll, tokens = (np.asarray(scores[key]).tolist() for key in ("nll", "tokens"))
        self._found.add(predictions.index, list(zip(nll, tokens, strict=True)))

    def compute(self) -> list[MetricValue]:
        """Return the number; the bootstrap draws texts, whose tokens stay together."""
        table = np.array(list(self._found.items().values()), dtype=np.float64)
        low, high = bootstrap_sums(table, _perplexities)
        words = f"{self._protocol} {int(table[:, 1].sum())} tokens; lower is better."
        return [
            MetricValue(
                name=self.name,
                value=compute_perplexity(table[:, 0], table[:, 1]),
                low=low,
                high=high,
                num_items=len(table),
                protocol=f"{words}{self._found.missing()} {interval_text()}",
                higher_is_better=False,
            )
        ]
