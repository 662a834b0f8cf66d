"""One manifest entry, from JSON or CSV, to records: each field is checked here and only here."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from triptych.core.errors import nearest
from triptych.data.records import ImageSource, Record, is_encodable
from triptych.data.skips import SkipKind, Skipped

FIELDS = (
    *("id", "image", "image_id", "images", "caption", "question", "answers", "question_type"),
    *("answer_type", "phrase", "box", "statement", "premise", "hypothesis", "label", "text"),
    *("video", "split", "ocr_words", "object_words", "domain", "answers_weight", "mask"),
)
# Names that other projects use. Only a clue where a field is missing: they may mean other things.
SYNONYMS = {
    "image": "img file file_name filename filepath path image_path image_file image photo",
    "caption": "captions sentence sentences description caption_text alt_text",
    "box": "bbox bounding_box",
    "phrase": "expression referring_expression",
    "video": "clip video_path",
    "label": "class category",
    "mask": "segmentation seg_map label_map",
}
SUBJECTS = ("caption", "question", "phrase", "statement", "hypothesis", "label", "text", "mask")
TEXT_FIELDS = (
    *("question", "question_type", "answer_type", "phrase", "statement", "premise", "hypothesis"),
    *("text", "video", "domain"),
)
IMAGE_FIELDS = frozenset({"id", "image", "image_id", "split", "domain"})
"""What an entry may hold that is an image and nothing else."""

ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")
TRUTH = {"true": True, "false": False, "1": True, "0": False}


class EntryError(ValueError):
    """An entry, or one field of it, cannot be used."""

    def __init__(self, kind: SkipKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def misspelt_field(names: Sequence[str]) -> str | None:
    """Return a hint for a name that is nearly a known field that is absent, or None.

    A name that resembles no field is the user's own (a URL, a width) and is ignored.
    """
    absent = [field for field in FIELDS if field not in names and len(field) > 2]
    for name in names:
        if name in FIELDS or _meant_by(name) is not None:
            continue
        close = difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=0.8)
        if close:
            return f"unknown field {name!r}; did you mean {close[0]!r}?"
    return None


def foreign_field(names: Sequence[str]) -> str | None:
    """Return a hint for a name that other projects use for an absent field, or None."""
    for name in names:
        meant = _meant_by(name)
        if name not in FIELDS and meant is not None and meant not in names:
            return f"rename field {name!r} to {meant!r}?"
    return None


def parse_entry(
    entry: Mapping[str, Any],
    *,
    record_id: str,
    where: str,
    locate: Callable[[str], ImageSource],
    images_only: bool = False,
) -> Iterator[Record | Skipped]:
    """Yield the records of one manifest entry: one, or one for each caption of a list.

    Args:
        entry: Field names to values.
        record_id: The id where the entry has no `id` of its own.
        where: Place of the entry, for `Skipped.where`.
        locate: Turns an image's name, as written, into a source.
        images_only: Whether the file is one of images alone, where an image suffices.
    """
    try:
        common = _common_fields(entry, record_id, locate)
        if images_only and IMAGE_FIELDS.issuperset(entry) and "image" in common:
            yield Record(**common)
            return
        captions = entry.get("caption")
        if not isinstance(captions, list):
            yield _record(entry, common, captions)
            return
        if not captions:
            raise EntryError(SkipKind.EMPTY_CAPTION, "caption is an empty list")
    except EntryError as error:
        yield Skipped(error.kind, where, str(error))
        return
    for index, caption in enumerate(captions):
        try:
            if caption is None:
                raise EntryError(SkipKind.EMPTY_CAPTION, "caption is null")
            own_id = {**common, "record_id": f"{common['record_id']}#{index}"}
            yield _record(entry, own_id, caption)
        except EntryError as error:
            yield Skipped(error.kind, f"{where}: caption[{index}]", str(error))


def parse_caption(caption: Any) -> str:
    """Return a caption without surrounding space.

    Raises:
        EntryError: It is empty, no string, or holds lone surrogates, which no encoding can write.
    """
    if not isinstance(caption, str):
        kind = SkipKind.CAPTION_NOT_TEXT
        raise EntryError(kind, f"caption is {_described(caption)}, not a string")
    if not caption.strip():
        raise EntryError(SkipKind.EMPTY_CAPTION, "caption is empty")
    if not is_encodable(caption):
        raise EntryError(SkipKind.CAPTION_NOT_TEXT, "caption holds broken characters (surrogates)")
    return caption.strip()


def parse_answers(answers: Any) -> tuple[str, ...]:
    """Return answers given as a string, a list of strings, or VQAv2's list of dicts.

    Raises:
        EntryError: Another type, or an answer that is empty.
    """
    if answers is None:
        return ()
    items = answers if isinstance(answers, list) else [answers]
    found = []
    for index, item in enumerate(items):
        answer = item.get("answer") if isinstance(item, Mapping) else item
        if _is_number(answer):
            answer = f"{answer:g}"
        if not isinstance(answer, str) or not answer.strip() or not is_encodable(answer):
            message = f"answers[{index}] is {_described(answer)}, not a text"
            raise EntryError(SkipKind.BAD_ANSWERS, message)
        found.append(answer.strip())
    return tuple(found)


def parse_box(box: Any) -> tuple[float, float, float, float]:
    """Return x, y, width, height.

    Raises:
        EntryError: Not four finite numbers, or no positive width and height.
    """
    kind = SkipKind.BAD_BOX
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise EntryError(kind, f"box is {_described(box)}, not [x, y, width, height]")
    if not all(_is_number(value) for value in box):
        raise EntryError(kind, f"box {box!r} must hold four finite numbers")
    x, y, width, height = (float(value) for value in box)
    if width <= 0 or height <= 0:
        raise EntryError(kind, f"box {list(box)!r} has no positive width and height")
    return x, y, width, height


def parse_text(name: str, value: Any) -> str:
    """Return a text field without surrounding space.

    Raises:
        EntryError: It is no string, or empty.
    """
    if not isinstance(value, str) or not value.strip() or not is_encodable(value):
        raise EntryError(SkipKind.BAD_RECORD, f"{name} is {_described(value)}, not a text")
    return value.strip()


def parse_words(name: str, value: Any) -> tuple[str, ...]:
    """Return words given as one string or as a list of strings; a list's items stay whole.

    Raises:
        EntryError: Another type, or an item that is no text. An empty list is none.
    """
    if value is None or value in ("", []):
        return ()
    if isinstance(value, list):
        return tuple(parse_text(f"{name}[{i}]", item) for i, item in enumerate(value))
    return tuple(parse_text(name, value).split())


def parse_truth(value: Any) -> bool:
    """Return a truth value given as a bool, 0 or 1, or `true` or `False`.

    Raises:
        EntryError: Anything else.
    """
    truth = TRUTH.get(str(value).strip().lower())
    if truth is None:
        raise EntryError(SkipKind.BAD_LABEL, f"label is {_described(value)}, not true or false")
    return truth


def parse_entailment(value: Any) -> str:
    """Return one of `ENTAILMENT_LABELS`.

    Raises:
        EntryError: Anything else.
    """
    label = str(value).strip().lower()
    if label not in ENTAILMENT_LABELS:
        known = ", ".join(ENTAILMENT_LABELS)
        message = f"label {value!r} is none of {known}{nearest(label, ENTAILMENT_LABELS)}"
        raise EntryError(SkipKind.BAD_LABEL, message)
    return label


def _common_fields(
    entry: Mapping[str, Any], record_id: str, locate: Callable[[str], ImageSource]
) -> dict[str, Any]:
    """Return everything but the caption, as arguments of `Record`."""
    fields: dict[str, Any] = {"record_id": _id(entry, "id") or record_id}
    if entry.get("image") is not None:
        fields["image"] = locate(parse_text("image", entry["image"]))
    if entry.get("mask") is not None:
        fields["mask"] = locate(parse_text("mask", entry["mask"]))
    if entry.get("images") is not None:
        fields["images"] = _images(entry["images"], locate)
    own_id = _id(entry, "image_id")
    if own_id is not None or "image" in fields:
        fields["image_id"] = own_id or str(fields["image"])
    names = (
        "question question_type answer_type phrase statement premise hypothesis text video domain"
    )
    for name in names.split():
        if entry.get(name) is not None:
            fields[name] = parse_text(name, entry[name])
    if "video" in fields:
        fields["video"] = locate(fields["video"]).path
    fields["answers"] = parse_answers(entry.get("answers"))
    if entry.get("answers_weight") is not None:
        fields["answers_weight"] = _weight(entry["answers_weight"])
    for name in ("ocr_words", "object_words"):
        fields[name] = parse_words(name, entry.get(name))
    if entry.get("box") is not None:
        fields["box"] = parse_box(entry["box"])
    if entry.get("label") is not None:
        fields["label"] = _label(entry)
    return fields


def _record(entry: Mapping[str, Any], common: dict[str, Any], caption: Any) -> Record:
    if caption is None and "caption" in entry and not any(common.get(s) for s in SUBJECTS):
        raise EntryError(SkipKind.EMPTY_CAPTION, "caption is null")
    record = Record(**common, caption=None if caption is None else parse_caption(caption))
    problem = _incomplete(record)
    if problem is not None:
        clue = misspelt_field(list(entry)) or foreign_field(list(entry))
        message = f"{problem} ({clue})" if clue else problem
        raise EntryError(SkipKind.MISSING_FIELD, message)
    return record


def _incomplete(record: Record) -> str | None:
    """Return what the record lacks for each of the kinds of data that it could be, or None."""
    has_image = record.image is not None or record.video is not None
    for name in ("caption", "question"):
        if getattr(record, name) is not None and not has_image:
            return f"{name} needs 'image' or 'video' beside it"
    if record.box is not None and record.phrase is None:
        return "'box' needs 'phrase' beside it"
    if record.phrase is not None and record.image is None:
        return "phrase needs 'image' beside it"
    if record.statement is not None and len(record.images) < 2:
        return "statement needs 'images', a list of two or more"
    if record.hypothesis is not None and record.image is None and record.premise is None:
        return "hypothesis needs 'image' or 'premise' beside it"
    if record.mask is not None and record.image is None:
        return "mask needs 'image' beside it"
    if record.answers and record.question is None:
        return "answers need 'question' beside them"
    has_subject = any(getattr(record, name) is not None for name in SUBJECTS)
    if not has_subject:
        return f"it has none of {', '.join(repr(name) for name in SUBJECTS)}"
    only_label = all(getattr(record, name) is None for name in SUBJECTS if name != "label")
    return "label needs 'image' or 'video' beside it" if only_label and not has_image else None


def _images(images: Any, locate: Callable[[str], ImageSource]) -> tuple[ImageSource, ...]:
    if not isinstance(images, list) or not images:
        message = f"images is {_described(images)}, not a list of names"
        raise EntryError(SkipKind.BAD_RECORD, message)
    return tuple(locate(parse_text(f"images[{i}]", name)) for i, name in enumerate(images))


def _label(entry: Mapping[str, Any]) -> str | int | bool:
    label = entry["label"]
    if entry.get("statement") is not None:
        return parse_truth(label)
    if entry.get("hypothesis") is not None:
        return parse_entailment(label)
    if isinstance(label, (str, int)) and str(label).strip():
        return label.strip() if isinstance(label, str) else label
    raise EntryError(SkipKind.BAD_LABEL, f"label is {_described(label)}, not a name or a number")


def _weight(value: Any) -> float:
    if not _is_number(value) or value < 0:
        message = f"answers_weight is {_described(value)}, not a number of at least 0"
        raise EntryError(SkipKind.BAD_ANSWERS, message)
    return float(value)


def _id(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return str(value) if isinstance(value, (str, int)) and str(value) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def _meant_by(name: str) -> str | None:
    plain = name.strip().lower()
    return next((field for field, words in SYNONYMS.items() if plain in words.split()), None)


def _described(value: Any) -> str:
    """Return a short form of a wrong value for a message."""
    if value is None:
        return "null"
    # A list of a pickle may hold itself, or one list a thousand times, so not all of it is written.
    text = repr(value) if isinstance(value, (str, int, float)) else reprlib.repr(value)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    return f"{type(value).__name__} {shown}"
