"""What a task says about itself: every table of tasks is derived from its `TaskSpec`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from triptych.core.config import OpenConfig
from triptych.core.outputs import MetricValue
from triptych.data.collate import AnyCollator, PretrainingTextConfig
from triptych.data.collate.image import MultiCropConfig
from triptych.data.records import Record
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.evaluation.metrics import Metric
from triptych.models.families import FAMILIES, family_of
from triptych.text import Tokenizer
from triptych.train.chance import Chance
from triptych.train.task import Task
from triptych.train.work import StepWork

ABILITIES = {
    "decode": "generate text",
    "itc": "embed images and texts",
    "itm": "match images with texts",
    "TwoImageReader": "read two images",
}
"""Capabilities and contracts of models in words."""

LACKS = {
    "decode": "has no decoder",
    "itc": "has no embeddings that images and texts share",
    "itm": "has no matching head",
    "TwoImageReader": "has no way to join two images",
}
"""What a model is without that lacks them."""

CONFIGS: dict[str, type[TaskConfig]] = {}
"""Config classes of the registered tasks by each `kind` that loads them."""


class TaskConfig(OpenConfig):
    """Base of the settings of a task."""

    __slots__ = ()

    @classmethod
    def choices(cls) -> Mapping[str, type]:
        """Return the config classes of the registered tasks by each `kind` that loads them."""
        return CONFIGS


C = TypeVar("C", bound=TaskConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLengths:
    """Longest texts of the fine-tuning tasks, in tokens, including [CLS] and [SEP].

    Attributes:
        question: Longest question (released: 25).
        answer: Longest answer (released: 10 words).
        phrase: Longest phrase to ground (released: 20).
    """

    question: int = 25
    answer: int = 12
    phrase: int = 20


@dataclass(frozen=True, slots=True)
class PatchView:
    """What masking patches, or taking several crops, must know.

    Attributes:
        image: How images are prepared.
        patch_size: Side of a patch of the model, in pixels.
        crops: The crops of each image.
    """

    image: ImageTransformConfig
    patch_size: int
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollatorInputs:
    """What a collator is built from, beside the task's settings.

    Attributes:
        tokenizer: The model's tokenizer.
        captions: How captions are prepared.
        lengths: Longest texts.
        train: Whether records without labels are a problem.
        kind: Which of the task's kinds of batches, for a task of several.
        images: How images are prepared, for tasks that mask patches or take crops.
    """

    tokenizer: Tokenizer
    captions: PretrainingTextConfig
    lengths: TextLengths
    train: bool
    kind: str | None = None
    images: PatchView | None = None

    def patches(self) -> PatchView:
        """Return how images are prepared."""
        assert self.images is not None, "this task must know how images are prepared"
        return self.images


@dataclass(frozen=True, slots=True)
class TrainedModels:
    """Which models a task trains: those with every capability; any if there is no condition.

    Attributes:
        capabilities: Out of `capabilities` of `models/base.py`.
        contract: A Protocol of `models/base.py` that they fulfil, such as `TwoImageReader`.
        families: Keys of `FAMILIES`, where no capability can say it; empty for any.
    """

    capabilities: tuple[str, ...] = ()
    contract: type | None = None
    families: tuple[str, ...] = ()

    def accept(self, model: Any) -> bool:
        """Return whether the task trains a model."""
        return self.refusal(model) is None

    def refusal(self, model: Any) -> str | None:
        """Return why the task cannot train a model, in words; None where it can."""
        title = family_of(model.config).title
        lacking = [name for name in self.capabilities if name not in model.capabilities]
        if self.contract is not None and not isinstance(model, self.contract):
            lacking.append(self.contract.__name__)
        if lacking:
            first = lacking[0]
            has_not = LACKS.get(first, f"lacks `{first}`")
            return f"{title} {has_not}, so it cannot {ABILITIES.get(first, first)}"
        known = [FAMILIES.get(name) for name in self.families]
        if known and family_of(model.config) not in known:
            return f"only {self.words()} are trained for it"
        return None

    def words(self) -> str:
        """Return which models these are, such as "mPLUG models"."""
        titles = " or ".join(FAMILIES.get(name).title for name in self.families)
        models = f"{titles} models" if titles else "models"
        needed = [*self.capabilities, *([] if self.contract is None else [self.contract.__name__])]
        able = " and ".join(ABILITIES.get(name, name) for name in needed)
        return f"{models} that can {able}" if able else models


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[C]):
    """How a trained task is scored on held-out data: `triptych eval --task NAME`.

    Attributes:
        name: What users call it.
        field: The field of a record that holds the truth.
        metrics: From the settings, the scored records and all records of the source to metrics.
        num_images: How many images a record must have.
        one_per_image: Whether each image is scored once, however many records show it.
        reads_clips: Whether a record may show a clip in place of its one image.
        procedure: "predict" scores what the task predicts of each record; "search" ranks all
            texts for each image and the other way round; "names" compares images with the names
            of classes.
        decides: The metric that says which of two models is better; None for the first.
        reads: Fields that a record without the truth must have to be predicted, beside its images;
            "a|b" where either will do.
        kept: Parts of the predictions that a file keeps: "text", "box_xyxy", and names of scores;
            None keeps all.
        forms: In which forms of `evaluation/submissions.py` predictions can be submitted.
        method: The task's method that predicts a batch.
        collator: What makes its batches; None is the task's own.
    """

    name: str
    field: str
    metrics: Callable[[C, Sequence[Record], Sequence[Record]], list[Metric]] | None = None
    num_images: int = 1
    one_per_image: bool = False
    reads_clips: bool = False
    procedure: Literal["predict", "search", "names"] = "predict"
    decides: str | None = None
    reads: tuple[str, ...] = ()
    kept: tuple[str, ...] | None = None
    forms: tuple[str, ...] = ()
    method: str = "predict"
    collator: Callable[[C, CollatorInputs], AnyCollator[Any]] | None = None

    @property
    def truth(self) -> str:
        """The field that no prediction depends on; empty where the model reads `field` too."""
        return "" if self.procedure == "search" or self.field in self.reads else self.field


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """A recipe that trains a task.

    Attributes:
        name: What `triptych train` calls it.
        family: Key of the family whose models it trains; None for any that the task accepts.
        needs: What a record must have, where this differs from the task's own `needs`.
        teaches: For which of the task's methods and evaluations messages advise it; None for all.
        default: Whether `triptych init` chooses it for data that has what it needs.
        continues: Whether it goes on from the model of another run, which must then be named.
        build: From a scale to its RunConfig; None where `recipes/registry.py` lists it.
    """

    name: str
    family: str | None = None
    needs: tuple[str, ...] = ()
    teaches: tuple[str, ...] | None = None
    default: bool = False
    continues: bool = False
    build: Callable[[str], Any] | None = None


def at_model_size(image: ImageTransformConfig, model: Any) -> ImageTransformConfig:
    """Return how images are prepared, at the size that a model reads."""
    return replace(image, image_size=model.image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec(Generic[C]):
    """A task, for everything outside its own file. The `kind` of its config is its name.

    Attributes:
        config: Class of its settings.
        trained_for: The word in `trained_for` of a model folder.
        build: From settings, model, tokenizer and training records to the Task.
        collator: From settings and inputs to what makes batches from records.
        needs: Fields that a record must have; "a|b" where either will do.
        models: Which models it trains.
        recipes: Recipes that train it.
        serves: Methods of `serving/engine.py`, and so commands, that a model can then be asked.
        evaluations: How it is scored.
        also_scored: Names of other tasks' evaluations that a model can then be scored on.
        pretrains: Whether it starts from random weights or an earlier stage; others fine-tune.
        tokenizer: "required" for a task that reads texts; "optional" for one that reads images
            alone and can do with a vocabulary of special tokens; "none" where the model has none.
        has_classifier: Whether a classifier, `modules["head"]`, is stored beside the model.
        optional_objectives: Objectives that need a capability of the same name, and are skipped
            for a model without it.
        complete: Fills in settings that come from the training data, such as the classes.
        check_data: Raises a DataError where the training data lacks what the model needs.
        notes: Warnings, from settings and model.
        stored: What of the settings a model folder keeps.
        image: From the run's image settings and the model to how images are prepared.
        load_model: From a path and a side in pixels to the model to start from; None reads
            model folders.
        start_hint: What a new config must still be given, for `triptych init`.
        summary: What the model card says of the model beside what it says of all.
        usage: Python lines of the model card; None for those of most.
        work: From settings, the model's config and the tokens of a text to what one step computes;
            None where it is not counted, and then only the state's memory can be estimated.
        chances: From settings to what each loss is for a model that ignores its input, by
            objective; one that is not named has no such value.
    """

    config: type[C]
    trained_for: str
    build: Callable[[C, Any, Tokenizer, Iterable[Record]], Task]
    collator: Callable[[C, CollatorInputs], AnyCollator[Any]]
    needs: tuple[str, ...]
    models: TrainedModels = TrainedModels()
    recipes: tuple[TaskRecipe, ...] = ()
    serves: tuple[str, ...] = ()
    evaluations: tuple[Evaluation[C], ...] = ()
    also_scored: tuple[str, ...] = ()
    pretrains: bool = False
    tokenizer: Literal["required", "optional", "none"] = "required"
    has_classifier: bool = False
    optional_objectives: frozenset[str] = frozenset()
    complete: Callable[[C, Sequence[Record]], C] | None = None
    check_data: Callable[[C, Any, Iterable[Record]], None] | None = None
    notes: Callable[[C, Any], list[str]] | None = None
    stored: Callable[[C], TaskConfig] | None = None
    image: Callable[[ImageTransformConfig, Any], ImageTransformConfig] = at_model_size
    load_model: Callable[[str, int | None], Any] | None = None
    start_hint: str | None = None
    summary: Callable[[Any], str] | None = None
    usage: str | None = None
    work: Callable[[C, Any, int], StepWork] | None = None
    chances: Callable[[C], Mapping[str, Chance]] = lambda _: {}

    def uses(self) -> tuple[str, ...]:
        """Return the methods and evaluations that the task teaches."""
        return (*self.serves, *self.evaluation_names())

    def evaluation_names(self) -> tuple[str, ...]:
        """Return the evaluations that a model of this task can be scored on."""
        return (*(evaluation.name for evaluation in self.evaluations), *self.also_scored)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """What a task may look at before the first step.

    Attributes:
        records: The training data.
        image: How images are prepared.
        seed: Seed of the data.
        run_folder: Where the task may leave files.
    """

    records: Sequence[Record]
    image: ImageTransformConfig
    seed: int
    run_folder: Path


@runtime_checkable
class InitialisedTask(Protocol):
    """A task that sets weights from the training data, or by a rule of its own."""

    def initialise(self, setup: TrainingSetup) -> None:
        """Prepare the first step; called once in each process, also where a run resumes."""
        ...


@runtime_checkable
class SelfEvaluatedTask(Protocol):
    """A task that measures itself on training data while it trains."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Return numbers to log; called every `train.evaluate_every_steps` in one process."""
        ...

    def final_metrics(self) -> list[MetricValue]:
        """Return what the model card tells; called once after the last step."""
        ...


@runtime_checkable
class OwnWeightsTask(Protocol):
    """A task that saves other weights than those of its model, such as a teacher's."""

    def model_state(self) -> Mapping[str, Tensor]:
        """Return the state dict that the model folder gets."""
        ...
