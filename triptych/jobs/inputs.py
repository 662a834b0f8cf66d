"""What a batch job asks about: from the records of a dataset to items, read ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from triptych.core.errors import DataError
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record, kinds_of
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.storage import RemoteError
from triptych.serving.classifying import reads_text
from triptych.serving.engine import Engine
from triptych.serving.inputs import ImageInput
from triptych.serving.verb import Item, Verb

R = TypeVar("R")

RECORD_FIELDS = {"text": ("caption", "text", "hypothesis"), "second_text": ()}
"""Where a text of an item stands in a record, the first that is there; others by their own name."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a job.

    Attributes:
        row: Its place in the dataset; entries that no record could be made of come last.
        record_id: What the dataset calls it.
        images: Where its images lie.
        item: What is asked; None where it cannot be used.
        error: Why it cannot be used.
    """

    row: int
    record_id: str
    images: tuple[str, ...] = ()
    item: Item | None = None
    error: str | None = None


class Inputs:
    """The inputs of a job; large data stays on disk, and each becomes an item where it is needed.

    Args:
        source: The dataset.
        limit: Only so many inputs, from the start.
    """

    def __init__(self, source: DataSourceConfig, limit: int | None = None) -> None:
        self.where = source.path
        self._found: FoundRecords = read_records(source)
        self.parts = self._found.parts
        total = self._found.num_samples
        self._length = total if limit is None else min(limit, total)

    def __len__(self) -> int:
        return self._length

    def check(self, verb: Verb, engine: Engine) -> None:
        """Raise unless some records have what a verb asks about.

        Raises:
            DataError: None has.
        """
        reader = ItemReader(verb, engine)
        if not any(reader.can_use(names) for names in kinds_of(self._found.records)):
            raise DataError(
                f"{self.where} holds nothing to {verb.name}: {len(self._found.records):,} records, "
                f"none with {' and '.join(reader.needs())}"
            )

    def read(self, row: int, reader: ItemReader) -> Input:
        """Return one input, with its images read and resized."""
        records = self._found.records
        if row >= len(records):
            return _unusable(row, self._found.skipped[row - len(records)])
        record = records[row]
        images = tuple(map(str, reader.images(record)))
        try:
            item = reader.item(record)
        except RemoteError:  # nobody's bad image: the job stops, and goes on when it is run again
            raise
        except DataError as error:
            return Input(row, record.record_id, images, error=str(error))
        return Input(row, record.record_id, images, item)


def _unusable(row: int, skipped: Skipped) -> Input:
    name = skipped.record_id or skipped.where
    return Input(row, name, error=f"{skipped.where}: {skipped.message}")


class ItemReader:
    """Makes items of records for one verb and one model.

    Args:
        verb: What is asked.
        engine: Who is asked, without texts that it does not read.
    """

    def __init__(self, verb: Verb, engine: Engine) -> None:
        self._verb, self._engine = verb, engine
        self._fields = {
            text.name: RECORD_FIELDS.get(text.name, (text.name,))
            for text in verb.texts
            if reads_text(engine.classifier, text.name)
        }
        if verb.name == "label":  # the text that the classifier was trained on
            config: Any = getattr(engine.classifier, "config", None)
            self._fields["text"] = (config.text_field,)
        self._is_pair_of_texts = verb.name == "label_texts"

    def needs(self) -> list[str]:
        """Return what a record must have, in words."""
        images = [[], ["an image"], ["two images"]][self._verb.num_images]
        required = [text.name for text in self._verb.texts if text.required]
        return images + [f"a {' or '.join(self._fields[name])}" for name in required]

    def can_use(self, names: Iterable[str]) -> bool:
        """Return whether a record with these fields, and no others, can be asked about."""
        has = set(names)
        ways = ({"image", "video"}, {"images"})
        if self._verb.num_images and not has & ways[self._verb.num_images - 1]:
            return False
        if self._is_pair_of_texts and {"premise", "hypothesis"} <= has:
            return True
        return all(has & set(self._fields[t.name]) for t in self._verb.texts if t.required)

    def images(self, record: Record) -> tuple[ImageInput, ...]:
        """Return where the images of a record lie, or its clip."""
        if self._verb.num_images == 0:
            return ()
        if self._verb.num_images == 2:
            return record.images
        if record.image is not None:
            return (record.image,)
        return () if record.video is None else (record.video,)

    def item(self, record: Record) -> Item:
        """Return what is asked about a record.

        Raises:
            DataError: It lacks something, or an image cannot be read.
        """
        images = [self._engine.prepare(image) for image in self.images(record)]
        return self._verb.item(images, self._texts(record))

    def _texts(self, record: Record) -> dict[str, str | None]:
        if self._is_pair_of_texts and record.premise is not None and record.hypothesis is not None:
            return {"text": record.premise, "second_text": record.hypothesis}
        return {name: _first_text(record, fields) for name, fields in self._fields.items()}


def _first_text(record: Record, fields: Iterable[str]) -> str | None:
    for name in fields:
        value = getattr(record, name)
        if isinstance(value, tuple):  # words that were read or found in the image
            value = " ".join(value)
        if value:
            return str(value)
    return None


def read_ahead(
    rows: Iterable[int], read: Callable[[int], R], num_threads: int, ahead: int
) -> Generator[R, None, None]:
    """Yield what `read` returns of each row, in order.

    Args:
        rows: What to read.
        read: Is called by threads.
        num_threads: How many; 0 reads in this one, when a row is asked for.
        ahead: Rows that are read before they are asked for, at most.
    """
    if num_threads == 0:
        yield from map(read, rows)
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="triptych-read")
    try:
        waiting: deque[Future[R]] = deque()
        for row in rows:
            waiting.append(pool.submit(read, row))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
