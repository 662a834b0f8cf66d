"""Score retrieval over a whole set in two stages: similarity of embeddings, then ITM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.core.errors import DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.caption_cleaning import clean_caption
from triptych.data.collate import ImageKeyCollator
from triptych.data.collate.base import image_key
from triptych.data.collate.finetuning import CaptionCollator
from triptych.data.records import Record
from triptych.data.skips import SkipKind, SkipLog, Skipped
from triptych.data.stream import BatchLoader
from triptych.distributed.collectives import all_reduce_sum, gather_objects
from triptych.distributed.env import rank, world_size
from triptych.evaluation.evaluator import evaluation_mode
from triptych.evaluation.metrics import RetrievalMetric, SecondStage
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.retrieval import (
    EncodedSet,
    StateStore,
    encode_images,
    encode_texts,
    score_pairs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalProtocol:
    """How retrieval is scored.

    Attributes:
        rerank_top_k: Candidates of each query that ITM re-ranks; 0 disables ITM.
        itm_score: Whether ITM alone ranks them, or ITM plus the similarity.
        folds: Parts of equally many images that are searched apart.
        states_mib: Memory for the states that ITM reads, in MiB; more lies in temporary files.
    """

    rerank_top_k: int = 16
    itm_score: Literal["itm", "itm+itc"] = "itm"
    folds: int = 1
    states_mib: int = 4096


def first_captions(records: Sequence[Record], captions_per_image: int | None) -> list[Record]:
    """Return the first so many records of each image, in their order; all for None."""
    if captions_per_image is None:
        return list(records)
    seen: dict[int, int] = {}
    kept = []
    for record in records:
        key = image_key(record)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= captions_per_image:
            kept.append(record)
    return kept


def evaluate_retrieval(
    loaded: LoadedModel,
    records: Sequence[Record],
    protocol: RetrievalProtocol,
    *,
    local_batch_size: int,
    log: SkipLog,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[MetricValue]:
    """Rank all texts for each image and the other way round by ITC, the first ones by ITM too.

    A model without ITM ranks by ITC alone.

    Args:
        loaded: The model, on the device.
        records: One caption of one image each.
        protocol: What is compared with what.
        local_batch_size: Images or texts at a time.
        log: Is told of every caption whose image cannot be read.
        device: Where to compute.
        progress: Called with the number of records whose image is encoded.

    Raises:
        DataError: Nothing can be read, or too much is bad.
    """
    with evaluation_mode(loaded.model), torch.inference_mode():
        store = StateStore(protocol.states_mib)
        found = encode_records(loaded, records, local_batch_size, log, device, progress, store)

        def score(images: Tensor, texts: Tensor) -> Tensor:
            """Score pairs of records; each process those whose image it has."""
            rows = [found.image_row.get(image, -1) for image in images.tolist()]
            own = torch.tensor(rows) >= 0
            texts_of = [found.text_row[text] for text in texts[own].tolist()]
            pairs = torch.tensor([[row for row in rows if row >= 0], texts_of], device=device).T
            scores = torch.zeros(len(images), device=device)
            if len(pairs):
                scores[own.to(device)] = score_pairs(loaded.model, found.encoded, pairs)
            return all_reduce_sum(scores).cpu()

        stage = None
        if protocol.rerank_top_k > 0 and "itm" in loaded.model.capabilities:
            stage = SecondStage(
                score_pairs=score,
                topk=min(protocol.rerank_top_k, len(found.text_row)),
                combine=protocol.itm_score,
                pairs_at_once=1 << 20,
            )
        metric = RetrievalMetric(
            [image_key(record) for record in records],
            [clean_caption(r.caption or "", loaded.captions().max_words) for r in records],
            stage,
            folds=protocol.folds,
        )
        own_images = found.image_row, found.encoded.image_embedding.cpu()
        embedded = {
            position: embeddings[row]
            for rows, embeddings in gather_objects(own_images)
            for position, row in rows.items()
        }
        positions = list(found.text_row)
        images = torch.stack([embedded[position] for position in positions])
        texts = found.encoded.text_embedding.cpu()[list(found.text_row.values())]
        metric.update(Predictions(index=positions, embeddings={"image": images, "text": texts}))
        return metric.compute()


@dataclass(frozen=True, slots=True)
class EncodedRecords:
    """A set of records, encoded.

    Attributes:
        encoded: States and embeddings of the images of this process and of all texts.
        image_row: The row of the image of each record by its position, where this process has it.
        text_row: The row of the text of each record whose image can be read, by its position.
    """

    encoded: EncodedSet
    image_row: dict[int, int]
    text_row: dict[int, int]


def encode_records(
    loaded: LoadedModel,
    records: Sequence[Record],
    local_batch_size: int,
    log: SkipLog,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
    store: StateStore | None = None,
) -> EncodedRecords:
    """Encode distinct images, each in one of the processes, and all texts in all of them.

    Texts are a small part of the work, and so any process can score any text with its images.

    Args:
        loaded: The model, on the device.
        records: One caption of one image each; either may be absent.
        local_batch_size: Images or texts at a time.
        log: Is told of every caption whose image cannot be read.
        device: Where to compute.
        progress: Called with the number of records whose image this process has encoded.
        store: Where the states lie; None keeps them in memory.

    Raises:
        DataError: Nothing can be read, or too much is bad.
    """
    store = StateStore(1 << 30) if store is None else store
    by_key: dict[int, list[int]] = {}
    for position, record in enumerate(records):
        if has_image(record):
            by_key.setdefault(image_key(record), []).append(position)
    groups = list(by_key.values())[rank() :: world_size()]
    images = _loader(loaded, [records[g[0]] for g in groups], None, local_batch_size, log)
    found: list[int] = []

    def image_batches() -> Iterator[dict[str, Tensor]]:
        done = 0
        for batch in images:
            yield {key: value.to(device) for key, value in batch.items()}
            found.extend(batch["index"].tolist())
            done += sum(len(groups[group]) for group in batch["index"].tolist())
            if progress is not None:
                progress(done)

    image, image_embedding = encode_images(loaded.model, image_batches(), len(groups), store)
    image_row = {position: row for row, group in enumerate(found) for position in groups[group]}
    _log_lost(records, groups, set(found), log)
    shown = {position for part in gather_objects(list(image_row)) for position in part}
    readable = [
        position
        for position, record in enumerate(records)
        if record.caption is not None and (position in shown or not has_image(record))
    ]
    texts = _loader(loaded, [records[p] for p in readable], "caption", local_batch_size, log)
    order: list[int] = []

    def text_batches() -> Iterator[dict[str, Tensor]]:
        for batch in texts:
            order.extend(batch["index"].tolist())
            yield {key: value.to(device) for key, value in batch.items()}

    text, text_embedding = encode_texts(
        loaded.model, text_batches(), len(readable), loaded.captions().max_text_tokens, store
    )
    text_row = {readable[index]: row for row, index in enumerate(order)}
    return EncodedRecords(
        EncodedSet(image, text, image_embedding, text_embedding), image_row, text_row
    )


def has_image(record: Record) -> bool:
    """Return whether a record shows something that can be searched for."""
    return record.image is not None or record.video is not None


def _loader(
    loaded: LoadedModel,
    records: list[Record],
    text: Literal["caption"] | None,
    local_batch_size: int,
    log: SkipLog,
) -> BatchLoader:
    """Return images alone, or captions alone, each record once."""
    if not records:
        raise DataError("none of the images can be read; run `triptych data check` on the data")
    captions = loaded.captions()
    collator = (
        ImageKeyCollator()
        if text is None
        else CaptionCollator(
            loaded.tokenizer,
            max_text_tokens=captions.max_text_tokens,
            max_words=captions.max_words,
        )
    )
    return loaded.loader(records, collator, local_batch_size, log)


def _log_lost(
    records: Sequence[Record], groups: list[list[int]], found: set[int], log: SkipLog
) -> None:
    """Count all captions of images that cannot be read; the loader counted this process's first."""
    own = [positions for group, positions in enumerate(groups) if group not in found]
    for number, lost in enumerate(gather_objects(own)):
        first = 1 if number == rank() else 0
        log.add_all(
            [
                Skipped(
                    SkipKind.UNREADABLE,
                    str(records[p].image or records[p].video),
                    "its image or clip",
                    records[p].record_id,
                )
                for positions in lost
                for p in positions[first:]
            ]
        )
