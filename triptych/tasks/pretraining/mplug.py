"""mPLUG pre-training: ITC, ITM, MLM and PrefixLM in one pass (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.outputs import FusedFeatures, ImageFeatures, Predictions, TextFeatures
from triptych.data.collate import PretrainingCollator
from triptych.distributed.collectives import all_gather, all_gather_with_grad
from triptych.models.mplug.model import MPLUG
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.contrastive import (
    itc_loss,
    positive_pairs,
    similarity,
    soft_targets,
)
from triptych.objectives.feature_queue import FeatureQueue
from triptych.objectives.matching import itm_loss, sample_hard_negatives
from triptych.objectives.mlm import distillation_loss, shift_targets, token_loss
from triptych.objectives.momentum import MomentumEncoder
from triptych.tasks.pretraining.work import mplug_work
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels

OBJECTIVES = frozenset({"itc", "itm", "mlm", "prefix_lm"})


@dataclass(frozen=True, kw_only=True, slots=True)
class MPLUGPretrainingConfig(TaskConfig):
    """Settings of mPLUG's pre-training objectives.

    Attributes:
        temperature: Initial value of τ (0.07 in the released code); τ is learned.
        min_temperature: Lower clamp of τ (0.001 in the released code).
        max_temperature: Upper clamp of τ (0.5 in the released code).
        queue_size: Pairs in the feature queue (paper: 65,536); 0 disables it. Any size works.
        momentum: Decay of the momentum encoders' running average (paper: 0.995); 0 disables them:
            the labels are then the targets, and a queue holds the model's own embeddings of earlier
            steps.
        alpha: Weight of the momentum encoders' distribution in the ITC targets (0.4 in the released
            configs). Needs momentum.
        alpha_ramp_steps: Steps over which alpha grows from 0 (released: the first epoch).
        distill_mlm: Whether MLM also learns from the momentum model, with weight alpha.
        distill_prefix_lm: Whether PrefixLM also learns from the momentum model, with weight alpha.
    """

    temperature: float = 0.07
    min_temperature: float = 0.001
    max_temperature: float = 0.5
    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp_steps: int = 0
    distill_mlm: bool = False
    distill_prefix_lm: bool = False

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        check(0 <= self.momentum < 1, "momentum", self.momentum, "be in [0, 1)")
        check(0 <= self.alpha <= 1, "alpha", self.alpha, "be in [0, 1]")
        check(self.queue_size >= 0, "queue_size", self.queue_size, "be at least 0")
        check(
            0 < self.min_temperature <= self.temperature <= self.max_temperature,
            "temperature",
            self.temperature,
            f"be in [{self.min_temperature}, {self.max_temperature}]",
        )
        for name in ("distill_mlm", "distill_prefix_lm"):
            check(
                self.momentum > 0 or not getattr(self, name), name, True, "be off with momentum 0"
            )


class MPLUGPretraining:
    """The Task of mPLUG's pre-training.

    One image pass, one text pass over captions and masked captions, one over prefixes, and one
    fusion pass over all rows that need one; the image keys and values of asymmetric layers are
    computed once an image. The result equals one pass an objective.

    Differences from the released and derived code: pairs that share an image or a caption are
    positives in ITC and never negatives in ITM; the teacher's fusion network is tracked; the
    distillation softmax runs over the vocabulary and its weight reaches the decoder.
    """

    batch_keys = frozenset(
        {
            "image",
            "token_ids",
            "text_mask",
            "mlm_token_ids",
            "mlm_labels",
            "prefix_token_ids",
            "prefix_mask",
            "target_token_ids",
            "target_mask",
            "image_key",
            "caption_key",
            "index",
        }
    )

    def __init__(self, model: MPLUG, config: MPLUGPretrainingConfig) -> None:
        self.config = config
        matches = "itm" in model.capabilities  # not without a fusion network
        self.objective_names = OBJECTIVES if matches else OBJECTIVES - {"itm"}
        state = nn.Module()
        state.register_parameter("temperature", nn.Parameter(torch.tensor(config.temperature)))
        self.modules = nn.ModuleDict({"model": model, "state": state})
        if config.momentum > 0:
            self.modules["teacher"] = MomentumEncoder(model, config.momentum)
        if config.queue_size > 0:
            self.modules["queue"] = FeatureQueue(config.queue_size, model.config.proj_dim)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._step = 0

    @property
    def model(self) -> MPLUG:
        """The model that is trained."""
        return cast(MPLUG, self.modules["model"])

    @property
    def temperature(self) -> Tensor:
        """The learned τ, a scalar."""
        return cast(Tensor, self.modules["state"].temperature)

    def alpha(self) -> float:
        """Return the weight of the teacher at the current step."""
        if "teacher" not in self.modules:
            return 0.0
        ramp = self.config.alpha_ramp_steps
        return self.config.alpha * (min(1.0, self._step / ramp) if ramp else 1.0)

    def extra_state(self) -> dict[str, int]:
        """Return what a checkpoint must hold besides tensors."""
        return {"step": self._step}

    def load_extra_state(self, state: dict[str, int]) -> None:
        """Restore what `extra_state` returned."""
        self._step = state["step"]

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of the active objectives.

        Args:
            batch: Tensors named by `batch_keys`.
            active: Objectives to compute.

        Returns:
            Scalars by name, in the order itc, itm, mlm, prefix_lm.
        """
        image = self.model.encode_image(batch["image"])
        texts = _encode_texts(self.model, batch, active)
        with torch.no_grad():
            teacher = self._teacher_pass(batch, active)
        losses: dict[str, Tensor] = {}
        sims = None
        if active & {"itc", "itm"}:
            image_embedding = self.model.embed_image(image)
            text_embedding = self.model.embed_text(texts["caption"])
            sims = similarity(image_embedding, text_embedding, self.temperature)
            if "itc" in active:
                losses["itc"] = self.itc(batch, image_embedding, text_embedding, sims, teacher)
        if active & {"itm", "mlm", "prefix_lm"}:
            losses |= self._fused_losses(batch, image, texts, sims, active, teacher)
        return losses

    def after_step(self, step: int) -> None:
        """Move the teacher, push the queue and clamp the temperature.

        Args:
            step: Optimizer steps done so far, this one included.
        """
        self._step = step
        if "teacher" in self.modules:
            cast(MomentumEncoder, self.modules["teacher"]).update(self.model)
        if "queue" in self.modules:
            for pairs in self._pending:  # one a micro-batch
                cast(FeatureQueue, self.modules["queue"]).push(*pairs)
        self._pending = []
        with torch.no_grad():
            self.temperature.clamp_(self.config.min_temperature, self.config.max_temperature)

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

    def itc(
        self,
        batch: Mapping[str, Tensor],
        image_embedding: Tensor,
        text_embedding: Tensor,
        sims: Tensor,
        teacher: TeacherPass | None,
    ) -> Tensor:
        """Contrast images and texts of the batch with each other, all processes and the queue.

        Args:
            batch: Gives the keys that tell positives.
            image_embedding: (B, E).
            text_embedding: (B, E).
            sims: (B, B) similarities of the student over the temperature.
            teacher: What the momentum model says, if there is one.
        """
        keys = torch.stack([batch["image_key"], batch["caption_key"]], dim=1)  # (B, 2)
        all_keys = all_gather(keys)  # (G, 2): the rows of all processes
        if teacher is None:
            columns = all_gather_with_grad(image_embedding), all_gather_with_grad(text_embedding)
        else:
            columns = all_gather(teacher.image_embedding), all_gather(teacher.text_embedding)
        image_m, text_m = columns[0].detach(), columns[1].detach()
        if self.model.training:
            self._pending.append((image_m, text_m, all_keys))
        if teacher is None and len(all_keys) == len(keys):
            sim_i2t, sim_t2i = sims, sims.T
        elif teacher is None:
            sim_i2t = similarity(image_embedding, columns[1], self.temperature)
            sim_t2i = similarity(text_embedding, columns[0], self.temperature)
        else:
            sim_i2t = similarity(image_embedding, text_m, self.temperature)
            sim_t2i = similarity(text_embedding, image_m, self.temperature)
        queued = None
        if "queue" in self.modules:
            queued = cast(FeatureQueue, self.modules["queue"]).features()
            more_i2t = similarity(image_embedding, queued[1], self.temperature)
            more_t2i = similarity(text_embedding, queued[0], self.temperature)
            sim_i2t = torch.cat([sim_i2t, more_i2t], dim=1)
            sim_t2i = torch.cat([sim_t2i, more_t2i], dim=1)
            all_keys = torch.cat([all_keys, queued[2]])
        positives = positive_pairs(keys, all_keys)
        if teacher is None:
            targets = soft_targets(positives, None, 0.0)
            return itc_loss(sim_i2t, sim_t2i, targets, targets)
        tau, targets_of_side = self.temperature.detach(), []
        for query, columns_m, number in (
            (teacher.image_embedding, text_m, 1),
            (teacher.text_embedding, image_m, 0),
        ):
            sim_m = similarity(query, columns_m, tau)
            if queued is not None:
                sim_m = torch.cat([sim_m, similarity(query, queued[number], tau)], dim=1)
            targets_of_side.append(soft_targets(positives, sim_m, self.alpha()))
        return itc_loss(sim_i2t, sim_t2i, *targets_of_side)

    def _fused_losses(
        self,
        batch: Mapping[str, Tensor],
        image: ImageFeatures,
        texts: dict[str, TextFeatures],
        sims: Tensor | None,
        active: frozenset[str],
        teacher: TeacherPass | None,
    ) -> dict[str, Tensor]:
        """Fuse all rows at once and read each objective's own."""
        rows = _word_rows(batch, texts, active)
        itm_labels = None
        if "itm" in active:
            assert sims is not None
            rows["itm"], itm_labels = self._itm_rows(batch, texts["caption"], sims)
        fused = _fuse(self.model, image, rows)
        losses: dict[str, Tensor] = {}
        if itm_labels is not None:
            losses["itm"] = itm_loss(self.model.match_logits(fused["itm"]), itm_labels)
        if "mlm" in active:
            states = fused["mlm"].text_tokens
            losses["mlm"] = self._mlm(batch["mlm_labels"], states, teacher)
        if "prefix_lm" in active:
            losses["prefix_lm"] = self._prefix_lm(batch, image, fused["prefix_lm"], teacher)
        return losses

    def _itm_rows(
        self, batch: Mapping[str, Tensor], caption: TextFeatures, sims: Tensor
    ) -> tuple[_Rows, Tensor]:
        """Return [pairs; text with negative image; image with negative text] and their labels."""
        negative_text, negative_image, labels = self.hard_negatives(batch, sims)
        own = torch.arange(len(negative_text), device=labels.device)
        texts = caption.select(torch.cat([own, own, negative_text]))
        only_cls = torch.zeros_like(texts.mask)
        only_cls[:, 0] = True
        return _Rows(texts, torch.cat([own, negative_image, own]), only_cls), labels

    def hard_negatives(
        self, batch: Mapping[str, Tensor], sims: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a text for each image and an image for each text from the student's similarities.

        Returns:
            Negative text of each image (B,), negative image of each text (B,), and the ITM labels
            (3·B,) of [pairs; text with negative image; image with negative text].
        """
        keys = torch.stack([batch["image_key"], batch["caption_key"]], dim=1)
        positives = positive_pairs(keys, keys)
        negative_text, has_text = sample_hard_negatives(sims, positives)
        negative_image, has_image = sample_hard_negatives(sims.T, positives)
        labels = torch.cat(
            [torch.ones_like(negative_text), torch.zeros_like(negative_text).repeat(2)]
        )
        none = torch.cat([torch.zeros_like(has_text), ~has_image, ~has_text])
        return negative_text, negative_image, labels.masked_fill(none, IGNORE_INDEX)

    def _mlm(self, labels: Tensor, states: Tensor, teacher: TeacherPass | None) -> Tensor:
        """Score masked positions only; the vocabulary is the costly axis."""
        masked = labels != IGNORE_INDEX
        states = states[:, : labels.shape[1]]  # the text pass pads to its longest text
        logits = self.model.word_logits(states[masked])  # (masked tokens, V)
        loss = token_loss(logits, labels[masked])
        if teacher is None or teacher.mlm_states is None:
            return loss
        teacher_logits = teacher.model.word_logits(teacher.mlm_states[masked])
        alpha = self.alpha()
        distilled = distillation_loss(logits, teacher_logits.detach(), labels[masked])
        return (1 - alpha) * loss + alpha * distilled

    def _prefix_lm(
        self,
        batch: Mapping[str, Tensor],
        image: ImageFeatures,
        fused: FusedFeatures,
        teacher: TeacherPass | None,
    ) -> Tensor:
        """Say the rest of the caption, given the image and the prefix."""
        inputs, labels = shift_targets(batch["target_token_ids"], batch["target_mask"])
        read = labels != IGNORE_INDEX
        memory = self.model.memory_states(image, fused)
        states = self.model.decoder.read_once(inputs, read, *memory)
        logits = self.model.decoder.word_logits(states[read])  # (target tokens, V)
        loss = token_loss(logits, labels[read])
        if teacher is None or teacher.prefix_states is None:
            return loss
        teacher_logits = teacher.model.decoder.word_logits(teacher.prefix_states[read])
        alpha = self.alpha()
        distilled = distillation_loss(logits, teacher_logits.detach(), labels[read])
        return (1 - alpha) * loss + alpha * distilled

    def _teacher_pass(
        self, batch: Mapping[str, Tensor], active: frozenset[str]
    ) -> TeacherPass | None:
        """Run the momentum model on what the active objectives need of it."""
        taught = frozenset(
            name
            for name in active & {"mlm", "prefix_lm"}
            if getattr(self.config, f"distill_{name}")
        )
        if "teacher" not in self.modules or not ("itc" in active or taught):
            return None
        model = cast(MPLUG, cast(MomentumEncoder, self.modules["teacher"]).module)
        texts = _encode_texts(model, batch, taught | {"itc"})
        text_embedding = model.embed_text(texts["caption"])
        if not taught:
            return TeacherPass(model, model.embed_pixels(batch["image"]), text_embedding)
        image = model.encode_image(batch["image"])
        fused = _fuse(model, image, _word_rows(batch, texts, taught))
        mlm_states = prefix_states = None
        if "mlm" in taught:
            mlm_states = fused["mlm"].text_tokens[:, : batch["mlm_labels"].shape[1]]
        if "prefix_lm" in taught:
            inputs, labels = shift_targets(batch["target_token_ids"], batch["target_mask"])
            memory = model.memory_states(image, fused["prefix_lm"])
            prefix_states = model.decoder.read_once(inputs, labels != IGNORE_INDEX, *memory)
        return TeacherPass(
            model, model.embed_image(image), text_embedding, mlm_states, prefix_states
        )


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """What the momentum model says about a batch."""

    model: MPLUG
    image_embedding: Tensor
    text_embedding: Tensor
    mlm_states: Tensor | None = None
    prefix_states: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the fusion pass that one objective reads.

    Attributes:
        texts: M texts.
        image_index: (M,) int64, the image of each.
        read: (M, L) bool, True = the objective reads this text state.
    """

    texts: TextFeatures
    image_index: Tensor
    read: Tensor


_TEXT_KEYS = {
    "caption": ("token_ids", "text_mask"),
    "mlm": ("mlm_token_ids", "text_mask"),
    "prefix_lm": ("prefix_token_ids", "prefix_mask"),
}


def _encode_texts(
    model: MPLUG, batch: Mapping[str, Tensor], active: frozenset[str]
) -> dict[str, TextFeatures]:
    """Encode captions, masked captions and prefixes, as objectives need them, in one pass."""
    names = ["caption"] if active & {"itc", "itm"} else []
    names += [name for name in ("mlm", "prefix_lm") if name in active]
    if not names:
        return {}
    pairs = [tuple(batch[key] for key in _TEXT_KEYS[name]) for name in names]
    width = max(ids.shape[1] for ids, _ in pairs)
    ids, mask = (
        torch.cat([_widen(part, width) for part in parts]) for parts in zip(*pairs, strict=True)
    )
    encoded = model.encode_text(ids, mask)
    tokens = encoded.tokens.chunk(len(names))
    return {
        name: TextFeatures(part, part_mask)
        for name, part, part_mask in zip(names, tokens, mask.chunk(len(names)), strict=True)
    }


def _word_rows(
    batch: Mapping[str, Tensor], texts: Mapping[str, TextFeatures], active: frozenset[str]
) -> dict[str, _Rows]:
    """Return the rows of MLM, which reads masked positions, and of PrefixLM, which reads all."""
    rows, own = {}, torch.arange(len(batch["image"]), device=batch["image"].device)
    if "mlm" in active:
        masked = _widen(batch["mlm_labels"] != IGNORE_INDEX, texts["mlm"].mask.shape[1])
        rows["mlm"] = _Rows(texts["mlm"], own, masked)
    if "prefix_lm" in active:
        rows["prefix_lm"] = _Rows(texts["prefix_lm"], own, texts["prefix_lm"].mask)
    return rows


def _fuse(
    model: MPLUG, image: ImageFeatures, rows: Mapping[str, _Rows]
) -> dict[str, FusedFeatures]:
    """Run the fusion network once for all objectives; the texts of all are equally wide."""
    parts = rows.values()
    texts = TextFeatures(
        torch.cat([part.texts.tokens for part in parts]),
        torch.cat([part.texts.mask for part in parts]),
    )
    image_index = torch.cat([part.image_index for part in parts])
    read = torch.cat([part.read for part in parts])
    fused = model.fuse(image, texts, image_index=image_index, read=read)
    found, start = {}, 0
    for name, part in rows.items():
        end = start + len(part.image_index)
        found[name], start = fused.rows(slice(start, end)), end
    return found


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad (B, L) with zeros on the right."""
    return nn.functional.pad(x, (0, width - x.shape[1]))


SPEC = TaskSpec(
    config=MPLUGPretrainingConfig,
    trained_for="pretraining",
    build=lambda config, model, *_: MPLUGPretraining(model, config),
    collator=lambda config, inputs: PretrainingCollator(inputs.tokenizer, inputs.captions),
    needs=("image", "caption"),
    models=TrainedModels(families=("mplug",)),
    recipes=(TaskRecipe("mplug.pretrain", "mplug", default=True),),
    serves=("caption", "match", "embed", "classify"),
    also_scored=("caption", "retrieval", "zero_shot"),
    pretrains=True,
    optional_objectives=frozenset({"itm"}),
    work=lambda config, sizes, tokens: mplug_work(
        sizes,
        tokens,
        queue_size=config.queue_size,
        teacher=config.momentum > 0,
        taught=config.distill_mlm or config.distill_prefix_lm,
    ),
)
