"""mPLUG pre-training: ITC, ITM, MLM and PrefixLM in one pass (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.data.collate import PretrainingCollator
from triptych.distributed.collectives import (
    RowExchange,
    all_gather,
    all_gather_with_grad,
    max_over_ranks,
    mean_over_ranks,
)
from triptych.distributed.env import world_size
from triptych.models.base import encode_frames
from triptych.models.mplug.model import MPLUG
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.feature_queue import FeatureQueue
from triptych.objectives.gradient_cache import run_in_chunks
from triptych.objectives.matching import sample_hard_negatives
from triptych.objectives.momentum import MomentumEncoder
from triptych.objectives.tiled import Teacher, contrastive_rows
from triptych.objectives.vitals import PairWatch, temperature_vitals
from triptych.tasks.pretraining.mplug_passes import (
    STATES,
    embed_pairs,
    encode_pairs,
    fused_sums,
    stacked_texts,
    sum_counts,
    taught_states,
    text_names,
    text_width,
    word_targets,
)
from triptych.tasks.pretraining.work import mplug_work
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels
from triptych.train.chance import ITM_CHANCE, Chance

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
        chunk_size: Pairs whose activations are kept at a time. The rest is computed again in the
            backward pass: a contrastive batch of any size on one device, the same losses and
            gradients. None keeps the whole batch.
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
    chunk_size: int | None = None

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
        chunk = self.chunk_size
        check(chunk is None or chunk >= 1, "chunk_size", chunk, "be at least 1, or absent")
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
        self._watch = PairWatch()
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
        names = text_names(active)
        width = text_width(batch, names)
        if "itm" in active and world_size() > 1:  # texts move, so all need one width
            width = int(max_over_ranks(torch.tensor(width, device=batch["image"].device)))
        ids, mask = stacked_texts(batch, names, width)
        with torch.no_grad():
            teacher = self._teacher_pass(batch, active)
        embed, fuses = bool(active & {"itc", "itm"}), bool(active - {"itc"})

        def encode(*rows: Tensor) -> tuple[Tensor, ...]:
            if fuses:
                return encode_pairs(self.model, *rows, embed=embed)
            return embed_pairs(self.model, *rows)

        encoded = run_in_chunks(
            encode, batch["image"], ids, mask, chunk_size=self.config.chunk_size
        )
        embeddings = encoded[2:] if fuses else encoded
        losses: dict[str, Tensor] = {}
        negatives = None
        if embed:
            self._watch.note_embeddings(embeddings[0], embeddings[1])
        if "itc" in active:
            losses["itc"] = self.itc(batch, embeddings[0], embeddings[1], teacher)
        if "itm" in active:
            negatives = self.hard_negatives(batch, embeddings[0], embeddings[1])
            self._watch.note_matches(negatives.labels)
        if fuses:
            rows = {"image": encoded[0], "tokens": encoded[1], "mask": mask}
            losses |= self._fused_losses(batch, rows, active, teacher, negatives)
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

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the embeddings and of ITM's labels; see `PairWatch`."""
        return self._watch.take(spread=spread)

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the temperature, and of the teacher and the queue if there are any."""
        config, modules = self.config, self.modules
        found = temperature_vitals(self.temperature, config.min_temperature, config.max_temperature)
        if "teacher" in modules:
            found |= cast(MomentumEncoder, modules["teacher"]).vitals(self.model)
        return found | (cast(FeatureQueue, modules["queue"]).vitals() if "queue" in modules else {})

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides, for retrieval.

        Args:
            batch: `image`, `token_ids`, `text_mask`, `index`.
        """
        image = encode_frames(self.model, batch["image"])
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
        teacher: TeacherPass | None,
    ) -> Tensor:
        """Contrast images and texts of the batch with each other, all processes and the queue.

        Args:
            batch: Gives the keys that tell positives.
            image_embedding: (B, E).
            text_embedding: (B, E).
            teacher: What the momentum model says, if there is one.
        """
        own = (image_embedding, text_embedding)
        keys = _pair_keys(batch)  # (B, 2)
        column_keys = [all_gather(keys)]  # (G, 2): the rows of all processes
        if teacher is None:
            taught: list[Teacher | None] = [None, None]
            columns = [[all_gather_with_grad(side)] for side in own]
        else:
            sides = (teacher.image_embedding, teacher.text_embedding)
            taught = [Teacher(side, self.alpha()) for side in sides]
            columns = [[all_gather(side)] for side in sides]
        if self.model.training:
            self._pending.append((columns[0][0].detach(), columns[1][0].detach(), column_keys[0]))
        if "queue" in self.modules:
            *queued, queued_keys = cast(FeatureQueue, self.modules["queue"]).features()
            columns = [[*part, old] for part, old in zip(columns, queued, strict=True)]
            column_keys.append(queued_keys)
        per_row = [
            contrastive_rows(
                own[side],
                columns[1 - side],
                self.temperature,
                keys,
                column_keys,
                teacher=taught[side],
            )
            for side in (0, 1)
        ]
        return (per_row[0].mean() + per_row[1].mean()) / 2

    @torch.no_grad()
    def hard_negatives(
        self, batch: Mapping[str, Tensor], image_embedding: Tensor, text_embedding: Tensor
    ) -> HardNegatives:
        """Draw a text for each image and an image for each text, of those of all processes.

        A candidate's chance is the softmax of the student's similarities.

        Args:
            batch: Gives the keys that tell positives.
            image_embedding: (B, E).
            text_embedding: (B, E).
        """
        own, tau = _pair_keys(batch), self.temperature
        images, texts, keys = (all_gather(t) for t in (image_embedding, text_embedding, own))
        text, has_text = sample_hard_negatives(image_embedding, texts, tau, own, keys)
        image, has_image = sample_hard_negatives(text_embedding, images, tau, own, keys)
        labels = torch.zeros(len(own), 3, dtype=torch.int64, device=own.device)
        labels[:, 0] = 1
        labels[:, 1].masked_fill_(~has_image, IGNORE_INDEX)
        labels[:, 2].masked_fill_(~has_text, IGNORE_INDEX)
        wanted = all_gather(torch.stack([text, image])[None])  # (processes, 2, B)
        if world_size() > 1:
            wanted = wanted.cpu()  # one wait for both plans
        return HardNegatives(
            RowExchange(wanted[:, 0], len(own), own.device),
            RowExchange(wanted[:, 1], len(own), own.device),
            labels,
        )

    def _fused_losses(
        self,
        batch: Mapping[str, Tensor],
        rows: dict[str, Tensor],
        active: frozenset[str],
        teacher: TeacherPass | None,
        negatives: HardNegatives | None,
    ) -> dict[str, Tensor]:
        """Fuse all rows, at once or in chunks, and average each objective's sums.

        Args:
            batch: Gives the words to predict.
            rows: See `fused_sums`; the others are added here.
            active: Objectives.
            teacher: What the momentum model says.
            negatives: For ITM.
        """
        names, states = text_names(active), {} if teacher is None else teacher.states
        rows |= states | word_targets(batch, active)
        images = wrong_image = None
        if negatives is not None:
            rows |= negatives.texts_for(rows["tokens"][:, 0], rows["mask"][:, 0])
            images, wrong_image = negatives.images.extend(rows["image"]), negatives.images.position
            if self.config.chunk_size is not None:  # a chunk takes its own copies
                rows["wrong_image"] = images.index_select(0, wrong_image)
                images = wrong_image = None

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            sums = fused_sums(
                self.model,
                names,
                dict(zip(rows, tensors, strict=True)),
                active,
                teacher=None if teacher is None else teacher.model,
                images=images,
                wrong_image=wrong_image,
            )
            return tuple(sums.values())

        found = run_in_chunks(run, *rows.values(), chunk_size=self.config.chunk_size)
        means = {
            name: mean_over_ranks(total.sum(), count)
            for (name, count), total in zip(sum_counts(rows, active), found, strict=True)
        }
        alpha = self.alpha()
        return {
            name: (1 - alpha) * mean + alpha * means[f"{name}_distilled"]
            if f"{name}_distilled" in means
            else mean
            for name, mean in means.items()
            if name in active
        }

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
        names = text_names(taught | {"itc"})
        ids, mask = stacked_texts(batch, names, text_width(batch, names))
        targets = word_targets(batch, taught)

        def run(image: Tensor, ids: Tensor, mask: Tensor, *words: Tensor) -> tuple[Tensor, ...]:
            if not taught:
                return embed_pairs(model, image, ids, mask)
            states, tokens, *embeddings = encode_pairs(model, image, ids, mask, embed=True)
            rows = {"image": states, "tokens": tokens, "mask": mask}
            rows |= dict(zip(targets, words, strict=True))
            return *embeddings, *taught_states(model, names, rows, taught).values()

        image, text, *states = run_in_chunks(
            run, batch["image"], ids, mask, *targets.values(), chunk_size=self.config.chunk_size
        )
        keys = [STATES[name] for name in STATES if name in taught]
        return TeacherPass(model, image, text, dict(zip(keys, states, strict=True)))


