"""FLAVA pre-training: pairs, images alone and texts alone (Singh et al. 2022, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.host import alike, keep_twin, on_host, select
from triptych.core.outputs import BatchKind, Predictions
from triptych.data.codes import check_stored_codes
from triptych.data.collate import AnyCollator, MaskedImageCollator
from triptych.data.collate.pretraining import FLAVAPairCollator, MaskedTextCollator
from triptych.data.records import Record
from triptych.distributed.collectives import mean_over_ranks
from triptych.models.dvae.config import codebook_image_size
from triptych.models.dvae.model import DVAE
from triptych.models.flava.model import FLAVA
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.global_contrastive import (
    ContrastiveScope,
    PairKeys,
    global_contrastive_loss,
)
from triptych.objectives.gradient_cache import Encode, run_in_chunks
from triptych.objectives.mlm import token_sum
from triptych.objectives.vitals import PairWatch, temperature_vitals
from triptych.tasks.pretraining import image_tokenizer as image_tokenizers
from triptych.tasks.pretraining.padding import cut_padding, is_read, true_positions
from triptych.tasks.pretraining.pseudo_likelihood import text_pseudo_likelihood
from triptych.tasks.pretraining.work import flava_work
from triptych.tasks.spec import (
    CollatorInputs,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.train.chance import Chance

Kind = Literal["pair", "image", "text"]

BATCH_KINDS: dict[Kind, BatchKind] = {
    "pair": BatchKind(
        frozenset(
            {"image", "hidden_patches", "token_ids", "mlm_token_ids", "mlm_labels", "text_mask"}
            | {"itm_labels", "index"}
        ),
        frozenset({"gc", "itm", "mmm_image", "mmm_text"}),
    ),
    "image": BatchKind(frozenset({"image", "hidden_patches", "index"}), frozenset({"mim"})),
    "text": BatchKind(
        frozenset({"mlm_token_ids", "mlm_labels", "text_mask", "index"}), frozenset({"mlm"})
    ),
}
"""What batches hold, and which losses they have; all weights are 1 in the released code."""

OBJECTIVES = frozenset[str]().union(*(kind.objectives for kind in BATCH_KINDS.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class FLAVAPretrainingConfig(TaskConfig):
    """Settings of FLAVA's pre-training objectives.

    Attributes:
        contrastive: "global" sends the contrastive gradient to every process (paper, 3.2); "local"
            treats the embeddings of other processes as constants.
        max_logit_scale: Upper clamp of log(1/τ) (4.6052: τ is at least 0.01); the lower one is 0.
        image_tokenizer: A model folder with a dVAE, or FLAVA's or DALL-E's released weights; its
            codes are the targets of masked patches. Empty keeps the model's own codebook.
        stored_codes: Whether codes are read from the data, as `triptych data tokenize-images` wrote
            them, instead of computed at each step. Images are then neither cropped nor mirrored.
        swap_probability: Probability of swapping a pair's caption for ITM (0.1 in torchmultimodal;
            the paper does not say).
        max_text_tokens: Longest text of the text-only batches, including [CLS] and [SEP] (released:
            512).
        chunk_size: Rows of a batch (pairs, images or texts) whose activations are stored at a time;
            the rest is recomputed in the backward pass. This fits a contrastive batch of any size
            on one device, with the same losses and gradients. None keeps the whole batch.
    """

    contrastive: ContrastiveScope = "global"
    max_logit_scale: float = 4.6052
    image_tokenizer: str = ""
    stored_codes: bool = False
    swap_probability: float = 0.1
    max_text_tokens: int = 512
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of range."""
        swap, length = self.swap_probability, self.max_text_tokens
        check(0 <= swap <= 1, "swap_probability", swap, "be from 0 to 1")
        check(length >= 3, "max_text_tokens", length, "be at least 3")
        check(self.max_logit_scale > 0, "max_logit_scale", self.max_logit_scale, "be above 0")
        chunk = self.chunk_size
        check(chunk is None or chunk >= 1, "chunk_size", chunk, "be at least 1, or absent")


