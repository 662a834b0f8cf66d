"""Score retrieval over a whole set in two stages: similarity of embeddings, then ITM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.evaluation.evaluator import evaluation_mode
from triptych.evaluation.metrics import RetrievalMetric, SecondStage
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.retrieval import (
    EncodedSet,
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
    """

    rerank_top_k: int = 16
    itm_score: Literal["itm", "itm+itc"] = "itm"
    folds: int = 1


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
        encoded, image_row, text_row = encode_records(
            loaded, records, local_batch_size, log, device, progress
        )

        def score(images: Tensor, texts: Tensor) -> Tensor:
            rows = [[image_row[i] for i in images.tolist()], [text_row[t] for t in texts.tolist()]]
            pairs = torch.tensor(rows, device=device).T
            return score_pairs(loaded.model, encoded, pairs).cpu()

        stage = None
        if protocol.rerank_top_k > 0 and "itm" in loaded.model.capabilities:
            stage = SecondStage(
                score_pairs=score,
                topk=min(protocol.rerank_top_k, len(text_row)),
                combine=protocol.itm_score,
                pairs_at_once=1 << 20,
            )
        metric = RetrievalMetric(
            [image_key(record) for record in records],
            [clean_caption(r.caption or "", loaded.captions().max_words) for r in records],
            stage,
            folds=protocol.folds,
        )
        positions = list(text_row)
        images = encoded.image_embedding.cpu()[[image_row[position] for position in positions]]
        texts = encoded.text_embedding.cpu()[[text_row[position] for position in positions]]
        metric.update(Predictions(index=positions, embeddings={"image": images, "text": texts}))
        return metric.compute()


def encode_records(
    loaded: LoadedModel,
    records: Sequence[Record],
    local_batch_size: int,
    log: SkipLog,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> tuple[EncodedSet, dict[int, int], dict[int, int]]:
    """Encode distinct images and all texts.

    Returns:
        The states and embeddings, and the rows of the image and of the text of each record, by
        its position; records of which something cannot be read are skipped in the second.
    """
    by_key: dict[int, list[int]] = {}
    for position, record in enumerate(records):
        by_key.setdefault(image_key(record), []).append(position)
    groups = list(by_key.values())
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

    image, image_embedding = encode_images(loaded.model, image_batches())
    image_row = {position: row for row, group in enumerate(found) for position in groups[group]}
    _log_other_captions(records, groups, set(found), log)
    readable = sorted(image_row)
    texts = _loader(loaded, [records[p] for p in readable], "caption", local_batch_size, log)
    order: list[int] = []

    def text_batches() -> Iterator[dict[str, Tensor]]:
        for batch in texts:
            order.extend(batch["index"].tolist())
            yield {key: value.to(device) for key, value in batch.items()}

    text, text_embedding = encode_texts(loaded.model, text_batches())
    text_row = {readable[index]: row for row, index in enumerate(order)}
    return EncodedSet(image, text, image_embedding, text_embedding), image_row, text_row


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
    return build_loader(
        records,
        collator,
        ImageTransform(replace(loaded.image, image_size=loaded.model.image_size), train=False),
        seed=0,
        local_batch_size=local_batch_size,
        train=False,
        skip_log=log,
    )


def _log_other_captions(
    records: Sequence[Record], groups: list[list[int]], found: set[int], log: SkipLog
) -> None:
    """Count the other captions of images that cannot be read; the loader counted the first."""
    lost = [
        p for group, positions in enumerate(groups) if group not in found for p in positions[1:]
    ]
    log.add_all(
        [
            Skipped(SkipKind.UNREADABLE, str(records[p].image), "its image", records[p].record_id)
            for p in lost
        ]
    )
