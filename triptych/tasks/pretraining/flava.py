"""FLAVA pre-training: pairs, pictures alone and texts alone (Singh et al. 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.outputs import Predictions
from triptych.models.flava.model import FLAVA
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.global_contrastive import (
    ContrastiveScope,
    PairKeys,
    global_contrastive_loss,
)
from triptych.objectives.matching import itm_loss
from triptych.objectives.mlm import token_loss

BatchKind = Literal["pair", "image", "text"]

OBJECTIVES_OF: dict[BatchKind, frozenset[str]] = {
    "pair": frozenset({"gc", "itm", "mmm_image", "mmm_text"}),
    "image": frozenset({"mim"}),
    "text": frozenset({"mlm"}),
}
"""Which losses a batch has; all weights are 1 in the released code."""

OBJECTIVES = frozenset[str]().union(*OBJECTIVES_OF.values())

_KEYS: dict[BatchKind, frozenset[str]] = {
    "pair": frozenset(
        {"image", "hidden_patches", "token_ids", "mlm_token_ids", "mlm_labels", "text_mask"}
        | {"itm_labels"}
    ),
    "image": frozenset({"image", "hidden_patches"}),
    "text": frozenset({"mlm_token_ids", "mlm_labels", "text_mask"}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAPretrainingConfig:
    """Settings of FLAVA's pre-training objectives.

    Attributes:
        contrastive: "global" sends the contrastive gradient to every process (paper, 3.2);
            "local" takes the embeddings of other processes as constants.
        max_logit_scale: Upper clamp of log(1/τ) (4.6052: τ is at least 0.01); the lower one is 0.
        recompute: Whether the backward pass computes the inside of the blocks again: less memory,
            a third more work, the same gradients.
    """

    contrastive: ContrastiveScope = "global"
    max_logit_scale: float = 4.6052
    recompute: bool = False

    def __post_init__(self) -> None:
        """Reject an empty range of the scale."""
        check(self.max_logit_scale > 0, "max_logit_scale", self.max_logit_scale, "be above 0")


class FLAVAPretraining:
    """The Task of FLAVA's pre-training.

    A batch is of one kind. Pairs: GC on whole pictures and texts; ITM, MMM-image and MMM-text on
    the multimodal encoder's states of masked ones. Pictures alone: MIM. Texts alone: MLM. Whole
    and masked inputs go through an encoder as one batch, and each last block computes only the
    tokens that a loss reads.

    Differences from the released ports, each tested: a batch without a matched pair trains neither
    GC nor MMM (the ports then train them on mismatches); an empty mask gives a loss of 0 with its
    graph (the ports: NaN); `itm_labels` may be (B,) or (B, 1); no tensor of the batch is changed;
    token losses are means over the tokens of all processes, and not means of their means.
    """

    batch_keys = frozenset({"index"})
    objective_names = OBJECTIVES

    def __init__(self, model: FLAVA, config: FLAVAPretrainingConfig) -> None:
        self.config = config
        self.modules = nn.ModuleDict({"model": model})
        model.set_recompute(config.recompute)

    @property
    def model(self) -> FLAVA:
        """The model that is trained."""
        return cast(FLAVA, self.modules["model"])

    def objectives_of(self, batch: Mapping[str, Tensor]) -> frozenset[str]:
        """Return the objectives that a batch of this kind has."""
        return OBJECTIVES_OF[batch_kind(batch)]

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of those active objectives that the batch has.

        Args:
            batch: Of one kind. Pictures: `image` (B, 3, H, W), `hidden_patches` (B, P) bool, and
                `image_codes` (B, P) int64 or `codebook_image`. Texts: `mlm_token_ids`,
                `mlm_labels`, `text_mask` (B, L). Pairs: both, `token_ids` (B, L), `itm_labels`
                (B,) or (B, 1), 1 = match; `image_key` and `caption_key` (B,) are read if present.
            active: Objectives to compute.

        Returns:
            Scalars by name: gc, itm, mmm_image and mmm_text; or mim; or mlm.

        Raises:
            DataError: The batch lacks a key of its kind.
        """
        kind = batch_kind(batch)
        if missing := sorted(_KEYS[kind] - batch.keys()):
            raise DataError(f"a batch of kind {kind!r} lacks {missing}; it holds {sorted(batch)}")
        active = active & OBJECTIVES_OF[kind]
        batch = trimmed(batch)
        if kind == "pair":
            return self._pair_losses(batch, active)
        if not active:
            return {}
        return {"mim": self._mim(batch)} if kind == "image" else {"mlm": self._mlm(batch)}

    def after_step(self, step: int) -> None:
        """Clamp the contrastive scale to [0, max_logit_scale], as the released code does."""
        del step
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, self.config.max_logit_scale)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides, for retrieval.

        Args:
            batch: `image`, `token_ids`, `text_mask`, `index`.
        """
        image = self.model.encode_image(batch["image"])
        text = self.model.encode_text(batch["token_ids"], batch["text_mask"])
        return Predictions(
            index=batch["index"].tolist(),
            embeddings={
                "image": self.model.embed_image(image),
                "text": self.model.embed_text(text),
            },
        )

    def _mim(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predict the codes of hidden patches from the picture alone (paper, section 3.3)."""
        encoder = self.model.visual_encoder
        labels = self._code_labels(batch, None)  # (B, P)
        positions, valid = places(F.pad(labels != IGNORE_INDEX, (1, 0)))
        states = encoder.read(batch["image"], _hidden(batch), positions)[valid]
        states = encoder.final_norm(states)
        return token_loss(self.model.mim_head(states), labels[labels != IGNORE_INDEX])

    def _mlm(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predict hidden words from the text alone (paper, section 3.3)."""
        model, labels = self.model, batch["mlm_labels"]
        positions, valid = places(labels != IGNORE_INDEX)
        states = model.text_encoder.read(batch["mlm_token_ids"], batch["text_mask"], positions)
        states = model.text_encoder.final_norm(states[valid])
        return token_loss(model.mlm_head(states), labels[labels != IGNORE_INDEX])

    def _pair_losses(
        self, batch: Mapping[str, Tensor], active: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return the losses of pairs, swapped captions among them."""
        model = self.model
        itm_labels = batch["itm_labels"].flatten()
        matched = itm_labels != 0
        is_joint = bool(active - {"gc"})
        if not is_joint:
            if not active:
                return {}
            image = model.encode_image(batch["image"])
            text = model.encode_text(batch["token_ids"], batch["text_mask"])
            embeddings = model.embed_image(image), model.embed_text(text)
            return {"gc": self._gc(*embeddings, batch, matched)}
        ids, mask = model.padded(batch["token_ids"], batch["text_mask"])
        masked_ids, _ = model.padded(batch["mlm_token_ids"], batch["text_mask"])
        losses: dict[str, Tensor] = {}
        if "gc" in active:
            pictures = model.image_passes(batch["image"], _hidden(batch))
            texts = model.text_passes(ids, masked_ids, mask)
            image_states, text_states = pictures.masked, texts.masked
            embeddings = (
                model.project_image(pictures.clean_cls),
                model.project_text(texts.clean_cls),
            )
            losses["gc"] = self._gc(*embeddings, batch, matched)
        else:
            image_states = model.visual_encoder(batch["image"], _hidden(batch))
            text_states = model.text_encoder(masked_ids, mask)
        return losses | self._fused_losses(
            batch, image_states, text_states, mask, itm_labels, active
        )

    def _gc(
        self, image: Tensor, text: Tensor, batch: Mapping[str, Tensor], matched: Tensor
    ) -> Tensor:
        keys = None
        if "image_key" in batch and "caption_key" in batch:
            keys = PairKeys(batch["image_key"], batch["caption_key"])
        return global_contrastive_loss(
            image,
            text,
            self.model.logit_scale,
            matched=matched,
            keys=keys,
            scope=self.config.contrastive,
        )

    def _fused_losses(
        self,
        batch: Mapping[str, Tensor],
        image: Tensor,
        text: Tensor,
        text_mask: Tensor,
        itm_labels: Tensor,
        active: frozenset[str],
    ) -> dict[str, Tensor]:
        """Fuse masked pictures with masked texts and read each loss's own tokens.

        Args:
            batch: Gives the labels.
            image: (B, N, W) states of masked pictures.
            text: (B, L, T) states of masked texts.
            text_mask: (B, L) bool.
            itm_labels: (B,) int64.
            active: Losses to compute.
        """
        model, matched = self.model, itm_labels != 0
        labels = self._fused_labels(batch, image.shape[1], text.shape[1], matched, active)
        read = labels != IGNORE_INDEX
        read[:, 0] = True  # the class token, for ITM
        positions, valid = places(read)
        states = model.fusion(image, text, text_mask, positions=positions)
        states = model.fusion.final_norm(states)  # (B, R, D)
        labels = labels.gather(1, positions).masked_fill(~valid, IGNORE_INDEX)  # (B, R)
        is_text = positions > image.shape[1]
        losses = {"itm": itm_loss(model.itm_head(states[:, 0]), itm_labels)}
        for name, head, here in (
            ("mmm_image", model.mmm_image_head, ~is_text),
            ("mmm_text", model.mmm_text_head, is_text),
        ):
            if name in active:
                chosen = here & (labels != IGNORE_INDEX)
                losses[name] = token_loss(head(states[chosen]), labels[chosen])
        return {name: losses[name] for name in ("itm", "mmm_image", "mmm_text") if name in active}

    def _fused_labels(
        self,
        batch: Mapping[str, Tensor],
        num_image: int,
        num_text: int,
        matched: Tensor,
        active: frozenset[str],
    ) -> Tensor:
        """Return the target of each fused token, (B, 1 + N + L), of matched pairs only."""
        none = torch.full_like(batch["mlm_labels"][:, :1], IGNORE_INDEX)
        codes = none.expand(-1, num_image - 1)
        if "mmm_image" in active:
            codes = self._code_labels(batch, matched)
        words = none.expand(-1, num_text)
        if "mmm_text" in active:
            words = batch["mlm_labels"].masked_fill(~matched[:, None], IGNORE_INDEX)
            words = F.pad(words, (0, num_text - words.shape[1]), value=IGNORE_INDEX)
        return torch.cat([none, none, codes, words], dim=1)

    def _code_labels(self, batch: Mapping[str, Tensor], matched: Tensor | None) -> Tensor:
        """Return the code of each hidden patch (B, P), IGNORE_INDEX elsewhere.

        The tokenizer sees only the pictures of matched pairs.
        """
        hidden = _hidden(batch)
        if matched is not None:
            hidden = hidden & matched[:, None]
        if "image_codes" in batch:
            return batch["image_codes"].flatten(1).masked_fill(~hidden, IGNORE_INDEX)
        if "codebook_image" not in batch:
            raise DataError("a batch with pictures needs `image_codes` or `codebook_image`")
        labels = torch.full_like(hidden, IGNORE_INDEX, dtype=torch.int64)
        rows = hidden.any(dim=1)
        if bool(rows.any()):
            labels[rows] = self.model.image_codes(batch["codebook_image"][rows])
        return labels.masked_fill_(~hidden, IGNORE_INDEX)


def batch_kind(batch: Mapping[str, Tensor]) -> BatchKind:
    """Say of what kind a batch is.

    Raises:
        DataError: It holds neither pictures nor masked texts.
    """
    has_image, has_text = "image" in batch, "mlm_token_ids" in batch
    if has_image and has_text:
        return "pair"
    if not has_image and not has_text:
        raise DataError(
            "a batch for FLAVA's pre-training holds `image`, `mlm_token_ids` or both; this one "
            f"holds {sorted(batch)}"
        )
    return "image" if has_image else "text"


def trimmed(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a batch whose texts end with the longest of them; padding costs time."""
    mask = batch.get("text_mask")
    if mask is None or bool(mask[:, -1].any()):
        return batch
    longest = max(1, int(mask.any(dim=0).nonzero().max()) + 1) if bool(mask.any()) else 1
    names = {"token_ids", "mlm_token_ids", "mlm_labels", "text_mask"}
    return {name: t[:, :longest] if name in names else t for name, t in batch.items()}


def places(read: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row is True, padded with other places to the row that has most.

    Args:
        read: (B, S) bool.

    Returns:
        (B, R) int64 places in rising order, and (B, R) bool, False for padding. R is at least 1.
    """
    counts = read.sum(dim=1)
    most = max(1, int(counts.max()))
    order = torch.argsort(~read, dim=1, stable=True)[:, :most]
    return order, torch.arange(most, device=read.device) < counts[:, None]


def _hidden(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["hidden_patches"].flatten(1)
