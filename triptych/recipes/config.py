"""The whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.core.config import check
from triptych.data.collate import PretrainingTextConfig
from triptych.data.collate.image import MultiCropConfig
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.mplug.config import FusionName
from triptych.tasks.registry import TASKS as TASKS  # loading a run needs every task
from triptych.tasks.spec import TaskConfig, TextLengths
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig

FUSION_FIELDS = ("fusion", "connected_layers", "connected_image_residual")
"""Fields of `ModelSource` that choose the fusion network of a new mPLUG model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where the model comes from.

    Attributes:
        name: A registered variant (see `triptych models`); its weights are randomly initialised.
        image_size: Side of the input in pixels; None keeps the variant's or the folder's own. A
            folder's position table is resized bilinearly.
        drop_path: Drop path rate, the probability that training skips a residual branch (VLMo);
            None keeps the variant's or the folder's own.
        fusion: Network that fuses image and text in a new mPLUG model (paper, figure 4);
            None keeps the variant's own, "skip_connected". With "none" there is no ITM.
        connected_layers: Which layers of a new skip-connected network, from 0, are
            connected-attention; None keeps the variant's own. `strided_layers` in
            `models/mplug/config.py` gives those of a stride.
        connected_image_residual: Whether a connected layer of such a network adds its image output
            to its image input (released code); None keeps the variant's own.
        init_from: A model folder to start from, a folder of transformers, or the hub id of either;
            its sizes and its tokenizer then count, and `name` is not read.
        init_vision_from: Published weights that the image encoder of a new model starts from:
            for mPLUG a CLIP of OpenAI's (.pt) or of transformers' (folder).
        init_text_from: Published weights that the text side of a new model starts from: for
            mPLUG a folder with BERT. Its vocabulary is then the tokenizer.
    """

    name: str = "mplug_tiny"
    image_size: int | None = None
    drop_path: float | None = None
    fusion: FusionName | None = None
    connected_layers: tuple[int, ...] | None = None
    connected_image_residual: bool | None = None
    init_from: str | None = None
    init_vision_from: str | None = None
    init_text_from: str | None = None

    def __post_init__(self) -> None:
        """Reject two starts for the same weights, and another network around given weights."""
        for name in ("init_vision_from", "init_text_from", *FUSION_FIELDS):
            is_allowed = self.init_from is None or getattr(self, name) is None
            must = "be absent where init_from gives a whole model"
            check(is_allowed, f"model.{name}", getattr(self, name), must)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Where the tokenizer comes from, for a randomly initialised model.

    Attributes:
        path: A `tokenizer.json`, a BERT `vocab.txt`, or a folder with one; None trains a WordPiece
            on the texts of the training data.
        vocab_size: Largest vocabulary of a trained tokenizer, special tokens included.
        num_unused: Free tokens of a trained tokenizer; grounding takes its coordinates from them.
    """

    path: str | None = None
    vocab_size: int = 8192
    num_unused: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What to train on.

    Attributes:
        train: Sources, joined in this order; or drawn by their ratios, see `DataSourceConfig`.
        max_bad_share: Largest allowed share of unreadable samples; above it the run stops.
        num_workers: Processes that prepare batches; 0 prepares them between steps.
        cache_mib: Memory for decoded images in each of these processes, in MiB.
        seed: Seed of order, crops, masks and prefixes.
    """

    train: tuple[DataSourceConfig, ...] = ()
    max_bad_share: float = 0.01
    num_workers: int = 0
    cache_mib: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject shares and counts out of range."""
        check(0 <= self.max_bad_share <= 1, "max_bad_share", self.max_bad_share, "be from 0 to 1")
        check(self.num_workers >= 0, "num_workers", self.num_workers, "be at least 0")
        check(self.cache_mib >= 0, "cache_mib", self.cache_mib, "be at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        recipe: Name of the recipe that this began from.
        scale: Its scale: smoke, tiny, small, base or large.
        model: Where the model comes from.
        tokenizer: Where the tokenizer comes from.
        data: What to train on.
        image: How images are prepared; `image_size` is set to the model's.
        crops: The crops of each image, for self-distillation.
        captions: How captions are prepared.
        lengths: Longest texts of the fine-tuning tasks.
        task: What is trained.
        train: How long, how large, how often saved.
        optim: AdamW and its schedule.
        weights: Weights of the objectives over the steps; empty for 1 each.
    """

    recipe: str
    scale: str
    model: ModelSource = field(default_factory=ModelSource)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    image: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    captions: PretrainingTextConfig = field(default_factory=PretrainingTextConfig)
    lengths: TextLengths = field(default_factory=TextLengths)
    task: TaskConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    weights: tuple[ObjectiveWeight, ...] = ()
