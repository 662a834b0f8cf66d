"""Captions of COCO (also NoCaps), and of Karpathy's split file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_caption
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout


def is_karpathy(data: Any) -> bool:
    """Return whether JSON content is a Karpathy file: images that hold their sentences."""
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return False
    return "sentences" in images[0]


def is_coco(data: Any) -> bool:
    """Return whether JSON content is an official caption file: images, and captions by id.

    The list of test images, which has no annotations, is one too.
    """
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        return False
    if "annotations" not in data:
        lists = {name for name, value in data.items() if isinstance(value, list)}
        images = data["images"]
        return lists <= {"images", "licenses", "categories"} and all(
            isinstance(image, dict) and {"id", "file_name"} <= image.keys() for image in images
        )
    annotations = data.get("annotations")
    return isinstance(annotations, list) and any(
        isinstance(a, dict) and "caption" in a for a in annotations[:1]
    )


def read_karpathy(data: Any, source: DataSourceConfig) -> RecordList:
    """Read Karpathy's `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`.

    One record for each sentence; the five of an image share `image_id`. `split="train"` reads
    the images marked `restval` too, as is the custom on COCO (113,287 training images).

    Args:
        data: The file's content.
        source: `image_root` holds `filepath/filename`, or `filename`.

    Raises:
        DataError: No such split, no image where it was looked for, or another format.
    """
    if not is_karpathy(data):
        raise DataError(f"{source.path}: not a Karpathy file: no 'images' that hold 'sentences'")
    images = data["images"]
    splits = (str(i["split"]) for i in images if isinstance(i, dict) and "split" in i)
    parts = check_split(source.split, splits, source.path, aliases=("train",))
    found = RecordList(parts=parts)
    chosen = []
    for index, image in enumerate(images):
        where = f"{source.path}: images[{index}]"
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            message = "has no 'filename'"
            found.skipped.append(Skipped(SkipKind.BAD_RECORD, where, message))
        elif _is_in_split(image, source.split):
            chosen.append((where, image))
    if not chosen:
        raise DataError(f"{source.path}: no image in split {source.split!r}")
    layout = choose_layout(source.root, KARPATHY_LAYOUTS, [image for _, image in chosen], "images")
    for where, image in chosen:
        path = ImageSource(str(source.root / (layout(image) or image["filename"])))
        _add_sentences(found, where, image, path)
    return found


def read_coco(data: Any, source: DataSourceConfig) -> RecordList:
    """Read an official caption file (`captions_val2014.json`): one record for each annotation.

    Of the list of test images (`image_info_test2014.json`) one record for each image.

    Args:
        data: The file's content.
        source: `image_root` holds `file_name`, or a folder such as `val2014` that does.

    Raises:
        DataError: No image where it was looked for, or another format.
    """
    if not is_coco(data):
        raise DataError(
            f"{source.path}: not a COCO caption file: needs 'images' and 'annotations' whose "
            "entries have a 'caption'"
        )
    check_split(source.split, (), source.path)
    found = RecordList()
    files = image_files(data["images"], source, found)
    layout = choose_layout(source.root, COCO_LAYOUTS, list(files.values()), "images")
    sources = {i: ImageSource(str(source.root / layout(name))) for i, name in files.items()}
    if "annotations" not in data:
        found.records += [
            Record(record_id=str(i), image=image, image_id=str(i)) for i, image in sources.items()
        ]
        return found
    for index, annotation in enumerate(data["annotations"]):
        where = f"{source.path}: annotations[{index}]"
        found.add([_caption_record(annotation, index, where, sources)])
    return found


def image_files(images: list[Any], source: DataSourceConfig, found: RecordList) -> dict[Any, str]:
    """Return image ids to file names; entries without both are filed as skipped.

    Raises:
        DataError: No entry has both.
    """
    files: dict[Any, str] = {}
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        own_id = image.get("id") if isinstance(image, dict) else None
        if isinstance(name, str) and name and isinstance(own_id, (int, str)):
            files[own_id] = name
        else:
            where = f"{source.path}: images[{index}]"
            found.skipped.append(
                Skipped(SkipKind.MISSING_FIELD, where, "needs 'id' and 'file_name'")
            )
    if not files:
        raise DataError(f"{source.path}: no entry of 'images' has 'id' and 'file_name'")
    return files


def _is_in_split(image: Mapping[str, Any], split: str | None) -> bool:
    if split is None:
        return True
    return image.get("split") == split or (split == "train" and image.get("split") == "restval")


def _add_sentences(
    found: RecordList, where: str, image: Mapping[str, Any], path: ImageSource
) -> None:
    image_id = str(image.get("cocoid", image.get("imgid", image["filename"])))
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        found.skipped.append(Skipped(SkipKind.EMPTY_CAPTION, where, "has no sentences"))
        return
    for index, sentence in enumerate(sentences):
        sentence_where = f"{where}.sentences[{index}]"
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        own_id = sentence.get("sentid") if isinstance(sentence, dict) else None
        record_id = str(own_id) if own_id is not None else f"{image_id}#{index}"
        try:
            caption = parse_caption(raw)
        except EntryError as error:
            found.skipped.append(Skipped(error.kind, sentence_where, str(error)))
            continue
        record = Record(record_id=record_id, image=path, image_id=image_id, caption=caption)
        found.records.append(record)


def _caption_record(
    annotation: Any, index: int, where: str, sources: Mapping[Any, ImageSource]
) -> Record | Skipped:
    if not isinstance(annotation, dict):
        return Skipped(SkipKind.BAD_RECORD, where, "is not an object")
    image_id = annotation.get("image_id")
    if not isinstance(image_id, (int, str)) or image_id not in sources:
        message = f"image_id {image_id!r} is not among 'images'"
        return Skipped(SkipKind.BAD_RECORD, where, message)
    try:
        caption = parse_caption(annotation.get("caption"))
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    return Record(
        record_id=str(annotation.get("id", index)),
        image=sources[image_id],
        image_id=str(image_id),
        caption=caption,
    )


def _karpathy_path(image: Mapping[str, Any]) -> str:
    folder = image.get("filepath")
    return f"{folder}/{image['filename']}" if isinstance(folder, str) and folder else ""


KARPATHY_LAYOUTS: tuple[Callable[[Any], str], ...] = (
    _karpathy_path,
    lambda image: str(image["filename"]),
    lambda image: f"images/{image['filename']}",
    lambda image: f"flickr30k-images/{image['filename']}",
)


def folder_of(file_name: str) -> str:
    """Return COCO's folder of an image: `COCO_val2014_000000000042.jpg` lies in `val2014`."""
    parts = file_name.split("_")
    return parts[1] if len(parts) > 2 and parts[0] == "COCO" else ""


