"""FLAVA: image, text and multimodal encoder with the heads of its six losses (paper, figure 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import CapabilityError
from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.base import FeatureDims
from triptych.models.dvae.config import codebook_image_size
from triptych.models.dvae.model import DVAE, DVAEEncoder
from triptych.models.flava.config import NORM_EPS, FLAVAConfig
from triptych.models.flava.encoders import (
    PAD_ID,
    FLAVAFusionEncoder,
    FLAVAImageEncoder,
    FLAVATextEncoder,
    Stack,
    first_token,
)
from triptych.nn.attention import key_bias
from triptych.nn.heads import VocabularyHead
from triptych.nn.init import init_weights
from triptych.nn.positions import resize_position_table

START_TEMPERATURE = 0.07
"""Of the contrastive loss, as in CLIP."""


OUTPUT_INIT_SCALE = 0.1
"""Initial output matrices of the four token and code heads, over `init_std`.

Predictions then begin uniform. With 1, as in released code, targets that are few (a codebook that
says little) pull all states one way, and the first gradient is more than twice as long.
"""


@dataclass(frozen=True, slots=True)
class CleanAndMasked:
    """Both passes of an encoder over a batch, as far as the losses of pairs read them.

    Attributes:
        clean_cls: (B, D) class state of the whole input after the final norm.
        masked: (B, S, D) states of the masked input before the final norm.
    """

    clean_cls: Tensor
    masked: Tensor


class MatchingHead(nn.Module):
    """ITM: a tanh pooler on the fused [CLS] state, then a score for each class (released code)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, 2)

    def forward(self, cls: Tensor) -> Tensor:
        """Map (M, D) to (M, 2) logits, class 1 = match."""
        return self.out(torch.tanh(self.dense(cls)))  # type: ignore[no-any-return]


