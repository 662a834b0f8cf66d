"""Ranked lists of a search in both directions: predicted, resumable pair by pair, and scored.

Each distinct image and each caption of the data is a query, `i2t:IMAGE_ID` and `t2i:RECORD_ID`. Its
line holds the first candidates by similarity, "ranked", and what ITM made of them, "reranked".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from triptych.core.errors import ConfigError, DataError
from triptych.core.outputs import MetricValue
from triptych.data.caption_cleaning import MAX_WORDS, clean_caption
from triptych.data.collate.base import image_key
from triptych.data.records import Record
from triptych.data.skips import SkipLog
from triptych.evaluation import retrieval
from triptych.evaluation.evaluator import evaluation_mode
from triptych.evaluation.metrics import retrieval_values
from triptych.serving.loading import LoadedModel
from triptych.tasks.finetuning.retrieval import StateStore, score_pairs
from triptych.workflows.search import (
    EncodedRecords,
    RetrievalProtocol,
    encode_records,
    first_captions,
    has_image,
)

Rows = list[dict[str, Any]]
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Queries:
    """What is searched for and among.

    Attributes:
        records: Those with an image, a caption, or both.
        images: The first record of each distinct image, by its place.
        captions: The records with a caption, by their places.
    """

    records: list[Record]
    images: list[int]
    captions: list[int]

    @classmethod
    def of(cls, records: Sequence[Record], where: str) -> Queries:
        """Return the queries of some records.

        Raises:
            DataError: There are no images or no captions, or two queries have one id.
        """
        usable = [
            replace(r, caption=r.text) if r.text and not (has_image(r) or r.caption) else r
            for r in records
            if has_image(r) or r.caption or r.text
        ]
        first: dict[int, int] = {}
        for place, record in enumerate(usable):
            if has_image(record):
                first.setdefault(image_key(record), place)
        if len({usable[place].image is None for place in first.values()}) > 1:
            raise DataError(f"{where} holds images and clips: search them as two datasets")
        captions = [place for place, record in enumerate(usable) if record.caption]
        if not first or not captions:
            lacking = "image" if not first else "caption"
            raise DataError(f"{where} holds nothing to search: {len(usable)} records, no {lacking}")
        found = cls(usable, list(first.values()), captions)
        names = found.names()
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{where}: two queries are called {twice!r}: give each its own id")
        return found

    def names(self) -> list[str]:
        """Return what each query is called, the images first."""
        images = [f"i2t:{image_id(self.records[place])}" for place in self.images]
        return images + [f"t2i:{self.records[place].record_id}" for place in self.captions]

    def check_folds(self, folds: int) -> None:
        """Raise a ConfigError where parts are asked for and a record is no pair."""
        alone = next((r for r in self.records if not (has_image(r) and r.caption)), None)
        if folds > 1 and alone is not None:
            raise ConfigError(
                f"folds = {folds}: record {alone.record_id} is no image with its caption, so that "
                "it belongs to no part: search all at once"
            )


def image_id(record: Record) -> str:
    """Return what the image of a record is called."""
    return record.image_id or record.record_id


class PairFile:
    """Scores of pairs on disk, each pass after the other.

    Args:
        path: Where; removed when the search is done.
        made_by: What decides the scores; a file of something else is replaced.
    """

    def __init__(self, path: Path, made_by: str) -> None:
        self._mark = hashlib.blake2b(made_by.encode(), digest_size=HASH_BYTES).digest()
        is_same = path.is_file() and path.read_bytes()[:HASH_BYTES] == self._mark
        self._path = path
        self._file: IO[bytes] = path.open("r+b" if is_same else "w+b")
        if not is_same:
            self._file.write(self._mark)
            self._file.flush()
        self._file.seek(HASH_BYTES)

    def take(self, count: int) -> Tensor | None:
        """Return the scores of the next pass, or None where it was not made before."""
        start = self._file.tell()
        raw = self._file.read(4 * count)
        if len(raw) < 4 * count:
            self._file.seek(start)
            self._file.truncate()
            return None
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy())

    def keep(self, scores: Tensor) -> None:
        """Write the scores of a pass."""
        self._file.write(scores.float().cpu().numpy().astype("<f4").tobytes())
        self._file.flush()

    def close(self, *, done: bool) -> None:
        """Close the file, and remove it if it is not needed any more."""
        self._file.close()
        if done:
            self._path.unlink(missing_ok=True)


def rank_queries(
    loaded: LoadedModel,
    queries: Queries,
    protocol: RetrievalProtocol,
    *,
    list_length: int,
    local_batch_size: int,
    log: SkipLog,
    known: PairFile,
    progress: Callable[[int], None] | None = None,
) -> Rows:
    """Rank all captions for each image and the other way round.

    Args:
        loaded: The model.
        queries: What is searched.
        protocol: What is compared with what.
        list_length: Candidates by similarity that are listed.
        local_batch_size: Images or texts at a time.
        log: Is told of what cannot be read.
        known: Scores of pairs of an earlier run.
        progress: Called with the number of records whose image is encoded.

    Returns:
        A line for each query, in the order of `Queries.names`.

    Raises:
        DataError: Nothing can be read, or too much is bad.
    """
    queries.check_folds(protocol.folds)
    records = queries.records
    with evaluation_mode(loaded.model), torch.inference_mode(), loaded.autocast():
        store = StateStore(protocol.states_mib)
        encoded = encode_records(
            loaded, records, local_batch_size, log, loaded.device, progress, store
        )
        said = encoded.text_row
        used = [p for p in range(len(records)) if p in said or not records[p].caption]
        keys = [image_key(records[place]) for place in used]
        ranker = _Ranker(loaded, queries, protocol, list_length, encoded, known)
        for part in retrieval.fold_parts(keys, protocol.folds):
            ranker.rank([used[number] for number in part])
    return ranker.rows()


class _Ranker:
    """Ranks parts of the data."""

    def __init__(
        self,
        loaded: LoadedModel,
        queries: Queries,
        protocol: RetrievalProtocol,
        list_length: int,
        encoded: EncodedRecords,
        known: PairFile,
    ) -> None:
        self._model, self._device, self._known = loaded.model, loaded.device, known
        self._max_words = loaded.captions().max_words
        self._queries, self._protocol, self._length = queries, protocol, list_length
        self._encoded = encoded.encoded
        self._image_row, self._text_row = encoded.image_row, encoded.text_row
        self._found: dict[str, dict[str, Any]] = {}
        self._reranks = protocol.rerank_top_k > 0 and "itm" in loaded.model.capabilities

    def rank(self, places: list[int]) -> None:
        """Rank the records at some places among themselves."""
        rows: dict[int, int] = {}  # the first place of each image
        for place in places:
            if place in self._image_row:
                rows.setdefault(self._image_row[place], place)
        shown, said = list(rows.values()), [p for p in places if p in self._text_row]
        if not shown or not said:
            return
        image = self._encoded.image_embedding.cpu()[list(rows)].float()
        text = self._encoded.text_embedding.cpu()[[self._text_row[p] for p in said]].float()
        images = [image_id(self._queries.records[place]) for place in shown]
        captions = [self._queries.records[place].record_id for place in said]

        def first(length: int) -> tuple[retrieval.Shortlist, retrieval.Shortlist]:
            return (
                retrieval.shortlist(image, text, length),
                retrieval.shortlist(text, image, length),
            )

        lists = {"ranked": first(self._length)}
        if self._reranks:
            topk = min(self._protocol.rerank_top_k, len(self._text_row))
            lists["reranked"] = retrieval.rerank(
                *first(topk),
                lambda i, t: self._score(
                    [shown[n] for n in i.tolist()], [said[n] for n in t.tolist()]
                ),
                self._protocol.itm_score,
                caption_numbers=self._equal_captions(said),
                pairs_at_once=1 << 20,
            )
        for name, (of_images, of_captions) in lists.items():
            self._add(name, [f"i2t:{i}" for i in images], captions, of_images)
            self._add(name, [f"t2i:{c}" for c in captions], images, of_captions)

    def _equal_captions(self, said: Sequence[int]) -> Tensor:
        captions = (self._queries.records[place].caption or "" for place in said)
        return retrieval.first_of_equal([clean_caption(c, self._max_words) for c in captions])

    def _score(self, shown: list[int], said: list[int]) -> Tensor:
        rows = [[self._image_row[p] for p in shown], [self._text_row[p] for p in said]]
        pairs = torch.tensor(rows, device=self._device).T
        return score_pairs(self._model, self._encoded, pairs, known=self._known).cpu()

    def _add(
        self,
        name: str,
        asked: Sequence[str],
        candidates: Sequence[str],
        listed: retrieval.Shortlist,
    ) -> None:
        """Note the lists of some queries, the best candidate first."""
        scores, order = listed.scores.sort(dim=1, descending=True, stable=True)
        numbers = listed.candidates.gather(1, order)
        for query, row, values in zip(asked, numbers.tolist(), scores.tolist(), strict=True):
            named = [[candidates[number], value] for number, value in zip(row, values, strict=True)]
            self._found.setdefault(query, {})[name] = named

    def rows(self) -> Rows:
        """Return a line for each query."""
        return [
            {"index": index, "id": name} | self._found.get(name, {"skipped": True})
            for index, name in enumerate(self._queries.names())
        ]


def score_rankings(
    lists: Mapping[str, Mapping[str, Any]],
    records: Sequence[Record],
    settings: Mapping[str, Any],
    where: str,
) -> tuple[list[MetricValue], list[str]]:
    """Score ranked lists against pairs.

    Args:
        lists: The lines of the queries, by what these are called.
        records: Images with their captions.
        settings: Of the search, as its file's header has them; empty for a file of another system.
        where: What messages call the file.

    Returns:
        The numbers, and what is worth knowing, in words.

    Raises:
        DataError: Nothing of the data is among the queries, or a list names an unknown candidate.
    """
    pairs = first_captions(records, settings.get("captions_per_image"))[: settings.get("limit")]
    read = {name: row for name, row in lists.items() if "skipped" not in row}
    found = [
        record
        for record in pairs
        if f"t2i:{record.record_id}" in read and f"i2t:{image_id(record)}" in read
    ]
    unknown = [r for r in pairs if f"t2i:{r.record_id}" not in lists]
    if unknown or not found:
        named = (unknown or pairs)[0].record_id
        raise DataError(
            f"{where}: has no query 't2i:{named}', which the data has (queries are called "
            "i2t:IMAGE_ID and t2i:RECORD_ID): is it of other data?"
        )
    scored = _Lists(read, found, settings, where)
    parts = retrieval.fold_parts([image_key(r) for r in found], settings.get("folds", 1))
    stages = [name for name in ("ranked", "reranked") if name in next(iter(read.values()))]
    ranks = [
        torch.cat([scored.ranks(name, direction, part) for part in parts])
        for name in stages
        for direction in ("i2t", "t2i")
    ]
    missing = len(pairs) - len(found)
    values = retrieval_values(
        ranks,
        num_images=len({image_key(record) for record in found}),
        num_captions=len(found),
        folds=len(parts),
        missing=f" {missing} of {len(pairs)} samples skipped (unreadable)." if missing else "",
        second=_second(settings, len(found)) if len(stages) == 2 else None,
        **({} if settings else {"first": "order of the file's lists"}),
    )
    others = len(read) - len(found) - len({image_key(record) for record in found})
    notes = [f"{others} queries are of images or captions that no pair of the data has"]
    return values, notes if others else []


def _second(settings: Mapping[str, Any], num_captions: int) -> tuple[int, str]:
    return min(settings["rerank_top_k"], num_captions), settings["itm_score"]


@dataclass(frozen=True, slots=True)
class _Lists:
    """Lists of queries beside the pairs that say what is right."""

    read: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Record]
    settings: Mapping[str, Any]
    where: str

    def ranks(self, name: str, direction: str, part: Sequence[int]) -> Tensor:
        """Return (Q,) ranks of the images or of the captions of a part."""
        records = [self.pairs[number] for number in part]
        max_words = self.settings.get("max_words", MAX_WORDS)
        first, captions_of, images_of = retrieval.relevance_from_keys(
            [image_key(record) for record in records],
            [clean_caption(record.caption or "", max_words) for record in records],
        )
        images = [image_id(records[number]) for number in first]
        captions = [record.record_id for record in records]
        if direction == "i2t":
            listed = self._shortlist(name, [f"i2t:{i}" for i in images], captions, "t2i")
            return retrieval.compute_shortlist_ranks(listed, _among(captions_of, listed))
        listed = self._shortlist(name, [f"t2i:{c}" for c in captions], images, "i2t")
        return retrieval.compute_shortlist_ranks(listed, _among(images_of, listed))

    def _shortlist(
        self, name: str, asked: Sequence[str], candidates: Sequence[str], kind: str
    ) -> retrieval.Shortlist:
        """Return the lists of some queries by numbers; further candidates follow those of pairs."""
        numbers = {candidate: number for number, candidate in enumerate(candidates)}
        if self.settings.get("folds", 1) == 1:
            for query in self.read:
                if query.startswith(f"{kind}:"):
                    numbers.setdefault(query.removeprefix(f"{kind}:"), len(numbers))
        length = min(max(len(self.read[query][name]) for query in asked), len(numbers))
        rows, scores = [], []
        for query in asked:
            listed = self.read[query][name]
            row = [self._number(numbers, candidate, query) for candidate, _ in listed]
            rest = (number for number in range(len(numbers)) if number not in set(row))
            filled = [next(rest) for _ in range(length - len(row))]
            rows.append(row + filled)
            scores.append([float(score) for _, score in listed] + [-np.inf] * len(filled))
        return retrieval.Shortlist(
            torch.tensor(rows), torch.tensor(scores, dtype=torch.float64), len(numbers)
        )

    def _number(self, numbers: Mapping[str, int], candidate: str, query: str) -> int:
        if candidate not in numbers:
            raise DataError(
                f"{self.where}: query {query!r} lists {candidate!r}, which is no query itself: "
                "every candidate must be one, and is called by what follows the colon"
            )
        return numbers[candidate]


def _among(relevance: retrieval.Relevance, listed: retrieval.Shortlist) -> retrieval.Relevance:
    """Return the same right candidates among more candidates."""
    return retrieval.Relevance(relevance.offsets, relevance.candidates, listed.num_candidates)
