"""Pseudo-likelihood of texts under a masked language model (Salazar et al. 2020, equation 1).

Each token is hidden in turn, and its log-probability given all others is added up: that is no
probability of the text, so it is comparable among masked language models alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.core.outputs import Predictions
from triptych.data.collate.pretraining import OneHiddenCollator
from triptych.data.records import Record
from triptych.evaluation.metrics import Metric
from triptych.evaluation.perplexity import PerplexityMetric
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.spec import CollatorInputs, Evaluation

ROWS_AT_ONCE = 256

HiddenLogits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ids, mask and labels (R, L) to (H, V) scores of the hidden tokens, row by row."""


def text_pseudo_likelihood(hidden_logits: HiddenLogits, batch: Mapping[str, Tensor]) -> Predictions:
    """Return the summed "nll" in nats and the number of "tokens" of each text.

    Args:
        hidden_logits: The model.
        batch: As `OneHiddenCollator` makes it, with `index` (B,).
    """
    index = batch["index"].tolist()
    rows = batch["text_row"].cpu()
    losses = []
    for part in torch.arange(len(rows), device=batch["text_row"].device).split(ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
        ids, mask, labels = (batch[k][part] for k in ("mlm_token_ids", "text_mask", "mlm_labels"))
        logits = hidden_logits(ids, mask, labels).float()
        losses.append(F.cross_entropy(logits, labels[labels != IGNORE_INDEX], reduction="none"))
    nll = torch.zeros(len(index), dtype=torch.float64)
    nll.index_add_(0, rows, torch.cat(losses).double().cpu())
    tokens = torch.bincount(rows, minlength=len(index))
    return Predictions(index=index, scores={"nll": nll, "tokens": tokens})


def _metrics(config: Any, records: Sequence[Record], all_records: Sequence[Record]) -> list[Metric]:
    del config, all_records
    protocol = "Pseudo-perplexity: each token hidden in turn, given all others of its text."
    return [PerplexityMetric(len(records), "pseudo_perplexity", protocol)]


def pseudo_perplexity(
    field: str, max_text_tokens: Callable[[Any, CollatorInputs], int]
) -> Evaluation[Any]:
    """Return the evaluation of a task with a method `pseudo_likelihood`.

    Args:
        field: Where the text of a record stands: "text" or "caption".
        max_text_tokens: From the settings and the inputs to the longest text.
    """
    return Evaluation(
        "pseudo_perplexity",
        field,
        _metrics,
        num_images=0,
        reads=(field,),
        method="pseudo_likelihood",
        collator=lambda config, inputs: OneHiddenCollator(
            inputs.tokenizer, max_text_tokens(config, inputs)
        ),
    )
