"""SNLI-VE: does the image entail the hypothesis?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_entailment, parse_text
from triptych.data.readers.jsonl import read_objects
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout

IMAGE_FIELDS = ("Flickr30K_ID", "Flikr30kID")  # both spellings are in use


def is_snli_ve(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is an SNLI-VE example."""
    return "sentence2" in entry and any(name in entry for name in IMAGE_FIELDS)


def read_snli_ve(source: DataSourceConfig) -> RecordList:
    """Read hypotheses (`sentence2`) with premise (`sentence1`, a caption) and gold label.

    A gold label of `-` (the annotators did not agree) is skipped, as in the paper.

    Raises:
        DataError: The file cannot be read, no line is of SNLI-VE, or no image is found.
    """
    check_split(source.split, (), source.path)
    entries, skipped = read_objects(Path(source.path))
    found = RecordList(skipped=skipped)
    usable = []
    for number, where, fields in entries:
        image_id = next((fields[name] for name in IMAGE_FIELDS if name in fields), None)
        if isinstance(image_id, (str, int)) and str(image_id):
            usable.append((number, where, fields, str(image_id).removesuffix(".jpg")))
        else:
            message = f"has no {IMAGE_FIELDS[0]!r}"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, message))
    if not usable:
        raise DataError(f"{source.path}: no line has an SNLI-VE {IMAGE_FIELDS[0]!r}")
    layout = choose_layout(source.root, LAYOUTS, [image_id for *_, image_id in usable], "images")
    for number, where, fields, image_id in usable:
        image = ImageSource(str(source.root / layout(image_id)))
        found.add([_record(fields, number, where, image, image_id)])
    return found


def _record(
    fields: Mapping[str, Any], number: str, where: str, image: ImageSource, image_id: str
) -> Record | Skipped:
    label, premise = fields.get("gold_label"), fields.get("sentence1")
    try:
        return Record(
            record_id=str(fields.get("pairID", number)),
            image=image,
            image_id=image_id,
            premise=None if premise is None else parse_text("sentence1", premise),
            hypothesis=parse_text("sentence2", fields.get("sentence2")),
            label=None if label is None else parse_entailment(label),
        )
    except EntryError as error:
        return Skipped(error.kind, where, str(error))


LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda image_id: f"{image_id}.jpg",
    lambda image_id: f"images/{image_id}.jpg",
    lambda image_id: f"flickr30k-images/{image_id}.jpg",
)