class FLAVAPretraining:
    """The Task of FLAVA's pre-training.

    A batch is of one kind. Pairs: GC on whole images and texts; ITM, MMM-image and MMM-text on
    the multimodal encoder's states of masked ones. Images alone: MIM. Texts alone: MLM. Whole
    and masked inputs go through an encoder as one batch, and each last block computes only the
    tokens that a loss reads.

    Differences from the released ports, each tested: a batch without a matched pair trains neither
    GC nor MMM (the ports then train them on mismatches); an empty mask gives a loss of 0 with its
    graph (the ports: NaN); `itm_labels` may be (B,) or (B, 1); no tensor of the batch is changed;
    token losses are means over the tokens of all processes, and not means of their means.

    Args:
        model: What is trained.
        config: The settings.
        image_tokenizer: A dVAE whose encoder becomes the model's codebook.
    """

    batch_keys = frozenset({"index"})
    batch_kinds = BATCH_KINDS
    objective_names = OBJECTIVES

    def __init__(
        self,
        model: FLAVA,
        config: FLAVAPretrainingConfig,
        image_tokenizer: DVAE | None = None,
    ) -> None:
        self.config = config
        if image_tokenizer is not None:
            model.take_codebook(image_tokenizer)
        self.modules = nn.ModuleDict({"model": model})
        self._watch = PairWatch()
        model.set_recompute_cheap(
            config.chunk_size is None
        )  # what a chunk recomputes would be kept

    @property
    def model(self) -> FLAVA:
        """The model that is trained."""
        return cast(FLAVA, self.modules["model"])

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of those active objectives that the batch has.

        Args:
            batch: Of one kind. Images: `image` (B, 3, H, W), `hidden_patches` (B, P) bool, and
                `image_codes` (B, P) int64 or `codebook_image`. Texts: `mlm_token_ids`,
                `mlm_labels`, `text_mask` (B, L). Pairs: both, `token_ids` (B, L), `itm_labels`
                (B,) or (B, 1), 1 = match; `image_key` and `caption_key` (B,) are read if present.
            active: Objectives to compute.

        Returns:
            Scalars by name: gc, itm, mmm_image and mmm_text; or mim; or mlm.

        Raises:
            DataError: The batch lacks a key of its kind.
        """
        kind = kind_of_batch(batch)
        missing = sorted(BATCH_KINDS[kind].batch_keys - {"index"} - batch.keys())
        if missing:
            raise DataError(f"a batch of kind {kind!r} lacks {missing}; it holds {sorted(batch)}")
        wanted = active & BATCH_KINDS[kind].objectives
        if not wanted:
            return {}
        batch = cut_padding(batch)
        if kind == "pair":
            return self._pair_losses(batch, wanted)
        return {"mim": self._mim(batch)} if kind == "image" else {"mlm": self._mlm(batch)}

    def after_step(self, step: int) -> None:
        """Clamp the contrastive scale to [0, max_logit_scale], as the released code does."""
        del step
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, self.config.max_logit_scale)

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the embeddings and of ITM's labels; see `PairWatch`."""
        return self._watch.take(spread=spread)

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the temperature."""
        return flava_temperature(self.model, self.config.max_logit_scale)

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
        """Predict the codes of masked patches from the image alone (paper, section 3.3)."""
        model, labels = self.model, self._code_labels(batch, None)  # (B, P)

        def run(image: Tensor, hidden: Tensor, labels: Tensor) -> Tensor:
            positions, valid = true_positions(alike(lambda x: F.pad(x, (1, 0)), is_read(labels)))
            states = select(model.visual_encoder.read(image, hidden, positions), valid)
            logits = model.mim_head(model.visual_encoder.final_norm(states))
            return token_sum(logits, select(labels, is_read(labels)))[None]

        (sums,) = self._in_chunks(run, batch["image"], _hidden(batch), labels)
        return mean_over_ranks(sums.sum(), (labels != IGNORE_INDEX).sum())

    def _mlm(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Predict hidden words from the text alone (paper, section 3.3)."""
        labels = batch["mlm_labels"]

        def run(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
            logits = self._hidden_word_logits(ids, mask, labels)
            return token_sum(logits, select(labels, is_read(labels)))[None]

        (sums,) = self._in_chunks(run, batch["mlm_token_ids"], batch["text_mask"], labels)
        return mean_over_ranks(sums.sum(), (labels != IGNORE_INDEX).sum())

    def _hidden_word_logits(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return (H, V) scores of the hidden words of texts (R, L)."""
        positions, valid = true_positions(is_read(labels))
        states = select(self.model.text_encoder.read(ids, mask, positions), valid)
        return cast(Tensor, self.model.mlm_head(self.model.text_encoder.final_norm(states)))

    @torch.no_grad()
    def pseudo_likelihood(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the pseudo-likelihood of each text; see `text_pseudo_likelihood`."""
        return text_pseudo_likelihood(self._hidden_word_logits, batch)

    def _in_chunks(self, run: Encode, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return what `run` makes of the batch, `chunk_size` rows at a time if that is set."""
        return run_in_chunks(run, *rows, chunk_size=self.config.chunk_size)

    def _pair_losses(
        self, batch: Mapping[str, Tensor], active: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return the losses of pairs, swapped captions among them."""
        itm_labels = batch["itm_labels"].flatten()
        matched = alike(lambda labels: labels.flatten() == 1, batch["itm_labels"])
        codes = alike(_no_targets, _hidden(batch))
        if "mmm_image" in active:
            codes = self._code_labels(batch, matched)
        words = batch["mlm_labels"]
        if "mmm_text" in active:
            words = alike(lambda x, m: x.masked_fill(~m[:, None], IGNORE_INDEX), words, matched)
        else:
            words = alike(_no_targets, words)
        rows = _Pairs(
            batch["image"],
            _hidden(batch),
            batch["token_ids"],
            batch["mlm_token_ids"],
            batch["text_mask"],
            codes,
            words,
            itm_labels,
        )

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return self._pair_pass(_Pairs(*tensors), active)

        image, text, itm, mmm_image, mmm_text = self._in_chunks(run, *rows)
        counts = {"itm": itm_labels >= 0, "mmm_image": codes >= 0, "mmm_text": words >= 0}
        sums = {"itm": itm, "mmm_image": mmm_image, "mmm_text": mmm_text}
        losses = {"gc": self._gc(image, text, batch, matched)} if "gc" in active else {}
        if "gc" in active:
            self._watch.note_embeddings(image, text)
        if "itm" in active:
            self._watch.note_matches(itm_labels)
        return losses | {
            name: mean_over_ranks(total.sum(), counts[name].sum())
            for name, total in sums.items()
            if name in active
        }

    def _pair_pass(self, rows: _Pairs, active: frozenset[str]) -> tuple[Tensor, ...]:
        """Run the encoders on some rows of a batch.

        Returns:
            Image and text embeddings (b, E), or (b, 0) if GC is not active; and the sums of the
            cross-entropies of ITM, MMM-image and MMM-text, (1,) each, 0 where not active.
        """
        model = self.model
        is_joint = bool(active - {"gc"})
        ids, mask = model.padded(rows.token_ids, rows.text_mask)
        image_cls = text_cls = None
        if "gc" in active and is_joint:
            masked_ids, _ = model.padded(rows.masked_ids, rows.text_mask)
            images = model.image_passes(rows.image, rows.hidden)
            texts = model.text_passes(ids, masked_ids, mask)
            image_cls, text_cls = images.clean_cls, texts.clean_cls
            image, text = images.masked, texts.masked
        elif is_joint:
            masked_ids, _ = model.padded(rows.masked_ids, rows.text_mask)
            image = model.visual_encoder(rows.image, rows.hidden)
            text = model.text_encoder(masked_ids, mask)
        else:
            image_cls = model.visual_encoder.class_state(rows.image)
            text_cls = model.text_encoder.class_state(rows.token_ids, rows.text_mask)
        none = rows.image.new_zeros(len(rows.image), 0)
        sums = (
            self._fused_sums(rows, image, text, mask)
            if is_joint
            else (rows.image.new_zeros(1),) * 3
        )
        return (
            none if image_cls is None else model.project_image(image_cls),
            none if text_cls is None else model.project_text(text_cls),
            *sums,
        )

    def _fused_sums(
        self, rows: _Pairs, image: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse masked images with masked texts and read each loss's own tokens.

        Args:
            rows: Gives the labels.
            image: (b, N, W) states of masked images.
            text: (b, L, T) states of masked texts.
            text_mask: (b, L) bool.

        Returns:
            Sums of the cross-entropies of ITM, MMM-image and MMM-text, (1,) each.
        """
        model, text_mask = self.model, self.model.fused_mask(text_mask)
        missing = text.shape[1] - rows.words.shape[1]

        def join(codes: Tensor, words: Tensor) -> Tensor:
            none = torch.full_like(codes[:, :1], IGNORE_INDEX)
            words = F.pad(words, (0, missing), value=IGNORE_INDEX)
            return torch.cat([none, none, codes, words], dim=1)

        def read(labels: Tensor) -> Tensor:
            found = labels != IGNORE_INDEX
            found[:, 0] = True  # the class token, for ITM
            return found

        labels = alike(join, rows.codes, rows.words)  # (b, 1 + N + L)
        positions, valid = true_positions(alike(read, labels))
        states = model.fusion(image, text, text_mask, positions=positions)
        states = model.fusion.final_norm(states)  # (b, R, D)
        num_image = image.shape[1]
        labels = alike(_labels_at, labels, positions, valid)  # (b, R)
        in_image, in_text = (
            alike(
                lambda labels, places, text=text: (
                    (labels != IGNORE_INDEX) & ((places > num_image) == text)
                ),
                labels,
                positions,
            )
            for text in (False, True)
        )
        return (
            token_sum(model.itm_head(states[:, 0]), rows.itm_labels)[None],
            token_sum(model.mmm_image_head(select(states, in_image)), select(labels, in_image))[
                None
            ],
            token_sum(model.mmm_text_head(select(states, in_text)), select(labels, in_text))[None],
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

    def _code_labels(self, batch: Mapping[str, Tensor], matched: Tensor | None) -> Tensor:
        """Return the code of each masked patch (B, P), IGNORE_INDEX elsewhere.

        The tokenizer sees only the images of matched pairs.
        """
        hidden = _hidden(batch)
        if matched is not None:
            hidden = alike(lambda x, m: x & m[:, None], hidden, matched)
        if "image_codes" in batch:
            codes = batch["image_codes"]
            return alike(lambda x, h: x.flatten(1).masked_fill(~h, IGNORE_INDEX), codes, hidden)
        if "codebook_image" not in batch:
            raise DataError("a batch with images needs `image_codes` or `codebook_image`")
        labels = torch.full_like(hidden, IGNORE_INDEX, dtype=torch.int64)
        known = on_host(hidden)
        rows = known.any(dim=1).nonzero()[:, 0].to(hidden.device, non_blocking=True)
        for some in torch.split(rows, self.config.chunk_size or max(1, len(rows))):  # type: ignore[no-untyped-call]
            if len(some):
                labels[some] = self.model.image_codes(batch["codebook_image"][some])
        labels.masked_fill_(~hidden, IGNORE_INDEX)
        if known is not hidden:  # the codes stay on the device; where they are is known
            keep_twin(labels, torch.where(known, 0, IGNORE_INDEX))
        return labels


def flava_temperature(model: FLAVA, max_logit_scale: float) -> dict[str, float]:
    """Return τ and the clamps that keep log(1/τ) between 0 and `max_logit_scale`."""
    tau = torch.exp(-model.logit_scale.detach())
    return temperature_vitals(tau, math.exp(-max_logit_scale), 1.0)


MASKED_WORDS = Chance(labels="mlm_labels")


class _Pairs(NamedTuple):
    """Some rows of a batch of pairs, and what their losses predict."""

    image: Tensor
    hidden: Tensor
    token_ids: Tensor
    masked_ids: Tensor
    text_mask: Tensor
    codes: Tensor
    words: Tensor
    itm_labels: Tensor


def kind_of_batch(batch: Mapping[str, Tensor]) -> Kind:
    """Say of what kind a batch is.

    Raises:
        DataError: It holds neither images nor masked texts.
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


def _hidden(batch: Mapping[str, Tensor]) -> Tensor:
    return alike(lambda x: x.flatten(1), batch["hidden_patches"])


def _no_targets(like: Tensor) -> Tensor:
    """Return labels of this shape that no loss reads."""
    return torch.full_like(like, IGNORE_INDEX, dtype=torch.int64)


def _labels_at(labels: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
    """Return the labels (b, R) at some positions, IGNORE_INDEX where these are padding."""
    return labels.gather(1, positions).masked_fill(~valid, IGNORE_INDEX)


class CodesConfig(Protocol):
    """Settings of a task whose targets are an image tokenizer's codes."""

    @property
    def image_tokenizer(self) -> str: ...  # noqa: D102 - as `FLAVAPretrainingConfig` says

    @property
    def stored_codes(self) -> bool: ...  # noqa: D102


def named_tokenizer(config: CodesConfig) -> DVAE | None:
    """Return the image tokenizer that the settings name; None if they name none."""
    return image_tokenizers.load(config.image_tokenizer) if config.image_tokenizer else None


def mask_texts(max_text_tokens: int, inputs: CollatorInputs) -> MaskedTextCollator:
    """Build the collator of texts alone.

    They mask tokens one by one; `captions.whole_word` is for pairs (torchmultimodal).
    """
    texts = replace(inputs.captions, max_text_tokens=max_text_tokens, whole_word=False)
    return MaskedTextCollator(inputs.tokenizer, texts)


def mask_images(config: CodesConfig, inputs: CollatorInputs) -> MaskedImageCollator:
    """Build the collator of images alone."""
    view = inputs.patches()
    size = codebook_image_size(view.image.image_size, view.patch_size)
    return MaskedImageCollator(
        view.image,
        patch_size=view.patch_size,
        codebook_size=None if config.stored_codes else size,
    )


def check_codes(config: CodesConfig, model: FLAVA, records: Iterable[Record]) -> None:
    """Raise where codes are read from the data and are not those of the model's codebook.

    Raises:
        DataError: An image has no stored codes, or other ones than the model's codebook gives.
    """
    if config.stored_codes:
        codebook = model.codebook
        check_stored_codes(
            [record for record in records if record.image is not None],
            num_codes=model.config.num_codes,
            image_size=model.config.codebook_image_size,
            tokenizer=None if codebook is None else image_tokenizers.fingerprint(codebook),
        )


def codebook_notes(config: CodesConfig, model: FLAVA) -> list[str]:
    """Return a warning where masked patches have the codes of a codebook that nobody trained."""
    if config.stored_codes or model.has_trained_codebook:
        return []
    return [
        "the model's image codebook has random weights, so MIM and MMM-image learn codes that mean "
        "little: name an image tokenizer with --task.image-tokenizer (`triptych train dvae` makes "
        "one), or take `triptych train flava.stagewise`, which trains one first"
    ]


def _collator(config: FLAVAPretrainingConfig, inputs: CollatorInputs) -> AnyCollator[Any]:
    if inputs.kind == "text":
        return mask_texts(config.max_text_tokens, inputs)
    images = mask_images(config, inputs)
    if inputs.kind == "image":
        return images
    return FLAVAPairCollator(
        inputs.tokenizer, inputs.captions, images, swap_probability=config.swap_probability
    )


SPEC = TaskSpec(
    config=FLAVAPretrainingConfig,
    trained_for="pretraining",
    build=lambda config, model, *_: FLAVAPretraining(model, config, named_tokenizer(config)),
    collator=_collator,
    needs=("caption|image|text",),
    models=TrainedModels(families=("flava",)),
    recipes=(TaskRecipe("flava.joint", "flava"),),
    serves=("match", "embed", "classify"),
    also_scored=("retrieval", "zero_shot", "pseudo_perplexity"),
    pretrains=True,
    check_data=check_codes,
    notes=codebook_notes,
    chances=lambda config: {
        "gc": Chance(columns=True),
        "itm": Chance(match_share=1 - config.swap_probability),
        "mlm": MASKED_WORDS,
        "mmm_text": MASKED_WORDS,
    },
    work=lambda config, sizes, tokens: flava_work(
        sizes,
        tokens,
        matched_share=1 - config.swap_probability,
        codes=not config.stored_codes,
        chunk_size=config.chunk_size,
    ),
)
