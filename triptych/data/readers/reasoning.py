"""NLVR2, SNLI-VE and Hateful Memes: JSON Lines of a text, a label, and one image or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_entailment, parse_text, parse_truth
from triptych.data.readers.manifests import read_objects
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout


def is_nlvr2(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is an NLVR2 example."""
    return {"identifier", "sentence"} <= entry.keys()


def read_nlvr2(source: DataSourceConfig) -> RecordList:
    """Read statements; `dev-850-0-1` is about `dev-850-0-img0.png` and `dev-850-0-img1.png`.

    Images are looked for in `image_root`, in its folder named after the first part of the
    identifier (`dev`), and in `images/train/<directory>`.

    Raises:
        DataError: The file cannot be read, no line is of NLVR2, or no image is found.
    """
    check_split(source.split, (), source.path)
    entries, skipped = read_objects(Path(source.path))
    found = RecordList(skipped=skipped)
    usable = []
    for _, where, fields in entries:
        identifier = fields.get("identifier")
        if isinstance(identifier, str) and len(identifier.split("-")) > 1:
            usable.append((where, fields))
        else:
            message = f"identifier {identifier!r} is not like 'dev-850-0-1'"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, message))
    if not usable:
        raise DataError(f"{source.path}: no line has an NLVR2 'identifier'")
    layout = choose_layout(
        source.root, NLVR2_LAYOUTS, [fields for _, fields in usable], "image pairs"
    )
    for where, fields in usable:
        found.add([_nlvr2_record(fields, where, source.root, layout)])
    return found


def _nlvr2_record(
    fields: Mapping[str, Any], where: str, root: Path, layout: Callable[[Any], str]
) -> Record | Skipped:
    first = layout(fields)
    second = first.removesuffix("img0.png") + "img1.png"
    try:
        label = fields.get("label")
        return Record(
            record_id=fields["identifier"],
            images=(ImageSource(str(root / first)), ImageSource(str(root / second))),
            image_id=_pair(fields),
            statement=parse_text("sentence", fields.get("sentence")),
            label=None if label is None else parse_truth(label),
        )
    except EntryError as error:
        return Skipped(error.kind, where, str(error))


def _pair(fields: Mapping[str, Any]) -> str:
    return str(fields["identifier"]).rsplit("-", 1)[0]


def _part(fields: Mapping[str, Any]) -> str:
    return str(fields["identifier"]).split("-", 1)[0]


NLVR2_LAYOUTS: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda fields: f"{_pair(fields)}-img0.png",
    lambda fields: f"{_part(fields)}/{_pair(fields)}-img0.png",
    lambda fields: f"images/{_pair(fields)}-img0.png",
    lambda fields: f"images/train/{fields.get('directory', '')}/{_pair(fields)}-img0.png",
    # The published files lie in `data`, beside the folders of images.
    lambda fields: f"../{_part(fields)}/{_pair(fields)}-img0.png",
    lambda fields: f"../images/train/{fields.get('directory', '')}/{_pair(fields)}-img0.png",
)


SNLI_VE_IMAGE_FIELDS = ("Flickr30K_ID", "Flikr30kID")  # both spellings are in use


