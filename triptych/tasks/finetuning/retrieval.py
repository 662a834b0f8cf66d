"""Image-text retrieval: ITC ranks, ITM re-ranks the best (mPLUG, section 5.2.3; VLMo, 3.5)."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.errors import DataError
from triptych.core.outputs import ImageFeatures, Predictions, TextFeatures
from triptych.data.collate import (
    RetrievalCollator,
)
from triptych.models.base import VisionLanguageModel, encode_frames, match_pairs
from triptych.models.mplug.model import MPLUG
from triptych.models.vlmo.model import VLMo
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.tasks.spec import (
    CollatorInputs,
    Evaluation,
    TaskConfig,
    TaskRecipe,
    TaskSpec,
    TrainedModels,
)
from triptych.train.chance import ITM_CHANCE, Chance
from triptych.train.task import StatefulTask

PAIRS_A_PASS = {"cpu": 128, "cuda": 1024}
"""Pairs that ITM scores at once; more fall out of a processor's caches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(TaskConfig):
    """Settings of mPLUG's retrieval: ITC and ITM.

    Attributes:
        temperature: Initial value of τ.
        queue_size: Pairs in the feature queue (released code: 65,536); 0 disables it.
        momentum: Decay of the momentum encoders' running average (0.995); 0 disables them.
        alpha: Weight of the momentum encoders' distribution in the ITC targets (0.4).
        alpha_ramp_steps: Steps over which alpha grows from 0 (released: the first epoch).
        chunk_size: Pairs whose activations are kept at a time; see `MPLUGPretrainingConfig`.
    """

    temperature: float = 0.07
    queue_size: int = 65536
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp_steps: int = 0
    chunk_size: int | None = None

    def pretraining(self, model: MPLUG) -> MPLUGPretraining:
        """Return the pre-training task whose contrastive and matching parts are trained."""
        config = MPLUGPretrainingConfig(
            temperature=self.temperature,
            queue_size=self.queue_size,
            momentum=self.momentum,
            alpha=self.alpha,
            alpha_ramp_steps=self.alpha_ramp_steps,
            chunk_size=self.chunk_size,
        )
        return MPLUGPretraining(model, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class VLMoRetrievalConfig(TaskConfig):
    """Settings of VLMo's retrieval: ITC as in the released code, and ITM if it has a weight.

    Attributes:
        temperature: Initial value of τ.
        min_temperature: Lower clamp of τ.
        max_temperature: Upper clamp of τ.
        chunk_size: Pairs whose activations are kept at a time; see `VLMoPretrainingConfig`.
    """

    KIND: ClassVar[str] = "vlmo_retrieval"

    temperature: float = 0.07
    min_temperature: float = 0.01
    max_temperature: float = 1.0
    chunk_size: int | None = None

    def pretraining(self, model: VLMo) -> VLMoPretraining:
        """Return the pre-training task whose contrastive and matching parts are trained."""
        config = VLMoPretrainingConfig(
            temperature=self.temperature,
            min_temperature=self.min_temperature,
            max_temperature=self.max_temperature,
            chunk_size=self.chunk_size,
        )
        pretraining = VLMoPretraining(model, config)
        model.mlm_head.requires_grad_(False)
        return pretraining


class Retrieval:
    """The ITC and ITM parts of a model's pre-training, on their own.

    mPLUG's released fine-tuning does not clamp τ; here it is clamped as in pre-training.

    Args:
        model: A model of the family that the config is for.
        config: Says which pre-training task computes the losses, and its settings.
    """

    batch_keys = frozenset({"image", "token_ids", "text_mask", "image_key", "caption_key", "index"})

    def __init__(self, model: Any, config: RetrievalConfig | VLMoRetrievalConfig) -> None:
        self._pretraining = config.pretraining(model)
        self.objective_names = self._pretraining.objective_names & {"itc", "itm"}

    @property
    def modules(self) -> nn.ModuleDict:
        """The model, the temperature, and the queue and teacher if there are any."""
        return self._pretraining.modules

    def losses(self, batch: Mapping[str, Tensor], *, active: frozenset[str]) -> dict[str, Tensor]:
        """Return {"itc", "itm"}, as far as active."""
        return self._pretraining.losses(batch, active=active & self.objective_names)

    def after_step(self, step: int) -> None:
        """Update the teacher and the queue, if there are any, and clamp the temperature."""
        self._pretraining.after_step(step)

    def batch_vitals(self, *, spread: bool) -> dict[str, Tensor]:
        """Return scalars of the embeddings and of ITM's labels."""
        return self._pretraining.batch_vitals(spread=spread)

    def state_vitals(self) -> dict[str, float]:
        """Return numbers of the temperature, and of the teacher and the queue if there are any."""
        return self._pretraining.state_vitals()

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides tensors."""
        inner = self._pretraining
        return inner.extra_state() if isinstance(inner, StatefulTask) else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
        if isinstance(self._pretraining, StatefulTask):
            self._pretraining.load_extra_state(state)

    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return the embeddings of both sides."""
        return self._pretraining.predict(batch)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """All images and texts of an evaluation, each encoded once.

    Attributes:
        image: I images.
        text: T texts, padded to the longest.
        image_embedding: (I, E).
        text_embedding: (T, E).
    """

    image: ImageFeatures
    text: TextFeatures
    image_embedding: Tensor
    text_embedding: Tensor


class StateStore:
    """Room for the states of a whole set: in memory up to a limit, beyond it in temporary files.

    A file loses its name as soon as it is mapped, so it vanishes with the last tensor on it.

    Args:
        memory_mib: Memory for states on the device, in MiB.
    """

    def __init__(self, memory_mib: int) -> None:
        self._left = memory_mib * 2**20

    def room(self, rows: int, like: Tensor) -> Tensor:
        """Return an uninitialised tensor (rows, ...) of the kind of `like` (B, ...).

        Raises:
            DataError: The disk has no room for it.
        """
        shape = (rows, *like.shape[1:])
        numel = math.prod(shape)
        size = numel * like.element_size()
        if size <= self._left or size == 0:
            self._left -= size
            return like.new_empty(shape)
        with tempfile.NamedTemporaryFile(prefix="triptych_states_") as file:
            try:
                os.posix_fallocate(
                    file.fileno(), 0, size
                )  # a full disk would end the process later
            except OSError as error:
                raise DataError(
                    f"{Path(file.name).parent} has no room for {size / 2**30:.1f} GiB of states "
                    f"({error.strerror}): set TMPDIR to a folder on a larger disk"
                ) from error
            mapped = torch.from_file(file.name, shared=True, size=numel, dtype=like.dtype)
        return mapped.view(shape)


class _Rows:
    """Rows that come batch by batch, in the room of a store."""

    def __init__(self, store: StateStore, most: int) -> None:
        self._store, self._most = store, most
        self._room: Tensor | None = None
        self._used = 0

    def add(self, part: Tensor | None) -> None:
        """Append rows (B, ...); None for what a model does not have."""
        if part is None:
            return
        if self._room is None:
            self._room = self._store.room(self._most, part)
        self._room[self._used : self._used + len(part)] = part
        self._used += len(part)

    @property
    def tensor(self) -> Tensor | None:
        """The rows so far."""
        return None if self._room is None else self._room[: self._used]


@torch.no_grad()
def encode_images(
    model: VisionLanguageModel,
    batches: Iterable[Mapping[str, Tensor]],
    num_images: int,
    store: StateStore,
) -> tuple[ImageFeatures, Tensor]:
    """Encode batches of `image`, `num_images` at most: states, and embeddings (I, E)."""
    tokens, cls, inputs = (_Rows(store, num_images) for _ in range(3))
    embeddings = []
    for batch in batches:
        found = encode_frames(model, batch["image"])
        embeddings.append(model.embed_image(found))
        for rows, part in ((tokens, found.tokens), (cls, found.cls), (inputs, found.inputs)):
            rows.add(part)
    assert tokens.tensor is not None, "there is no batch"
    return ImageFeatures(tokens.tensor, cls.tensor, inputs.tensor), torch.cat(embeddings)


@torch.no_grad()
def encode_texts(
    model: VisionLanguageModel,
    batches: Iterable[Mapping[str, Tensor]],
    num_texts: int,
    max_tokens: int,
    store: StateStore,
) -> tuple[TextFeatures, Tensor]:
    """Encode batches of `token_ids` and `text_mask`: states, and embeddings (T, E).

    Args:
        model: Encodes them.
        batches: Together `num_texts` texts.
        num_texts: T.
        max_tokens: Width of the states; no text is longer.
        store: Where the states lie.
    """
    tokens, masks, cls, inputs = (_Rows(store, num_texts) for _ in range(4))
    embeddings = []
    for batch in batches:
        found = model.encode_text(batch["token_ids"], batch["text_mask"])
        embeddings.append(model.embed_text(found))
        tokens.add(_padded(found.tokens, max_tokens))
        masks.add(_padded(found.mask[..., None], max_tokens)[..., 0])
        cls.add(found.cls)
        inputs.add(None if found.inputs is None else _padded(found.inputs, max_tokens))
    assert tokens.tensor is not None and masks.tensor is not None, "there is no batch"
    text = TextFeatures(tokens.tensor, masks.tensor, cls.tensor, inputs.tensor)
    return text, torch.cat(embeddings)


class KnownScores(Protocol):
    """Scores of pairs that outlive a process, one pass after the other."""

    def take(self, count: int) -> Tensor | None:
        """Return the scores of the next pass (count,), or None where it was not made before."""
        ...

    def keep(self, scores: Tensor) -> None:
        """Keep the scores of a pass."""
        ...


@torch.no_grad()
def score_pairs(
    model: Any,
    encoded: EncodedSet,
    pairs: Tensor,
    *,
    local_batch_size: int | None = None,
    known: KnownScores | None = None,
) -> Tensor:
    """Score (image, text) pairs by the ITM head.

    Each image is fused with all its texts of a batch at once, and texts are cut to the longest of
    the batch; mPLUG computes no padding at all.

    Args:
        model: The model that encoded the set, with `match_logits`.
        encoded: The images and texts.
        pairs: (M, 2) int64: image and text positions.
        local_batch_size: Pairs a pass; None is `PAIRS_A_PASS`.
        known: Scores of the passes that were made before, and where new ones are kept.

    Returns:
        (M,) float32 logit of "match" minus logit of "no match", in the order of `pairs`.
    """
    device = encoded.image_embedding.device
    kept_on = encoded.image.tokens.device, encoded.text.tokens.device
    if local_batch_size is None:
        local_batch_size = PAIRS_A_PASS.get(device.type, 1024)
    lengths = encoded.text.mask.sum(dim=1).to(pairs.device)[pairs[:, 1]]
    order = torch.argsort(pairs[:, 0] * (int(lengths.max()) + 1) + lengths)
    scores = torch.empty(len(pairs), device=pairs.device)
    for rows in torch.split(order, local_batch_size):  # type: ignore[no-untyped-call]
        before = None if known is None else known.take(len(rows))
        if before is not None:
            scores[rows] = before.to(scores)
            continue
        images, image_index = torch.unique(pairs[rows, 0], return_inverse=True)
        longest = int(lengths[rows].max())
        text = encoded.text.select(pairs[rows, 1].to(kept_on[1]), longest).to(device)
        image = encoded.image.select(images.to(kept_on[0])).to(device)
        logits = match_pairs(model, image, text, image_index.to(device)).float()
        scores[rows] = (logits[:, 1] - logits[:, 0]).to(scores.device)
        if known is not None:
            known.keep(scores[rows])
    return scores


def _padded(states: Tensor, width: int) -> Tensor:
    """Pad (T, L, D) with zeros to (T, width, D)."""
    return F.pad(states, (0, 0, 0, width - states.shape[1]))


def retrieval_collator(config: object, inputs: CollatorInputs) -> RetrievalCollator:
    """Build the collator of pairs with the keys of their images and captions."""
    del config
    captions = inputs.captions
    return RetrievalCollator(
        inputs.tokenizer, max_text_tokens=captions.max_text_tokens, max_words=captions.max_words
    )


SEARCH: Evaluation[Any] = Evaluation(
    "retrieval",
    "caption",
    reads_clips=True,
    procedure="search",
    decides="r_mean",
    forms=("trec",),
)


NAMES: Evaluation[Any] = Evaluation("zero_shot", "label", procedure="names", forms=("csv",))


SPEC = TaskSpec(
    config=RetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=retrieval_collator,
    needs=("image|video", "caption"),
    models=TrainedModels(families=("mplug",)),
    recipes=(TaskRecipe("mplug.retrieval", "mplug"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
    optional_objectives=frozenset({"itm"}),
    chances=lambda config: {
        "itc": Chance(columns=True, queue_size=config.queue_size),
        "itm": ITM_CHANCE,
    },
)


VLMO_SPEC = TaskSpec(
    config=VLMoRetrievalConfig,
    trained_for="retrieval",
    build=lambda config, model, *_: Retrieval(model, config),
    collator=retrieval_collator,
    needs=("image", "caption"),
    models=TrainedModels(families=("vlmo",)),
    recipes=(TaskRecipe("vlmo.retrieval", "vlmo"),),
    serves=("match", "embed", "classify"),
    evaluations=(SEARCH, NAMES),
    chances=lambda config: {"itc": Chance(columns=True), "itm": ITM_CHANCE},
)
