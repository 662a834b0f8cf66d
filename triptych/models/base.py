"""What every vision-language model offers, and what every family of models says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.conversion import Converter
from triptych.nn.decoder import DecoderMemory, TextDecoder

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class FeatureDims:
    """Widths of the pooled states, which a classifier on top must know.

    Attributes:
        image: Of `encode_image(...).pooled`.
        text: Of `encode_text(...).pooled`.
        fused: Of `fuse(...).pooled`.
    """

    image: int
    text: int
    fused: int


@runtime_checkable
class VisionLanguageModel(Protocol):
    """The contract of a model.

    Attributes:
        config: What it was built from.
    """

    config: Any

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do: "itc", "itm", "mlm", "mim", "decode"."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""

    @property
    def feature_dims(self) -> FeatureDims:
        """Widths of the pooled states."""

    def encode_image(self, image: Tensor, *, hidden_patches: Tensor | None = None) -> ImageFeatures:
        """Encode (B, 3, height, width) float pixels to (B, N, D)."""

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> TextFeatures:
        """Encode (B, L) int64 ids with a (B, L) bool mask to (B, L, D)."""

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """Return (B, E) L2-normalised embeddings."""

    def embed_text(self, features: TextFeatures) -> Tensor:
        """Return (B, E) L2-normalised embeddings."""

    def fuse(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> FusedFeatures:
        """Return joint states of each text with its image."""


@runtime_checkable
class PairReader(Protocol):
    """A model whose fusion begins with the embeddings: it need not encode each side alone."""

    def pair_state(self, image: Tensor, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Return the pooled state (B, D) of pairs, as `fuse` gives it."""


@runtime_checkable
class PairMatcher(Protocol):
    """A model that can score pairs without the states that only other heads read."""

    def match_pairs(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> Tensor:
        """Return `match_logits(fuse(...))`."""


@runtime_checkable
class TwoImageReader(Protocol):
    """A model that can read a text about two images (NLVR2)."""

    @property
    def two_image_dim(self) -> int:
        """Width F of `two_image_state`."""

    def prepare_two_images(self, merge: Literal["mean", "linear"] | None) -> nn.Module | None:
        """Return the modules that reading two images needs besides the model, None if it has all.

        Args:
            merge: How what is read in the two images is joined; None is the model's own way.

        Raises:
            CapabilityError: The model cannot read two images.
            ConfigError: The model has one way to join them, and another is asked for.
        """

    def two_image_state(
        self, image: Tensor, token_ids: Tensor, text_mask: Tensor, pairs: nn.Module | None
    ) -> Tensor:
        """Return the state (B, F) of texts (B, L) about images (B, 2, 3, H, W).

        Args:
            image: Pixels of the first and second images.
            token_ids: int64.
            text_mask: bool, True = real token.
            pairs: What `prepare_two_images` returned.
        """


class GenerativeModel(VisionLanguageModel, Protocol):
    """A model with a decoder: "decode" is among its capabilities."""

    @property
    def decoder(self) -> TextDecoder:
        """Generates text from a memory."""

    @property
    def decoder_reads(self) -> Literal["fused", "image"]:
        """What its memory holds: fused states, or image states alone."""

    def decoder_memory(
        self, image: ImageFeatures, fused: FusedFeatures | None = None
    ) -> DecoderMemory:
        """Project what the decoder reads, once an image."""

    def decode(self, token_ids: Tensor, memory: DecoderMemory) -> Tensor:
        """Read a target sequence (B, L) int64 at once: (B, L, D) decoder states."""


def encode_frames(model: VisionLanguageModel, image: Tensor) -> ImageFeatures:
    """Encode images (B, 3, H, W), or clips (B, F, 3, H, W) frame by frame.

    Returns:
        Features of B images or clips; for clips see `ImageFeatures.as_clips`.
    """
    if image.ndim == 4:
        return model.encode_image(image)
    return model.encode_image(image.flatten(0, 1)).as_clips(image.shape[1])


def match_pairs(
    model: Any, image: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None
) -> Tensor:
    """Score each text with its image: (M, 2) logits, class 1 = the text describes the image.

    Args:
        model: A model with "itm" among its capabilities.
        image: B images.
        text: M texts.
        image_index: (M,) int64, the image of each text; None means M = B, in order.
    """
    if isinstance(model, PairMatcher):
        return model.match_pairs(image, text, image_index=image_index)
    return model.match_logits(model.fuse(image, text, image_index=image_index))  # type: ignore[no-any-return]


def num_parameters(model: nn.Module) -> int:
    """Count parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What a model reads at most, as its config says.

    Attributes:
        vocab_size: Tokens of its vocabulary; codes of an image tokenizer.
        max_tokens: Longest text, [CLS] and [SEP] counted; 0 if it reads none.
        patch_size: Side of a patch in pixels; of an image tokenizer, of what one code stands for.
    """

    vocab_size: int
    max_tokens: int
    patch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models: everything that the rest of the library knows of it.

    Attributes:
        title: As its paper writes it.
        config_class: Its config; the `kind` of a stored config names the family.
        build: From a config to a randomly initialised model.
        variants: Registered sizes by name; each takes `image_size` and `vocab_size`.
        resize: From a stored state, its config and a new side in pixels to both at that size.
        sizes: From a config to what its model reads at most.
        vision_parameters: How the names of the parameters begin that take
            `optim.vision_learning_rate`.
        choices: Fields of a run's `model` section that change this family's configs, such as
            "fusion".
        converter: How its released checkpoints are read and written, and which parts can start
            from published weights; None if there are none.
        released_variant: The variant of the family's folders of transformers, which have its name
            as `model_type`; None if there are none.
        reads_text: False for image tokenizers, which read images alone.
    """

    title: str
    config_class: type[Any]
    build: Callable[[Any], nn.Module]
    variants: Mapping[str, Callable[..., Any]]
    resize: Callable[[State, Any, int], tuple[State, Any]]
    sizes: Callable[[Any], ModelSizes]
    vision_parameters: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    converter: Converter | None = None
    released_variant: str | None = None
    reads_text: bool = True

    def is_vision_parameter(self, name: str) -> bool:
        """Return whether a parameter of a task belongs to its model's vision encoder."""
        return name.startswith(tuple(f"model.{prefix}" for prefix in self.vision_parameters))
