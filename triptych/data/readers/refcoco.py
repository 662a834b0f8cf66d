"""RefCOCO, RefCOCO+ and RefCOCOg: a list of references, with `instances.json` beside it.

They are published as pickles of plain values, `refs(unc).p`; the same list as JSON is read too.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import read_json
from triptych.data.entries import EntryError, parse_box, parse_text
from triptych.data.literals import load_literals
from triptych.data.readers.coco import folder_of
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout

INSTANCES_FILE = "instances.json"
PICKLED = re.compile(r"refs(\(\w+\))?\.(p|pkl|pickle)")


def is_refcoco(data: Any) -> bool:
    """Return whether JSON content is a list of references."""
    if not isinstance(data, list) or not data or not isinstance(data[0], dict):
        return False
    return "ann_id" in data[0] and "sentences" in data[0]


def is_pickled_refcoco(path: str) -> bool:
    """Return whether a path is named as the published references: `refs(unc).p`."""
    return PICKLED.fullmatch(PurePath(path).name.lower()) is not None


def read_pickled_refcoco(source: DataSourceConfig) -> RecordList:
    """Read the published `refs(unc).p`, `refs(google).p` or `refs(umd).p`; nothing of it is run.

    Raises:
        DataError: The file is damaged or holds more than plain values, or see `read_refcoco`.
    """
    return read_refcoco(load_literals(Path(source.path)), source)


def read_refcoco(data: Any, source: DataSourceConfig) -> RecordList:
    """Read one record for each sentence of each reference.

    The splits are `train`, `val`, and `test` or `testA` (people) and `testB` (things). Images
    take the name that the instances file gives them, in `image_root`, or its `images` or
    `train2014` folder.

    Args:
        data: The content of the list of references.
        source: `annotations` is the instances file, else `instances.json` beside the list.

    Raises:
        DataError: No instances file, no such split, no image found, or another format.
    """
    if not is_refcoco(data):
        raise DataError(
            f"{source.path}: not a list of references: needs entries with 'ann_id' and 'sentences'"
        )
    splits = (str(ref["split"]) for ref in data if isinstance(ref, dict) and "split" in ref)
    parts = check_split(source.split, splits, source.path)
    files, boxes = _load_instances(source)
    found = RecordList(parts=parts)
    usable: list[tuple[str, Mapping[str, Any], str, Any]] = []
    for index, ref in enumerate(data):
        where = f"{source.path}: [{index}]"
        if isinstance(ref, dict) and source.split not in (None, ref.get("split")):
            continue
        try:
            usable.append((where, ref, *_look_up(ref, files, boxes)))
        except EntryError as error:
            found.skipped.append(Skipped(error.kind, where, str(error)))
    layout = choose_layout(source.root, LAYOUTS, [name for _, _, name, _ in usable], "images")
    for where, ref, name, box in usable:
        image = ImageSource(str(source.root / layout(name)))
        found.add(_records(ref, where, image, box))
    return found


def _look_up(ref: Any, files: Mapping[Any, str], boxes: Mapping[Any, Any]) -> tuple[str, Any]:
    """Return the image's name and the box of one reference."""
    if not isinstance(ref, dict):
        raise EntryError(SkipKind.BAD_RECORD, "is not an object")
    image_id, ann_id = ref.get("image_id"), ref.get("ann_id")
    if not isinstance(image_id, (int, str)) or image_id not in files:
        message = f"image_id {reprlib.repr(image_id)[:60]} is not in the instances file"
        raise EntryError(SkipKind.BAD_RECORD, message)
    if not isinstance(ann_id, (int, str)) or ann_id not in boxes:
        message = f"ann_id {reprlib.repr(ann_id)[:60]} is not in the instances file"
        raise EntryError(SkipKind.BAD_RECORD, message)
    return files[image_id], parse_box(boxes[ann_id])


def _records(
    ref: Mapping[str, Any], where: str, image: ImageSource, box: Any
) -> Iterator[Record | Skipped]:
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        yield Skipped(SkipKind.MISSING_FIELD, where, "has no sentences")
        return
    for index, sentence in enumerate(sentences):
        fields = sentence if isinstance(sentence, dict) else {}
        own_id = fields.get("sent_id")
        record_id = str(own_id) if own_id is not None else f"{ref.get('ref_id', where)}#{index}"
        try:
            phrase = parse_text("sentence", fields.get("raw", fields.get("sent")))
        except EntryError as error:
            yield Skipped(error.kind, f"{where}.sentences[{index}]", str(error))
            continue
        yield Record(
            record_id=record_id,
            image=image,
            image_id=str(ref["image_id"]),
            phrase=phrase,
            box=box,
        )


def _load_instances(source: DataSourceConfig) -> tuple[dict[Any, str], dict[Any, Any]]:
    """Return image ids to file names, and annotation ids to boxes as written."""
    beside = Path(source.path).with_name(INSTANCES_FILE)
    path = beside if source.annotations is None else Path(source.annotations)
    if not path.is_file():
        raise DataError(
            f"{source.path}: its instances file is missing; tried: {path}. Set annotations to the "
            "file that holds the boxes"
        )
    data = read_json(path)
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise DataError(f"{path}: not an instances file: needs 'images' and 'annotations'")
    files = {
        image["id"]: image["file_name"]
        for image in data["images"]
        if isinstance(image, dict) and {"id", "file_name"} <= image.keys()
    }
    boxes = {
        entry["id"]: entry.get("bbox")
        for entry in data["annotations"]
        if isinstance(entry, dict) and "id" in entry
    }
    return files, boxes


BESIDE = (
    "../images/mscoco/images/train2014",
    "../images/mscoco/train2014",
    "../images/train2014",
    "../coco/train2014",
)
LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: f"{folder_of(name)}/{name}" if folder_of(name) else "",
    lambda name: f"images/{name}",
    lambda name: f"train2014/{name}",
    # The refer toolbox has them in the first of these; the others are usual, too.
    *(lambda name, folder=folder: f"{folder}/{name}" for folder in BESIDE),
)


FORMAT = Format(
    name="refcoco",
    title="RefCOCO, RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016)",
    fields=("image", "phrase", "box"),
    read=read_pickled_refcoco,
    read_json=read_refcoco,
    tells="a list of references with 'ann_id' and 'sentences'",
    of_path=is_pickled_refcoco,
    of_json=is_refcoco,
    beside=lambda path: (
        [path.with_name(INSTANCES_FILE)]
        if path.suffix.lower() == ".json" or is_pickled_refcoco(str(path))
        else []
    ),
    parts="train, val, testA and testB, or test",
    layouts=tuple(
        Layout(
            name,
            folder,
            "https://github.com/lichengunc/refer",
            (
                *(
                    Expected(
                        f"refs({by}).p",
                        f"references, split by {by}",
                        optional=by != authors[0],
                        other=("refs.json",),
                    )
                    for by in authors
                ),
                Expected(INSTANCES_FILE, "boxes, and the names of the images"),
                Expected(
                    "train2014/COCO_train2014_*.jpg",
                    "COCO's images",
                    other=tuple(f"{folder}/COCO_train2014_*.jpg" for folder in BESIDE),
                ),
            ),
            tuple(f"'{folder}/refs({by}).p' --split val" for by in authors),
        )
        for name, folder, authors in (
            ("RefCOCO", "refcoco", ("unc", "google")),
            ("RefCOCO+", "refcoco+", ("unc",)),
            ("RefCOCOg", "refcocog", ("umd", "google")),
        )
    ),
)
