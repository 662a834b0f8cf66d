"""Blind baselines: what can be scored without looking at the image.

Each is fitted on the training split. A model that is not clearly better has learnt the language
of the questions, not the images (Goyal et al., 2017).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.core.errors import DataError
from triptych.evaluation.boxes import xywh_to_xyxy


@dataclass(frozen=True, slots=True)
class MajorityAnswers:
    """The most frequent training answer of each question type.

    Attributes:
        by_type: Answer by question type.
        overall: Answer for a type that training never saw, or for no type.
    """

    by_type: dict[str, str]
    overall: str

    @classmethod
    def fit(
        cls, question_types: Iterable[str | None], answers: Iterable[Sequence[str]]
    ) -> MajorityAnswers:
        """Count the answers of a training split; each human answer counts once.

        Args:
            question_types: Type of each question, None if it has none.
            answers: The human answers of each question.

        Raises:
            DataError: There is no answer.
        """
        counts: dict[str, Counter[str]] = {}
        total: Counter[str] = Counter()
        for question_type, given in zip(question_types, answers, strict=True):
            total.update(given)
            if question_type is not None:
                counts.setdefault(question_type, Counter()).update(given)
        if not total:
            raise DataError("the training split has no answer; the blind baseline needs one")
        by_type = {kind: count.most_common(1)[0][0] for kind, count in counts.items() if count}
        return cls(by_type, total.most_common(1)[0][0])

    def answer(self, question_type: str | None) -> str:
        """Return the answer to every question of this type."""
        return (
            self.overall if question_type is None else self.by_type.get(question_type, self.overall)
        )


@dataclass(frozen=True, slots=True)
class MeanBox:
    """The mean training box.

    Attributes:
        xyxy: Left, top, right, bottom as fractions of the image's width and height.
    """

    xyxy: tuple[float, float, float, float]

    @classmethod
    def fit(cls, boxes_xywh: Tensor, sizes: Tensor) -> MeanBox:
        """Average the boxes of a training split.

        Args:
            boxes_xywh: (N, 4) boxes in pixels.
            sizes: (N, 2) width and height of each image in pixels.

        Raises:
            DataError: There is no box.
        """
        if len(boxes_xywh) == 0:
            raise DataError("the training split has no box; the mean-box baseline needs one")
        fractions = xywh_to_xyxy(boxes_xywh.double()) / sizes.double().repeat(1, 2)
        left, top, right, bottom = fractions.mean(0).tolist()
        return cls((left, top, right, bottom))

    def predict(self, sizes: Tensor) -> Tensor:
        """Return (N, 4) float boxes, xyxy in pixels, for images of (N, 2) width and height."""
        fractions = torch.tensor(self.xyxy, dtype=torch.float32, device=sizes.device)
        return fractions * sizes.float().repeat(1, 2)


def most_frequent_caption(captions: Iterable[str]) -> str:
    """Return the caption that occurs most often in a training split; of several the first.

    Raises:
        DataError: There is no caption.
    """
    counts = Counter(captions)
    if not counts:
        raise DataError("the training split has no caption; the caption baseline needs one")
    return counts.most_common(1)[0][0]
