"""From records to the text, box and key tensors of a batch: one collator for each kind of training.

`build_loader` adds `image` (B, 3, S, S) float32 and `index` (B,) int64 to what a collator gives.
"""

from triptych.data.collate.base import (
    AnyCollator,
    Collator,
    PairCollator,
    SampleProblem,
    TextCache,
    TextCollator,
    stable_key,
)
from triptych.data.collate.finetuning import (
    CaptioningCollator,
    GroundingCollator,
    ImageKeyCollator,
    RetrievalCollator,
    StatementCollator,
    VQACollator,
)
from triptych.data.collate.image import ImageCollator, MaskedImageCollator
from triptych.data.collate.pretraining import PretrainingCollator, PretrainingTextConfig

__all__ = [
    "AnyCollator",
    "CaptioningCollator",
    "Collator",
    "GroundingCollator",
    "ImageCollator",
    "ImageKeyCollator",
    "MaskedImageCollator",
    "PairCollator",
    "PretrainingCollator",
    "PretrainingTextConfig",
    "RetrievalCollator",
    "SampleProblem",
    "StatementCollator",
    "TextCache",
    "TextCollator",
    "VQACollator",
    "stable_key",
]
