"""What each part of the demo costs on this machine, by real steps at the real batch size."""

from __future__ import annotations

import time
from pathlib import Path

from triptych.recipes.config import RunConfig
from triptych.workflows.evaluate import evaluate_model

ALL_TASKS_OVER_RETRIEVAL = 2.0
"""Seconds to evaluate all tasks on an image over those of retrieval, whose work does not depend on
what a model has learned: 9 s for retrieval among 500 images of the demo, 9 s for all the rest."""


def time_evaluation(model: Path, run: RunConfig, most: int, rerank_top_k: int) -> float:
    """Return the seconds of all tasks on an image.

    Retrieval among a few images is slow, as all that is done first; what more images take counts.

    Args:
        model: A model folder of pre-training.
        run: Whose training data is searched.
        most: Images of the larger search.
        rerank_top_k: Candidates that ITM re-ranks.
    """
    few = max(1, most // 4)
    took = []
    for limit in (few, most):
        start = time.perf_counter()
        evaluate_model(
            model,
            "retrieval",
            run.data.train[0],
            limit=limit,
            rerank_top_k=rerank_top_k,
            max_bad_share=1.0,
        )
        took.append(time.perf_counter() - start)
    return ALL_TASKS_OVER_RETRIEVAL * max(1e-4, (took[1] - took[0]) / max(1, most - few))
