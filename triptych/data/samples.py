"""A sample of a tar shard: an image, with the manifest fields of all records that show it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.records import ImageSource, Record

_RECORD_FIELDS = (
    *("image_id", "question", "answers", "question_type", "answer_type", "phrase", "box"),
    *("premise", "hypothesis", "label", "ocr_words", "object_words"),
    *("domain", "answers_weight"),
)
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


@dataclass(slots=True)
class SharedImage:
    """All records of one image that differ in their caption alone; they share a sample.

    Attributes:
        image: The image.
        records: What is known about it.
    """

    image: ImageSource
    records: list[Record] = field(default_factory=list)


def group_by_image(records: Iterable[Record]) -> list[SharedImage]:
    """Group the records that differ in their caption alone; images keep the order of the first.

    Raises:
        DataError: A record shows no image, or several, or a clip.
    """
    groups: dict[str, SharedImage] = {}
    for record in records:
        if record.image is None:
            raise DataError(f"record {record.record_id}: has no single image for a shard")
        key = json.dumps([str(record.image), _fields(record)], sort_keys=True)
        groups.setdefault(key, SharedImage(record.image)).records.append(record)
    return list(groups.values())


def sample_entry(records: Sequence[Record]) -> Mapping[str, Any]:
    """Return the manifest entry of records that differ in their caption alone."""
    captions = [record.caption for record in records if record.caption is not None]
    entry = _fields(records[0])
    if captions:
        entry["caption"] = captions if len(captions) > 1 else captions[0]
    return entry


def image_extension(image: ImageSource, data: bytes) -> str:
    """Return an image's extension as shards want it: by its bytes, or else by its name."""
    for magic, extension in _MAGIC:
        if data.startswith(magic):
            return extension
    suffix = Path(image.member or image.path).suffix.lower().removeprefix(".")
    return (
        suffix if suffix in ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff") else "jpg"
    )


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard; owner and time stay 0, so that equal samples make equal shards."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _fields(record: Record) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in _RECORD_FIELDS}
    return {name: value for name, value in values.items() if value not in (None, ())}
