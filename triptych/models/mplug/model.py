"""mPLUG: two encoders, a fusion network and a decoder (paper, figure 2)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.errors import CapabilityError
from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.base import FeatureDims
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.fusion import PairFusion, SkipConnectedFusion, build_fusion
from triptych.nn.decoder import DecoderMemory, TextDecoder, cat_masks
from triptych.nn.dropout import Dropout
from triptych.nn.encoder import TextEncoder
from triptych.nn.heads import VocabularyHead
from triptych.nn.init import init_weights
from triptych.nn.vision import VisionTransformer


class ImageAdapter(nn.Module):
    """Projection of image states to the text width: dropout(LN(linear(x))), eps 1e-12.

    Only models whose image encoder is wider or narrower than the text encoder have one.
    """

    def __init__(self, vision_dim: int, text_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_dim, text_dim)
        self.norm = nn.LayerNorm(text_dim, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, W) to (B, N, D)."""
        return self.dropout(self.norm(self.linear(x)))  # type: ignore[no-any-return]


class MPLUG(nn.Module):
    """The whole model of the paper, section 3.

    Heads: `image_projection` and `text_projection` for ITC, `itm_head` (class 1 = match) and
    `mlm_head` on fused text states, the decoder's own token head. Without a fusion network
    (`fusion` "none") no state knows both sides, so there is no "itm".
    """

    def __init__(self, config: MPLUGConfig) -> None:
        super().__init__()
        self.config = config
        known = {"itc", "mlm", "decode"}
        self.capabilities = frozenset(known if config.fusion == "none" else known | {"itm"})
        width = config.text.embed_dim
        self.visual_encoder = VisionTransformer(config.vision)
        self.image_adapter: nn.Module = (
            nn.Identity()
            if config.vision.embed_dim == width
            else ImageAdapter(config.vision.embed_dim, width, config.text.dropout)
        )
        self.text_encoder = TextEncoder(config.text, config.text_depth)
        self.fusion = build_fusion(config)
        self.decoder = TextDecoder(config.text, config.decoder_depth)
        self.image_projection = nn.Linear(width, config.proj_dim)
        self.text_projection = nn.Linear(width, config.proj_dim)
        self.itm_head = nn.Linear(width, 2)
        self.mlm_head = VocabularyHead(
            width, config.text.vocab_size, 1e-12, tied=config.tie_mlm_head
        )
        init_weights(self, config.init_std)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.vision.image_size

    @property
    def feature_dims(self) -> FeatureDims:
        """Widths of the pooled states: the text encoder's, for all three."""
        width = self.config.text.embed_dim
        return FeatureDims(width, width, width)

    @property
    def decoder_reads(self) -> Literal["fused", "image"]:
        """What the decoder's memory holds: fused states, or image states alone."""
        return self.config.decoder_memory

    @property
    def two_image_dim(self) -> int:
        """Width of `two_image_state`."""
        return self.config.text.embed_dim

    def prepare_two_images(self, merge: Literal["mean", "linear"] | None) -> nn.Module:
        """Return the second branches and the merges; see `PairFusion`.

        Raises:
            CapabilityError: The fusion network cannot read two images.
        """
        if not isinstance(self.fusion, SkipConnectedFusion):
            raise CapabilityError(
                f"fusion {self.config.fusion!r} cannot read two images: take skip_connected, "
                "connected_attention or asymmetric_co_attention"
            )
        return PairFusion(self.fusion, self.config.text.embed_dim, merge or "mean")

    def two_image_state(
        self, image: Tensor, token_ids: Tensor, text_mask: Tensor, pairs: nn.Module | None
    ) -> Tensor:
        """Return the fused text [CLS] (B, D) of texts about two images (paper, section 5.2.5).

        Args:
            image: (B, 2, 3, image_size, image_size) float.
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            pairs: What `prepare_two_images` returned.
        """
        assert isinstance(pairs, PairFusion), "mPLUG reads two images by second branches"
        both = image.transpose(0, 1).flatten(0, 1)  # (2·B, 3, H, W): first ones first
        states = self.encode_image(both).tokens
        images = states.reshape(2, -1, *states.shape[1:])  # (2, B, N, D)
        text = self.encode_text(token_ids, text_mask)
        return cast(Tensor, pairs(self.fusion, images, text.tokens, text.mask)[:, 0])

    def encode_image(self, image: Tensor, *, hidden_patches: Tensor | None = None) -> ImageFeatures:
        """Encode pixels, at the text encoder's width.

        Args:
            image: (B, 3, image_size, image_size) float, normalised with CLIP's mean and deviation.
            hidden_patches: Must be None: mPLUG has no mask token for patches.

        Returns:
            (B, N, D) states.

        Raises:
            CapabilityError: `hidden_patches` is given.
        """
        if hidden_patches is not None:
            raise CapabilityError("mPLUG has no masked image modelling: omit hidden_patches")
        return ImageFeatures(self.image_adapter(self.visual_encoder(image)))

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> TextFeatures:
        """Encode token ids (B, L) int64 with their mask (B, L) bool, True = real token."""
        return TextFeatures(self.text_encoder(token_ids, text_mask), text_mask)

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """Project the image [CLS] state, of clips its mean: (B, E) float32, L2-normalised."""
        return F.normalize(self.image_projection(features.pooled).float(), dim=-1)

    def embed_pixels(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, H, W), or clips (B, F, 3, H, W), for their embedding alone: (B, E).

        Equal to `embed_image(encode_frames(...))`, without what only the other states need.
        """
        frames = image if image.ndim == 4 else image.flatten(0, 1)
        cls = ImageFeatures(self.image_adapter(self.visual_encoder(frames, cls_only=True)))
        return self.embed_image(cls if image.ndim == 4 else cls.as_clips(image.shape[1]))

    def embed_text(self, features: TextFeatures) -> Tensor:
        """Project the text [CLS] state: (B, E) float32, L2-normalised."""
        return F.normalize(self.text_projection(features.tokens[:, 0]).float(), dim=-1)

    def fuse(
        self,
        image: ImageFeatures,
        text: TextFeatures,
        *,
        image_index: Tensor | None = None,
        read: Tensor | None = None,
    ) -> FusedFeatures:
        """Run the fusion network.

        Args:
            image: B images.
            text: M texts.
            image_index: (M,) int64, the image of each text; None means M = B, in order.
            read: (M, L) bool, True = this text state is read afterwards; the others are
                meaningless. None means that all are read.
        """
        tokens, states, index = self.fusion(image.tokens, text.tokens, text.mask, image_index, read)
        return FusedFeatures(tokens, states, text.mask, index)

    def match_logits(self, fused: FusedFeatures) -> Tensor:
        """Score each pair: (M, 2) logits, class 1 = the text describes the image.

        Raises:
            CapabilityError: The model has no fusion network.
        """
        if "itm" not in self.capabilities:
            raise CapabilityError(
                "fusion 'none' lets no text see its image, so that nothing can be matched: leave "
                "itm out, or choose another fusion"
            )
        return self.itm_head(fused.pooled)  # type: ignore[no-any-return]

    def match_pairs(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> Tensor:
        """Fuse pairs for their score alone: `match_logits(fuse(...))` with less work.

        Args:
            image: B images.
            text: M texts.
            image_index: (M,) int64, the image of each text; None means M = B, in order.
        """
        only_cls = torch.zeros_like(text.mask)
        only_cls[:, 0] = True
        return self.match_logits(self.fuse(image, text, image_index=image_index, read=only_cls))

    def word_logits(self, states: Tensor) -> Tensor:
        """Score every token at fused text states (..., D): (..., V) logits of the MLM head."""
        return self.mlm_head(states, self.text_encoder.embedding.word.weight)  # type: ignore[no-any-return]

    def decoder_memory(
        self, image: ImageFeatures, fused: FusedFeatures | None = None
    ) -> DecoderMemory:
        """Project what the decoder reads, once an image.

        Args:
            image: The image encoder's output.
            fused: The fusion network's output for the same rows; needed when the config's
                `decoder_memory` is "fused".

        Raises:
            CapabilityError: `fused` is missing though the config asks for it.
        """
        return self.decoder.project_memory(*self.memory_states(image, fused))

    def memory_states(
        self, image: ImageFeatures, fused: FusedFeatures | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the decoder reads, not yet projected; see `decoder_memory`.

        Returns:
            (M, S, D) states and their mask (M, S) bool, True = may be read, or None for all.
        """
        if self.config.decoder_memory == "image":
            return image.tokens, None
        if fused is None:
            raise CapabilityError("this model's decoder reads fused states: call fuse() first")
        tokens = fused.expanded_image_tokens()
        memory = torch.cat([tokens, fused.text_tokens.to(tokens.dtype)], dim=1)  # (M, N + L, D)
        return memory, cat_masks(None, fused.text_mask, tokens.shape[1])

    def decode(self, token_ids: Tensor, memory: DecoderMemory) -> Tensor:
        """Read a target sequence (B, L) int64 at once: (B, L, D) decoder states."""
        return self.decoder(token_ids, memory)  # type: ignore[no-any-return]