class FLAVA(nn.Module):
    """The whole model of the paper, section 3.

    Features hold states before an encoder's last norm (`tokens`), which the fusion reads, and the
    class state after it (`cls`), which contrastive learning and classifiers read.

    Heads, none tied to a token table: `mim_head` and `mlm_head` on the unimodal encoders,
    `mmm_image_head` and `mmm_text_head` on the multimodal one, `itm_head` (class 1 = match), and
    the two contrastive projections with their scale. The scale lives here and not in the task,
    because the released layout holds it and zero-shot probabilities need it.
    """

    capabilities = frozenset({"itc", "itm", "mlm", "mim"})

    def __init__(self, config: FLAVAConfig) -> None:
        super().__init__()
        self.config = config
        attended = config.pad_attention == "attended"
        image_dim, text_dim = config.vision.embed_dim, config.text.embed_dim
        width, vocab_size = config.fusion.embed_dim, config.text.vocab_size
        self.visual_encoder = FLAVAImageEncoder(config.vision)
        self.text_encoder = FLAVATextEncoder(
            config.text, config.text_depth, freeze_padding=attended
        )
        self.fusion = FLAVAFusionEncoder(config.fusion, image_dim, text_dim)
        self.image_projection = nn.Linear(image_dim, config.proj_dim)
        self.text_projection = nn.Linear(text_dim, config.proj_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / START_TEMPERATURE)))
        self.mim_head = VocabularyHead(image_dim, config.num_codes, NORM_EPS, tied=False)
        self.mlm_head = VocabularyHead(text_dim, vocab_size, NORM_EPS, tied=False)
        self.mmm_image_head = VocabularyHead(width, config.num_codes, NORM_EPS, tied=False)
        self.mmm_text_head = VocabularyHead(width, vocab_size, NORM_EPS, tied=False)
        self.itm_head = MatchingHead(width)
        self.poolers: nn.ModuleDict | None = None
        if config.released_poolers:
            dims = {"image": image_dim, "text": text_dim, "fusion": width}
            self.poolers = nn.ModuleDict({name: nn.Linear(d, d) for name, d in dims.items()})
            self.poolers.requires_grad_(False)
        self._init_weights()
        self.codebook = None if config.codebook is None else DVAEEncoder(config.codebook)
        if self.codebook is not None:
            self.codebook.requires_grad_(False)

    def _init_weights(self) -> None:
        std = self.config.init_std
        init_weights(self, std)
        self.visual_encoder.init_tokens(std)
        self.text_encoder.init_tokens()
        self.fusion.init_tokens(std)
        for head in (self.mim_head, self.mlm_head, self.mmm_image_head, self.mmm_text_head):
            assert head.weight is not None
            nn.init.normal_(head.weight, std=std * OUTPUT_INIT_SCALE)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.vision.image_size

    @property
    def feature_dims(self) -> FeatureDims:
        """Widths of the pooled states."""
        config = self.config
        return FeatureDims(config.vision.embed_dim, config.text.embed_dim, config.fusion.embed_dim)

    def set_recompute_cheap(self, recompute_cheap: bool) -> None:
        """Choose whether the blocks compute cheap results again in the backward pass."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.set_recompute_cheap(recompute_cheap)

    def encode_image(self, image: Tensor, *, hidden_patches: Tensor | None = None) -> ImageFeatures:
        """Encode pixels.

        Args:
            image: (B, 3, image_size, image_size) float, normalised with CLIP's mean and deviation.
            hidden_patches: (B, P) or (B, grid, grid) bool, True = masked by the mask token.

        Returns:
            (B, N, D) states before the final norm, and the class state after it.
        """
        states = self.visual_encoder(image, hidden_patches)
        return ImageFeatures(states, self.visual_encoder.final_norm(states[:, 0]))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> TextFeatures:
        """Encode token ids.

        Args:
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.

        Returns:
            (B, L, D) states before the final norm, and the class state after it. Where padding is
            attended, L is `padded_text_len` (longer texts keep their length) and the mask is True
            throughout: the text encoder ignores padding, the fusion does not.
        """
        token_ids, text_mask = self.padded(token_ids, text_mask)
        states = self.text_encoder(token_ids, text_mask)
        cls = self.text_encoder.final_norm(states[:, 0])
        return TextFeatures(states, self.fused_mask(text_mask), cls)

    def padded(self, token_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return texts (B, L) and mask at the length that the model reads them at.

        In an exported graph, which is one of a single encoder, texts of any length keep it: the
        text encoder ignores padding.
        """
        if torch.compiler.is_exporting():
            return token_ids, text_mask
        missing = self.config.padded_text_len - token_ids.shape[1]
        if self.config.pad_attention == "masked" or missing <= 0:
            return token_ids, text_mask
        return F.pad(token_ids, (0, missing), value=PAD_ID), F.pad(text_mask, (0, missing))

    def fused_mask(self, text_mask: Tensor) -> Tensor:
        """Return which tokens (B, L) the multimodal encoder attends to."""
        if self.config.pad_attention == "masked":
            return text_mask
        return torch.ones_like(text_mask)

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """Project the class state: (B, E) float32, L2-normalised."""
        cls = features.cls
        if cls is None:
            cls = self.visual_encoder.final_norm(features.tokens[:, 0])
        return self.project_image(cls)

    def embed_text(self, features: TextFeatures) -> Tensor:
        """Project the class state: (B, E) float32, L2-normalised."""
        cls = features.cls
        if cls is None:
            cls = self.text_encoder.final_norm(features.tokens[:, 0])
        return self.project_text(cls)

    def project_image(self, cls: Tensor) -> Tensor:
        """Project image class states (B, D) after the final norm: (B, E), L2-normalised."""
        return F.normalize(self.image_projection(cls).float(), dim=-1)

    def project_text(self, cls: Tensor) -> Tensor:
        """Project text class states (B, D) after the final norm: (B, E), L2-normalised."""
        return F.normalize(self.text_projection(cls).float(), dim=-1)

    def fuse(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> FusedFeatures:
        """Run the multimodal encoder.

        Args:
            image: B images.
            text: M texts.
            image_index: (M,) int64, the image of each text; None means M = B, in order.

        Returns:
            States after the final norm; `cls` is the multimodal encoder's own class token.
        """
        states = self.fusion(image.tokens, text.tokens, text.mask, image_index=image_index)
        states = self.fusion.final_norm(states)
        num_image = image.tokens.shape[1]
        return FusedFeatures(
            states[:, 1 : 1 + num_image], states[:, 1 + num_image :], text.mask, cls=states[:, 0]
        )

    def match_logits(self, fused: FusedFeatures) -> Tensor:
        """Score each pair: (M, 2) logits, class 1 = the text describes the image."""
        return self.itm_head(fused.pooled)  # type: ignore[no-any-return]

    def match_pairs(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> Tensor:
        """Return `match_logits(fuse(...))`; the last block computes the class token alone."""
        return self.itm_head(self._pair_class(image, text, image_index))  # type: ignore[no-any-return]

    @property
    def two_image_dim(self) -> int:
        """Width of `two_image_state`: two class states."""
        return 2 * self.feature_dims.fused

    def prepare_two_images(self, merge: Literal["mean", "linear"] | None) -> None:
        """Return None: FLAVA reads two images with its own layers.

        Raises:
            ConfigError: `merge` is given: the two states stand side by side.
        """
        check(merge is None, "merge", merge, "be absent: FLAVA has one way to read two images")

    def two_image_state(
        self, image: Tensor, token_ids: Tensor, text_mask: Tensor, pairs: nn.Module | None
    ) -> Tensor:
        """Return the class states of (first image, text) and (second image, text): (B, 2·D).

        The paper has no such task; this is how VLMo reads two images. The text is encoded once.

        Args:
            image: (B, 2, 3, image_size, image_size) float.
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            pairs: None: FLAVA needs nothing besides its own layers.
        """
        del pairs
        images = self.encode_image(image.flatten(0, 1))  # first, second, first, second ...
        text = self.encode_text(token_ids, text_mask)
        both = TextFeatures(
            text.tokens.repeat_interleave(2, dim=0), text.mask.repeat_interleave(2, dim=0)
        )
        return self._pair_class(images, both, None).view(len(image), self.two_image_dim)

    def _pair_class(
        self, image: ImageFeatures, text: TextFeatures, image_index: Tensor | None
    ) -> Tensor:
        """Return the class states (M, D) of pairs; the last block computes no other state."""
        states = self.fusion(
            image.tokens,
            text.tokens,
            text.mask,
            image_index=image_index,
            positions=first_token(text.tokens),
        )
        return self.fusion.final_norm(states[:, 0])  # type: ignore[no-any-return]

    def word_logits(self, states: Tensor) -> Tensor:
        """Score every token at fused text states (..., D): (..., V) logits of MMM."""
        return self.mmm_text_head(states)  # type: ignore[no-any-return]

    def take_codebook(self, tokenizer: DVAE) -> None:
        """Copy the encoder of an image tokenizer into the codebook, which stays frozen.

        Raises:
            CapabilityError: The model has no codebook.
            ConfigError: The tokenizer's sizes are others.
        """
        if self.codebook is None or self.config.codebook is None:
            raise CapabilityError("the model is built without a codebook: set config.codebook")
        mine, theirs = self.config.codebook, tokenizer.config
        for name in ("num_codes", "hidden_dim", "blocks_per_group"):
            wanted, found = getattr(mine, name), getattr(theirs, name)
            check(found == wanted, f"image tokenizer's {name}", found, f"be the model's {wanted}")
        self.codebook.load_state_dict(tokenizer.encoder.state_dict())

    @property
    def has_trained_codebook(self) -> bool:
        """Whether the codebook is more than its random start, of which all biases are 0."""
        named = [] if self.codebook is None else list(self.codebook.named_parameters())
        return any(bool(value.any()) for name, value in named if name.endswith("bias"))

    @torch.no_grad()
    def image_codes(self, codebook_image: Tensor) -> Tensor:
        """Tell the code of each patch.

        Args:
            codebook_image: (B, 3, height, width) float in [0.1, 0.9], of `codebook_image_size` px.

        Returns:
            (B, P) int64.

        Raises:
            CapabilityError: The model has no codebook.
        """
        if self.codebook is None:
            raise CapabilityError(
                "this model has no image codebook: give batches `image_codes`, or build the model "
                "with one"
            )
        return self.codebook.codes(codebook_image)

    def image_passes(self, image: Tensor, hidden_patches: Tensor) -> CleanAndMasked:
        """Encode images whole and with masked patches, as one batch up to the last block.

        The last block computes only the class token of the whole images.

        Args:
            image: (B, 3, image_size, image_size) float.
            hidden_patches: (B, P) bool, True = masked.
        """
        encoder = self.visual_encoder
        x = encoder.blocks.run(encoder.embed(image, (None, hidden_patches)), but_last=True)
        clean, masked = x.chunk(2)
        cls = encoder.blocks.last(clean, None, first_token(clean))[:, 0]
        return CleanAndMasked(encoder.final_norm(cls), encoder.blocks.last(masked))

    def text_passes(
        self, token_ids: Tensor, masked_token_ids: Tensor, text_mask: Tensor
    ) -> CleanAndMasked:
        """Encode texts whole and with masked tokens, as `image_passes` does images.

        Args:
            token_ids: (B, L) int64.
            masked_token_ids: (B, L) int64, the same with masked tokens.
            text_mask: (B, L) bool, True = real token.
        """
        encoder = self.text_encoder
        x = encoder.embed(torch.cat([token_ids, masked_token_ids]))
        bias = key_bias(text_mask, x.dtype)
        x = encoder.blocks.run(x, bias.repeat(2, 1, 1, 1), but_last=True)
        clean, masked = x.chunk(2)
        cls = encoder.blocks.last(clean, bias, first_token(clean))[:, 0]
        return CleanAndMasked(encoder.final_norm(cls), encoder.blocks.last(masked, bias))


def resize_model_state(
    state: dict[str, Tensor], config: FLAVAConfig, image_size: int
) -> tuple[dict[str, Tensor], FLAVAConfig]:
    """Return a stored state and its config for images of another size.

    The position table is resized bicubically, as transformers does for larger images; the
    codebook sees a larger view, so that there is still one code a patch.

    Args:
        state: The model's state dict.
        config: Its config.
        image_size: The new side in pixels.
    """
    vision, codebook = replace(config.vision, image_size=image_size), config.codebook
    if codebook is not None:
        side = codebook_image_size(image_size, vision.patch_size)
        codebook = replace(codebook, image_size=side)
    name = "visual_encoder.position_embedding"
    table = resize_position_table(state[name], vision.num_patches, mode="bicubic")
    return {**state, name: table}, replace(config, vision=vision, codebook=codebook)
