"""The whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.core.config import MAX_WORKERS, check, check_range
from triptych.data.collate import PretrainingTextConfig
from triptych.data.collate.image import MultiCropConfig
from triptych.data.images import MAX_PIXELS
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.mplug.config import FusionName
from triptych.nn.lora import LoRAConfig
from triptych.tasks.registry import TASKS as TASKS  # loading a run needs every task
from triptych.tasks.spec import TaskConfig, TextLengths
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig
from triptych.train.validation import ValidationConfig

FUSION_FIELDS = ("fusion", "connected_layers", "connected_image_residual")
"""Fields of `ModelSource` that choose the fusion network of a new mPLUG model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where the model comes from.

    Attributes:
        name: A registered variant (see `triptych models`); its weights are randomly initialised.
        image_size: Side of the input in pixels; None keeps that of the variant or folder. A
            folder's position table is resized bilinearly.
        drop_path: Drop path rate, the probability of skipping a residual branch in training (VLMo);
            None keeps that of the variant or folder.
        fusion: Fusion network of a new mPLUG model (paper, figure 4); None keeps the variant's,
            "skip_connected". "none" has no ITM.
        connected_layers: Connected-attention layers of a new skip-connected network, counted from
            0; None keeps the variant's. `strided_layers` in `models/mplug/config.py` gives those of
            a stride.
        connected_image_residual: Whether such a layer adds its image output to its image input
            (released code); None keeps the variant's setting.
        init_from: A model folder to start from, a folder of transformers, or the hub id of either.
            Its sizes and its tokenizer are used, and `name` is ignored.
        init_vision_from: Published weights for the image encoder of a new model: for mPLUG a CLIP
            from OpenAI (.pt) or transformers (folder).
        init_text_from: Published weights for the text side of a new model: for mPLUG a folder with
            BERT, whose vocabulary becomes the tokenizer.
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
            tokenizer on the texts of the training data.
        vocab_size: Largest vocabulary of a trained tokenizer, including special tokens.
        num_unused: Unused tokens of a trained tokenizer, which grounding takes for its coordinates.
    """

    path: str | None = None
    vocab_size: int = 8192
    num_unused: int = 128

    def __post_init__(self) -> None:
        """Reject sizes that no tokenizer has."""
        check_range("vocab_size", self.vocab_size, 1, 10_000_000)
        check_range("num_unused", self.num_unused, 0, 1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What to train on.

    Attributes:
        train: Data sources, joined in this order or drawn by their ratios, see `DataSourceConfig`.
        root: Folder that relative paths of sources start from; None is the current folder.
        val: Held-out data that the model is scored on while it trains, see `validation`; empty for
            none.
        val_share: Share of the images of `train` to hold out instead, such as 0.05. A hash of an
            image's name decides, so it is the same images in every run on this data.
        max_bad_share: Largest allowed share of unreadable samples; above it the run stops.
        max_image_pixels: The most pixels that an image may have; larger ones are skipped. None
            allows 89,478,485. Much larger images, such as scans, are decoded at a reduced size.
        num_workers: Worker processes that prepare batches; 0 prepares them in the main process.
        cache_mib: Memory for decoded images in each of these processes, in MiB.
        seed: Seed of order, crops, masks and prefixes.
        shuffle_window: Shards (or row groups of parquet tables) whose samples are mixed with one
            another, where reading any sample at any time is dear, as over a network; None mixes
            all samples. Sources that are in no shards are mixed whole.
    """

    train: tuple[DataSourceConfig, ...] = ()
    root: str | None = None
    val: tuple[DataSourceConfig, ...] = ()
    val_share: float | None = None
    max_bad_share: float = 0.01
    max_image_pixels: int | None = None
    num_workers: int = 0
    cache_mib: int = 512
    seed: int = 0
    shuffle_window: int | None = None

    def __post_init__(self) -> None:
        """Reject shares and counts out of range."""
        share = self.val_share
        is_share = share is None or 0 < share < 1
        check(is_share, "val_share", share, "be above 0 and below 1, or absent")
        either = not self.val or share is None
        check(either, "val_share", share, "be absent where val names held-out data")
        check(0 <= self.max_bad_share <= 1, "max_bad_share", self.max_bad_share, "be from 0 to 1")
        check_range("max_image_pixels", self.max_image_pixels, 1, MAX_PIXELS)
        check_range("num_workers", self.num_workers, 0, MAX_WORKERS)
        check_range("cache_mib", self.cache_mib, 0, 2**24)
        check_range("shuffle_window", self.shuffle_window, 1, 2**20)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """The table before and after fine-tuning: what became of the model's retrieval.

    Attributes:
        data: Image-text pairs that the fine-tuning does not train on, and whose retrieval it should
            not harm.
        images: Images that are searched, the first of each data set, with all their captions; 0
            omits the table.
    """

    data: tuple[DataSourceConfig, ...] = ()
    images: int = 200

    def __post_init__(self) -> None:
        """Reject data that nobody looks at."""
        check_range("guard.images", self.images, 0, 1_000_000)
        must = "be at least 1 where guard.data names pairs to search"
        check(self.images > 0 or not self.data, "guard.images", self.images, must)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        recipe: Name of the recipe it came from.
        scale: Its scale: smoke, tiny, small, base or large.
        model: Where the model comes from.
        tokenizer: Where the tokenizer comes from.
        data: What to train on.
        image: How images are prepared; `image_size` is set to the model's.
        crops: The crops of each image, for self-distillation.
        captions: How captions are prepared.
        lengths: Longest texts of the fine-tuning tasks.
        task: The task and its settings.
        freeze: Parts that are not trained: patterns over the names of parameters, such as
            "visual_encoder", "text_encoder.blocks.0" or "*norm*".
        lora: Low-rank adaptation, which trains a small change instead of the weights.
        guard: What is measured before and after fine-tuning.
        train: Length, batch size, checkpoints.
        validation: How the model is scored on data.val while it trains, and when it has enough.
        optim: Optimizer and learning-rate schedule.
        weights: Weights of the objectives over the steps; if empty, each is 1.
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
    freeze: tuple[str, ...] = ()
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    train: TrainConfig
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    weights: tuple[ObjectiveWeight, ...] = ()

    @property
    def is_validated(self) -> bool:
        """Whether there is data to validate on."""
        return bool(self.data.val) or self.data.val_share is not None

    def __post_init__(self) -> None:
        """Reject settings of a validation that has no data."""
        default = ValidationConfig()
        for field_name in ValidationConfig.__slots__ if not self.is_validated else ():
            value = getattr(self.validation, field_name)
            is_default = value == getattr(default, field_name)
            must = "be absent without held-out data: name some with --data.val PATH, or hold out "
            must += "a share of the training images with --data.val-share 0.05"
            check(is_default, f"validation.{field_name}", value, must)
