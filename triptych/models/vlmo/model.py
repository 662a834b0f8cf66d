"""VLMo: a dual encoder and a fusion encoder in one Multiway Transformer (paper, figure 1)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.base import FeatureDims
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.trunk import MultiwayBlock, MultiwayTrunk, TokenSequence, drop_path_rate
from triptych.nn.embeddings import TextEmbedding, build_patches, hide_pixels
from triptych.nn.encoder import check_text_length
from triptych.nn.heads import VocabularyHead
from triptych.nn.init import init_weights


class VLMo(nn.Module):
    """The whole model of the paper, section 3, with the heads of its pre-training.

    Heads: `image_projection` and `text_projection` for ITC on the experts' own [CLS] states, and
    `fused_image_projection` and `fused_text_projection` on those of the vision-language experts;
    `pooler` and `itm_head` (class 1 = match); `mlm_head`.

    Deviations from the paper, as in the released code: a pooler, tanh of a linear layer, stands
    before the heads of pairs; text embeddings have a LayerNorm and a second type table.
    """

    def __init__(self, config: VLMoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        absolute = config.positions == "absolute"
        self.patch_embedding = build_patches(
            width, config.patch_size, config.stem_widths, bias=True, init_std=config.patch_init_std
        )
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.mask_token = nn.Parameter(torch.empty(width)) if config.mask_token else None
        self.position_embedding = (
            nn.Parameter(torch.empty(1 + config.num_patches, width)) if absolute else None
        )
        self.text_embedding = TextEmbedding(
            config.vocab_size,
            width,
            config.max_text_tokens if absolute else 0,
            1e-12,
            config.text_dropout,
        )
        self.modality_embedding = nn.Embedding(1 + config.num_image_types, width)
        self.trunk = MultiwayTrunk(config)
        self.pooler = nn.Linear(width, width)
        self.image_projection = nn.Linear(width, config.proj_dim, bias=False)
        self.text_projection = nn.Linear(width, config.proj_dim, bias=False)
        self.fused_image_projection = self.fused_text_projection = None
        if config.fused_contrast:
            self.fused_image_projection = nn.Linear(width, config.proj_dim, bias=False)
            self.fused_text_projection = nn.Linear(width, config.proj_dim, bias=False)
        self.itm_head = nn.Linear(width, 2)
        self.mlm_head = VocabularyHead(width, config.vocab_size, 1e-12, tied=False)
        self._init_weights()

    @property
    def capabilities(self) -> frozenset[str]:
        """What the model can do."""
        return frozenset({"itc", "itm", "mlm"} | ({"mim"} if self.config.mask_token else set()))

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.image_size

    @property
    def feature_dims(self) -> FeatureDims:
        """Widths of the pooled states."""
        width = self.config.embed_dim
        return FeatureDims(width, width, width)

    def set_drop_path(self, rate: float) -> None:
        """Change how often training skips residual branches, and drops text embeddings.

        The released code has one number for both (see `VLMoConfig.drop_path`, `text_dropout`).
        """
        self.config = dataclasses.replace(self.config, drop_path=rate, text_dropout=rate)
        self.trunk.config = self.config
        self.text_embedding.dropout.share = rate
        for layer, block in enumerate(self.trunk.blocks):
            block.drop_path = drop_path_rate(self.config, layer)  # type: ignore[assignment]

    def add_image_type(self) -> None:
        """Add a type row for a further image; it begins as a copy of the first image's."""
        rows = self.modality_embedding.weight.detach()
        self.config = dataclasses.replace(
            self.config, num_image_types=self.config.num_image_types + 1
        )
        self.trunk.config = self.config
        self.modality_embedding = nn.Embedding(
            len(rows) + 1, rows.shape[1], _weight=torch.cat([rows, rows[1:2]])
        )

    def image_inputs(
        self, image: Tensor, hidden_patches: Tensor | None = None, image_type: int = 0
    ) -> Tensor:
        """Embed pixels (equation 1): [I_CLS; patches] + positions + type.

        Args:
            image: (B, 3, image_size, image_size) float, normalised with mean and deviation 0.5.
            hidden_patches: (B, P) bool, True = the mask token stands for the patch.
            image_type: 0, or 1 for the second image of a pair (NLVR2).

        Returns:
            (B, N, D).

        Raises:
            DataError: The pixels have another size than the positions.
            CapabilityError: `hidden_patches` is given but the model has no mask token.
        """
        size = self.config.image_size
        if image.shape[-2:] != (size, size):
            raise DataError(
                f"image is {tuple(image.shape[-2:])} px but the model takes {size} x {size}: "
                "resize it, or load the model with that image size"
            )
        if hidden_patches is not None and self.config.stem_widths:
            image = hide_pixels(image, hidden_patches, self.config.patch_size)
        x = self.patch_embedding(image)  # (B, P, D)
        if hidden_patches is not None:
            if self.mask_token is None:
                raise CapabilityError("this VLMo has no mask token: set mask_token = True")
            x = torch.where(hidden_patches[:, :, None], self.mask_token.to(x.dtype), x)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1)
        if self.position_embedding is not None:
            x = x + self.position_embedding
        return x + self.modality_embedding.weight[1 + image_type]

    def text_inputs(self, token_ids: Tensor) -> Tensor:
        """Embed token ids (B, L) int64 (equation 2): (B, L, D) tokens + positions + type.

        Raises:
            DataError: A text is longer than the position table.
        """
        check_text_length(token_ids, self.config.max_text_tokens)
        x: Tensor = self.text_embedding(token_ids)
        return x + self.modality_embedding.weight[0]

    def encode_image(self, image: Tensor, *, hidden_patches: Tensor | None = None) -> ImageFeatures:
        """Encode pixels through the vision experts alone.

        Args:
            image: (B, 3, image_size, image_size) float, normalised with mean and deviation 0.5.
            hidden_patches: (B, P) bool, True = the mask token stands for the patch.

        Returns:
            (B, N, D) states; the inputs are kept for `fuse`.
        """
        inputs = self.image_inputs(image, hidden_patches)
        states, _ = self.trunk(TokenSequence(inputs))
        return ImageFeatures(states, inputs=inputs)

    def encode_text(self, token_ids: Tensor, text_mask: Tensor) -> TextFeatures:
        """Encode token ids (B, L) int64 with their mask (B, L) bool through the language experts.

        The inputs are kept for `fuse`.
        """
        inputs = self.text_inputs(token_ids)
        _, states = self.trunk(TokenSequence(text=inputs, text_mask=text_mask))
        return TextFeatures(states, text_mask, inputs=inputs)

    def embed_image(self, features: ImageFeatures) -> Tensor:
        """Project the image [CLS] state, of clips its mean: (B, E) float32, L2-normalised."""
        return _unit(self.image_projection(features.pooled))

    def embed_text(self, features: TextFeatures) -> Tensor:
        """Project the text [CLS] state: (B, E) float32, L2-normalised."""
        return _unit(self.text_projection(features.tokens[:, 0]))

    def embed_both_ways(
        self, sequence: TokenSequence, *, fused: bool = True, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed images or texts, also through the vision-language experts, for contrast alone.

        The last block computes the [CLS] state only.

        Args:
            sequence: B images or B texts.
            fused: Whether the second embedding is wanted.
            scores: What `MultiwayTrunk.position_scores` returned, for several passes of one step.

        Returns:
            (B, E) of the experts of the modality, and (B, E) of the vision-language experts or
            None; both float32 and L2-normalised.
        """
        own, other = self.image_projection, self.fused_image_projection
        if sequence.text is not None:
            own, other = self.text_projection, self.fused_text_projection
        first = sequence.first_positions()
        if not fused or other is None:
            states = self.trunk.read(sequence, [(slice(None), first)], scores)[0]
            return _unit(own(states[:, 0])), None
        states, fused_states = self.trunk.branches(sequence, first, scores)
        return _unit(own(states[:, 0])), _unit(other(fused_states[:, 0]))

    def fuse(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> FusedFeatures:
        """Run pairs through the fusion encoder, which starts from the embeddings.

        Args:
            image: B images.
            text: M texts.
            image_index: (M,) int64, the image of each text; None means M = B, in order.

        Returns:
            Image states (M, N, D), text states (M, L, D), and the pooled state of each pair.

        Raises:
            CapabilityError: The features lack their inputs.
        """
        image_states, text_states = self.trunk(self._paired(image, text, image_index))
        return FusedFeatures(image_states, text_states, text.mask, cls=self.pool(text_states[:, 0]))

    def pair_state(
        self, image: Tensor, token_ids: Tensor, text_mask: Tensor, image_type: int = 0
    ) -> Tensor:
        """Return the pooled state (B, D) of pairs, which `fuse` gives too, and nothing else.

        Neither side is encoded alone, and the last block computes the text [CLS] only.

        Args:
            image: (B, 3, image_size, image_size) float, or clips (B, F, 3, ...).
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            image_type: 0, or 1 for the second image of a pair (NLVR2).
        """
        if image.ndim == 4:
            images = self.image_inputs(image, image_type=image_type)
        else:
            frames = self.image_inputs(image.flatten(0, 1), image_type=image_type)
            images = frames.reshape(len(image), -1, frames.shape[-1])  # (B, F·N, D)
        sequence = TokenSequence(images, self.text_inputs(token_ids), text_mask)
        states = self.trunk.read(sequence, [(slice(None), sequence.first_positions())])[0]
        return self.pool(states[:, 0])

    @property
    def two_image_dim(self) -> int:
        """Width of `two_image_state`: two pooled states."""
        return 2 * self.feature_dims.fused

    def prepare_two_images(self, merge: Literal["mean", "linear"] | None) -> None:
        """Add a type row for the second image where there is none.

        Raises:
            ConfigError: `merge` is given: the two states stand side by side.
        """
        check(merge is None, "merge", merge, "be absent: VLMo has one way to read two images")
        if self.config.num_image_types < 2:
            self.add_image_type()

    def two_image_state(
        self, image: Tensor, token_ids: Tensor, text_mask: Tensor, pairs: nn.Module | None
    ) -> Tensor:
        """Return the pooled states of (text, first image) and (text, second image): (B, 2·D).

        Args:
            image: (B, 2, 3, image_size, image_size) float.
            token_ids: (B, L) int64.
            text_mask: (B, L) bool, True = real token.
            pairs: None: VLMo needs nothing besides its own layers.
        """
        del pairs
        states = [self.pair_state(image[:, i], token_ids, text_mask, i) for i in (0, 1)]
        return torch.cat(states, dim=1)

    def pool(self, state: Tensor) -> Tensor:
        """Return tanh(W h + b) of fused text [CLS] states (..., D)."""
        return torch.tanh(self.pooler(state))

    def match_logits(self, fused: FusedFeatures) -> Tensor:
        """Score each pair: (M, 2) logits, class 1 = the text describes the image."""
        return self.itm_head(fused.pooled)  # type: ignore[no-any-return]

    def match_pairs(
        self, image: ImageFeatures, text: TextFeatures, *, image_index: Tensor | None = None
    ) -> Tensor:
        """Return `match_logits(fuse(...))`; the last block computes the text [CLS] only."""
        sequence = self._paired(image, text, image_index)
        states = self.trunk.read(sequence, [(slice(None), sequence.first_positions())])[0]
        return self.itm_head(self.pool(states[:, 0]))  # type: ignore[no-any-return]

    def word_logits(self, states: Tensor) -> Tensor:
        """Score every token at text states (..., D): (..., V) logits of the MLM head."""
        return self.mlm_head(states)  # type: ignore[no-any-return]

    @staticmethod
    def _paired(
        image: ImageFeatures, text: TextFeatures, image_index: Tensor | None
    ) -> TokenSequence:
        """Return what the fusion encoder starts from."""
        if image.inputs is None or text.inputs is None:
            raise CapabilityError(
                "VLMo fuses embeddings, not encoded states: give features with their `inputs`, as "
                "encode_image and encode_text return them"
            )
        return TokenSequence(image.inputs, text.inputs, text.mask, image_index)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw weights as BEiT does: residual projections of block l are divided by √(2l)."""
        config = self.config
        init_weights(self, config.init_std)
        for token in (self.class_embedding, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=config.init_std)
        position_std = config.position_init_std or config.init_std
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding, std=position_std)
        if self.text_embedding.position is not None:
            nn.init.normal_(self.text_embedding.position.weight, std=position_std)
        for layer, block in enumerate(self.trunk.blocks):
            assert isinstance(block, MultiwayBlock)
            depth = math.sqrt(2 * (layer + 1))
            block.attention.out.weight /= depth
            for expert in block.experts.values():
                expert.mlp.down.weight /= depth  # type: ignore[union-attr, operator]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