def is_snli_ve(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is an SNLI-VE example."""
    return "sentence2" in entry and any(name in entry for name in SNLI_VE_IMAGE_FIELDS)


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
        image_id = next((fields[name] for name in SNLI_VE_IMAGE_FIELDS if name in fields), None)
        if isinstance(image_id, (str, int)) and str(image_id):
            usable.append((number, where, fields, str(image_id).removesuffix(".jpg")))
        else:
            message = f"has no {SNLI_VE_IMAGE_FIELDS[0]!r}"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, message))
    if not usable:
        raise DataError(f"{source.path}: no line has an SNLI-VE {SNLI_VE_IMAGE_FIELDS[0]!r}")
    layout = choose_layout(
        source.root, SNLI_VE_LAYOUTS, [image_id for *_, image_id in usable], "images"
    )
    for number, where, fields, image_id in usable:
        image = ImageSource(str(source.root / layout(image_id)))
        found.add([_snli_ve_record(fields, number, where, image, image_id)])
    return found


def _snli_ve_record(
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


SNLI_VE_LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda image_id: f"{image_id}.jpg",
    lambda image_id: f"images/{image_id}.jpg",
    lambda image_id: f"flickr30k-images/{image_id}.jpg",
    lambda image_id: f"../flickr30k/flickr30k-images/{image_id}.jpg",
)


def is_hateful_memes(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is of Hateful Memes."""
    return {"id", "img", "text"} <= entry.keys()


def read_hateful_memes(source: DataSourceConfig) -> RecordList:
    """Read `{"id": 42953, "img": "img/42953.png", "label": 0, "text": "..."}` lines.

    The label is 1 for hateful and 0 for not; lines of a test file have none.

    Raises:
        DataError: The file cannot be read, or no line is of Hateful Memes.
    """
    check_split(source.split, (), source.path)
    entries, skipped = read_objects(Path(source.path))
    if entries and not any(is_hateful_memes(fields) for _, _, fields in entries):
        raise DataError(f"{source.path}: no line has 'id', 'img' and 'text', as Hateful Memes has")
    found = RecordList(skipped=skipped)
    for number, where, fields in entries:
        found.add([_meme_record(fields, number, where, source.root)])
    return found


def _meme_record(
    fields: Mapping[str, Any], number: str, where: str, root: Path
) -> Record | Skipped:
    label = fields.get("label")
    try:
        image = parse_text("img", fields.get("img"))
        return Record(
            record_id=str(fields.get("id", number)),
            image=ImageSource(str(root / image)),
            image_id=image,
            text=parse_text("text", fields.get("text")),
            label=None if label is None else int(parse_truth(label)),
        )
    except EntryError as error:
        kind = SkipKind.MISSING_FIELD if error.kind is SkipKind.BAD_RECORD else error.kind
        return Skipped(kind, where, str(error))


FORMATS = (
    Format(
        name="nlvr2",
        title="NLVR2 (Suhr et al. 2019): statements about two images",
        fields=("images", "statement", "label"),
        read=read_nlvr2,
        tells="lines with 'identifier' and 'sentence'",
        of_object=is_nlvr2,
        layouts=(
            Layout(
                "NLVR2",
                "nlvr2",
                "https://github.com/lil-lab/nlvr/tree/master/nlvr2",
                (
                    Expected("data/train.json", "86,373 statements", other=("train.json",)),
                    Expected("data/dev.json", "6,982 statements", other=("dev.json",)),
                    Expected("data/test1.json", "6,967 statements", other=("test1.json",)),
                    Expected("images/train/*/*.png", "images for training"),
                    Expected("dev/*.png", "images for validation"),
                    Expected("test1/*.png", "images for testing"),
                ),
                ("nlvr2/data/dev.json", "nlvr2/data/train.json"),
            ),
        ),
    ),
    Format(
        name="snli_ve",
        title="SNLI-VE (Xie et al. 2019): whether an image entails a sentence",
        fields=("image", "premise", "hypothesis", "label"),
        read=read_snli_ve,
        tells="lines with 'sentence2' and 'Flickr30K_ID'",
        of_object=is_snli_ve,
        layouts=(
            Layout(
                "SNLI-VE",
                "snli_ve",
                "https://github.com/necla-ml/SNLI-VE",
                (
                    Expected("snli_ve_train.jsonl", "529,527 pairs"),
                    Expected("snli_ve_dev.jsonl", "17,858 pairs"),
                    Expected("snli_ve_test.jsonl", "17,901 pairs"),
                    Expected(
                        "flickr30k-images/*.jpg",
                        "Flickr30k's images",
                        other=("../flickr30k/flickr30k-images/*.jpg", "images/*.jpg"),
                    ),
                ),
                ("snli_ve/snli_ve_dev.jsonl",),
            ),
        ),
    ),
    Format(
        name="hateful_memes",
        title="Hateful Memes (Kiela et al. 2020)",
        fields=("image", "text", "label"),
        read=read_hateful_memes,
        tells="lines with 'id', 'img' and 'text'",
        of_object=is_hateful_memes,
        layouts=(
            Layout(
                "Hateful Memes",
                "hateful_memes",
                "https://ai.meta.com/tools/hatefulmemes/",
                (
                    Expected("train.jsonl", "8,500 memes"),
                    Expected("dev.jsonl", "500 memes", other=("dev_seen.jsonl",)),
                    Expected("test.jsonl", "1,000 memes", other=("test_seen.jsonl",)),
                    Expected("img/*.png", "images", 10_000),
                ),
                ("hateful_memes/dev.jsonl",),
            ),
        ),
    ),
)
