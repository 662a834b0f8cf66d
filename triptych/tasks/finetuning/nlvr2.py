"""NLVR2: predict whether a statement is true of two images (mPLUG, section 5.2.5; VLMo, 3.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import CapabilityError
from triptych.core.outputs import Predictions
from triptych.data.collate import (
    StatementCollator,
)
from triptych.data.records import Record
from triptych.evaluation.metrics import (
    ClassificationMetric,
    Metric,
)
from triptych.models.base import TwoImageReader, VisionLanguageModel
from triptych.tasks.finetuning.base import HeadConfig, ModelTask
from triptych.tasks.finetuning.image_text_classification import class_loss, class_predictions
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.train.chance import Chance

TRUTH = ("false", "true")
"""The classes, in the order of the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NLVR2Config(TaskConfig):
    """Settings of judging statements about two images.

    Attributes:
        merge: How mPLUG merges what the text reads from the two images: "mean", or "linear", a
            layer initialised as the mean; None is "mean". The paper says "merged"; BLIP has the
            mean in its lower six layers and a linear layer in the upper six. Must be None for VLMo
            and FLAVA, which classify the concatenated states of both pairs.
        max_text_tokens: Longest statement, including [CLS] and [SEP].
        swap_probability: Share of training samples whose images are swapped, and the words left and
            right with them (mPLUG's released dataset code: half; VLMo's: none).
        head: The classifier on the fused text [CLS] (mPLUG: an MLP; ALBEF, BLIP: 768-768-2, ReLU),
            or on the states of both pairs (VLMo: as wide as both, LayerNorm, GELU).
    """

    OLD_KINDS: ClassVar[tuple[str, ...]] = ("vlmo_nlvr2",)

    merge: Literal["mean", "linear"] | None = None
    max_text_tokens: int = 40
    swap_probability: float = 0.5
    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(hidden_ratio=1.0, norm=False, activation="relu")
    )

    def __post_init__(self) -> None:
        """Reject values out of range."""
        check(self.max_text_tokens >= 3, "max_text_tokens", self.max_text_tokens, "be at least 3")
        probability = self.swap_probability
        check(0 <= probability <= 1, "swap_probability", probability, "be from 0 to 1")


VLMO_NLVR2 = NLVR2Config(swap_probability=0.0, head=HeadConfig(hidden_ratio=1.0))
"""The settings of VLMo's authors."""


class PairHead(nn.Module):
    """A classifier, and what a model needs besides its own layers to read two images."""

    def __init__(self, pairs: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.pairs, self.classifier = pairs, classifier

    def forward(self, state: Tensor) -> Tensor:
        """Classify (B, D) states."""
        return self.classifier(state)  # type: ignore[no-any-return]


class NLVR2(ModelTask[VisionLanguageModel]):
    """Cross-entropy on true or false.

    Args:
        model: Must be able to read two images: an mPLUG whose fusion network allows it, a FLAVA, or
            a VLMo, which gets a type row for the second image if it has none.
        config: Merge and classifier.

    Raises:
        CapabilityError: The model cannot read two images.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "label", "index"})
    objective_names = frozenset({"classification"})

    def __init__(self, model: VisionLanguageModel, config: NLVR2Config) -> None:
        if not isinstance(model, TwoImageReader):
            raise CapabilityError(
                f"{type(model).__name__} cannot read two images, which statements about pairs "
                "need: take an mPLUG, a VLMo or a FLAVA"
            )
        pairs = model.prepare_two_images(config.merge)
        head: nn.Module = config.head.build(model.two_image_dim, len(TRUTH))
        super().__init__(model, head if pairs is None else PairHead(pairs, head))
        self._reader: TwoImageReader = model
        self._pairs = pairs
        self.config = config

    def pair_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 2) float32 scores of false and true.

        Args:
            batch: `image` (B, 2, 3, H, W), `token_ids` and `text_mask` (B, L).
        """
        state = self._reader.two_image_state(
            batch["image"], batch["token_ids"], batch["text_mask"], self._pairs
        )
        return self.scores(state)

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"classification": mean cross-entropy}."""
        del active
        return {"classification": class_loss(self.pair_scores(batch), batch["label"])}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Judge each statement; reads no `label`."""
        return class_predictions(batch, self.pair_scores(batch), TRUTH)


def _statement_collator(config: NLVR2Config, inputs: CollatorInputs) -> StatementCollator:
    return StatementCollator(
        inputs.tokenizer,
        max_text_tokens=config.max_text_tokens,
        swap_probability=config.swap_probability,
        train=inputs.train,
    )


def _truth_metrics(
    config: NLVR2Config, records: Sequence[Record], all_records: Sequence[Record]
) -> list[Metric]:
    del config, all_records
    truth = {i: TRUTH[bool(r.label)] for i, r in enumerate(records)}
    return [ClassificationMetric(truth, "nlvr2", with_majority=True)]


SPEC = TaskSpec(
    config=NLVR2Config,
    trained_for="nlvr2",
    build=lambda config, model, *_: NLVR2(model, config),
    collator=_statement_collator,
    needs=("images", "statement", "label"),
    models=TrainedModels(contract=TwoImageReader),
    recipes=(
        TaskRecipe("mplug.nlvr2", "mplug", default=True),
        TaskRecipe("vlmo.nlvr2", "vlmo"),
        TaskRecipe("flava.nlvr2", "flava"),
    ),
    serves=("judge",),
    evaluations=(
        Evaluation(
            "nlvr2",
            "label",
            _truth_metrics,
            num_images=2,
            reads=("statement",),
            kept=("label", "positive"),
            forms=("nlvr2", "csv"),
        ),
    ),
    has_classifier=True,
    chances=lambda config: {"classification": Chance(labels="label")},
)