@dataclass(frozen=True, slots=True)
class TeacherPass:
    """What the momentum model says about a batch.

    Attributes:
        model: The momentum model.
        image_embedding: (B, E).
        text_embedding: (B, E).
        states: What its heads read; see `taught_states`.
    """

    model: MPLUG
    image_embedding: Tensor
    text_embedding: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HardNegatives:
    """A wrong text for each image and a wrong image for each text, wherever they are.

    Attributes:
        texts: Says which.
        images: Says which.
        labels: (B, 3) int64 of the pair, the text with a wrong image, the image with a wrong text.
    """

    texts: RowExchange
    images: RowExchange
    labels: Tensor

    def texts_for(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return what `fused_sums` reads of the wrong texts.

        Args:
            tokens: (B, L, D) states of this process's captions; L is the same on all processes.
            mask: (B, L) bool.
        """
        wrong_tokens, wrong_mask = (
            self.texts.extend(t).index_select(0, self.texts.position) for t in (tokens, mask)
        )
        return {
            "wrong_tokens": wrong_tokens,
            "wrong_mask": wrong_mask,
            "itm_labels": self.labels,
        }


def _pair_keys(batch: Mapping[str, Tensor]) -> Tensor:
    """Return (B, 2) keys of image and caption."""
    return torch.stack([batch["image_key"], batch["caption_key"]], dim=1)


SPEC = TaskSpec(
    config=MPLUGPretrainingConfig,
    trained_for="pretraining",
    build=lambda config, model, *_: MPLUGPretraining(model, config),
    collator=lambda config, inputs: PretrainingCollator(inputs.tokenizer, inputs.captions),
    needs=("image|video", "caption"),
    models=TrainedModels(families=("mplug",)),
    recipes=(
        TaskRecipe("mplug.pretrain", "mplug", default=True),
        TaskRecipe("mplug.pretrain_14m", "mplug", teaches=()),
        TaskRecipe("mplug.continue_4m", "mplug", teaches=(), continues=True),
    ),
    serves=("caption", "match", "embed", "classify"),
    also_scored=("retrieval", "caption", "perplexity", "zero_shot"),
    pretrains=True,
    optional_objectives=frozenset({"itm"}),
    chances=lambda config: {
        "itc": Chance(columns=True, queue_size=config.queue_size),
        "itm": ITM_CHANCE,
        "mlm": Chance(labels="mlm_labels"),
        "prefix_lm": Chance(labels="target_token_ids", mask="target_mask", skip=1),
    },
    work=lambda config, sizes, tokens: mplug_work(
        sizes,
        tokens,
        queue_size=config.queue_size,
        teacher=config.momentum > 0,
        taught=config.distill_mlm or config.distill_prefix_lm,
        chunk_size=config.chunk_size,
    ),
)