COCO_LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: f"{folder_of(name)}/{name}" if folder_of(name) else "",
    lambda name: f"images/{name}",
    *(lambda name, part=part: f"{part}/{name}" for part in ("train2017", "val2017", "test2017")),
    lambda name: f"../{folder_of(name)}/{name}" if folder_of(name) else "",
    *(lambda name, part=part: f"../{part}/{name}" for part in ("train2017", "val2017")),
)


COCO_URL = "https://cocodataset.org/#download"
TRAIN_2014 = Expected("train2014/COCO_train2014_*.jpg", "images for training", 82_783)
VAL_2014 = Expected("val2014/COCO_val2014_*.jpg", "images for validation", 40_504)
TEST_2015 = Expected("test2015/COCO_test2015_*.jpg", "images for testing", 81_434)

FORMATS = (
    Format(
        name="karpathy",
        title="Karpathy and Fei-Fei's split of COCO, Flickr30k and Flickr8k (2015)",
        fields=("image", "caption"),
        read_json=read_karpathy,
        tells="'images' that hold 'sentences'",
        of_json=is_karpathy,
        parts="train (with COCO's restval), val, test",
        layouts=(
            Layout(
                "COCO, Karpathy's split (5K test; 1K by `eval --folds 5`)",
                "coco",
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                (
                    Expected("dataset_coco.json", "captions and split of 123,287 images"),
                    TRAIN_2014,
                    VAL_2014,
                ),
                ("coco/dataset_coco.json --split test",),
            ),
            Layout(
                "Flickr30k, Karpathy's split (1K test)",
                "flickr30k",
                "https://shannon.cs.illinois.edu/DenotationGraph/",
                (
                    Expected("dataset_flickr30k.json", "captions and split of 31,014 images"),
                    Expected(
                        "flickr30k-images/*.jpg",
                        "images",
                        31_014,
                        other=("images/*.jpg", "*.jpg"),
                    ),
                ),
                ("flickr30k/dataset_flickr30k.json --split test",),
            ),
        ),
    ),
    Format(
        name="coco",
        title="COCO captions (Chen et al. 2015)",
        fields=("image", "caption"),
        read_json=read_coco,
        tells="'images', and 'annotations' with a 'caption'",
        of_json=is_coco,
        layouts=(
            Layout(
                "COCO captions, 2014",
                "coco",
                COCO_URL,
                (
                    Expected("annotations/captions_train2014.json", "captions for training"),
                    Expected("annotations/captions_val2014.json", "captions for validation"),
                    TRAIN_2014,
                    VAL_2014,
                ),
                ("coco/annotations/captions_val2014.json",),
            ),
        ),
    ),
)
