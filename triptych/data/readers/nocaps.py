"""NoCaps (Agrawal et al. 2019): captions of images of Open Images, by domain, and test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_caption
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout

DOMAINS = ("in-domain", "near-domain", "out-domain")


def is_nocaps(data: Any) -> bool:
    """Return whether JSON content lists images of Open Images, as NoCaps does."""
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return False
    return "open_images_id" in images[0]


def read_nocaps(data: Any, source: DataSourceConfig) -> RecordList:
    """Read one record for each caption, with its image's domain; of the test set, for each image.

    Images are `file_name` in `image_root`, or in a folder `validation`, `val`, `test` or `images`
    of it.

    Args:
        data: The file's content.
        source: Where the images are.

    Raises:
        DataError: No image where it was looked for, or another format.
    """
    if not is_nocaps(data):
        raise DataError(
            f"{source.path}: not a file of NoCaps: needs 'images' with an 'open_images_id'"
        )
    check_split(source.split, (), source.path)
    found = RecordList()
    images: dict[int | str, Mapping[str, Any]] = {}
    for index, image in enumerate(data["images"]):
        try:
            images[_image_id(image)] = image
        except EntryError as error:
            where = f"{source.path}: images[{index}]"
            found.skipped.append(Skipped(error.kind, where, str(error)))
    names = [image["file_name"] for image in images.values()]
    layout = choose_layout(source.root, LAYOUTS, names, "images")
    without_caption = {
        image_id: Record(
            record_id=str(image_id),
            image=ImageSource(str(source.root / layout(image["file_name"]))),
            image_id=str(image_id),
            domain=image.get("domain"),
        )
        for image_id, image in images.items()
    }
    annotations = data.get("annotations")
    if not annotations:
        found.records += without_caption.values()
        return found
    if not isinstance(annotations, list):
        raise DataError(f"{source.path}: 'annotations' is no list of captions")
    for index, annotation in enumerate(annotations):
        try:
            found.records.append(_caption_record(annotation, index, without_caption))
        except EntryError as error:
            where = f"{source.path}: annotations[{index}]"
            found.skipped.append(Skipped(error.kind, where, str(error)))
    return found


def _image_id(image: Any) -> int | str:
    """Return the id of an entry of `images` that is usable."""
    if not isinstance(image, dict):
        raise EntryError(SkipKind.BAD_RECORD, "is not an object")
    if not isinstance(image.get("id"), (int, str)) or not _is_name(image.get("file_name")):
        raise EntryError(SkipKind.MISSING_FIELD, "needs 'id' and 'file_name'")
    domain = image.get("domain")
    if domain is not None and domain not in DOMAINS:
        message = f"domain {domain!r} is none of {', '.join(DOMAINS)}"
        raise EntryError(SkipKind.BAD_RECORD, message)
    return image["id"]  # type: ignore[no-any-return]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _caption_record(annotation: Any, index: int, images: Mapping[Any, Record]) -> Record:
    if not isinstance(annotation, dict):
        raise EntryError(SkipKind.BAD_RECORD, "is not an object")
    image_id = annotation.get("image_id")
    if not isinstance(image_id, (int, str)) or image_id not in images:
        raise EntryError(SkipKind.BAD_RECORD, f"image_id {image_id!r} is not among 'images'")
    caption = parse_caption(annotation.get("caption"))
    own_id = str(annotation.get("id", index))
    return replace(images[image_id], record_id=own_id, caption=caption)


LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    *(
        lambda name, folder=folder: f"{folder}/{name}"
        for folder in ("validation", "val", "test", "images")
    ),
)

FORMAT = Format(
    name="nocaps",
    title="NoCaps (Agrawal et al. 2019): captions of unseen things, by domain",
    fields=("image", "caption", "domain"),
    read_json=read_nocaps,
    tells="'images' with an 'open_images_id'",
    of_json=is_nocaps,
    layouts=(
        Layout(
            "NoCaps",
            "nocaps",
            "https://nocaps.org/download",
            (
                Expected("nocaps_val_4500_captions.json", "ten captions of 4,500 images"),
                Expected(
                    "nocaps_test_image_info.json", "10,600 images without captions", optional=True
                ),
                Expected(
                    "validation/*.jpg", "images", 4500, other=("val/*.jpg", "images/*.jpg", "*.jpg")
                ),
                Expected("test/*.jpg", "images", 10_600, optional=True),
            ),
            ("nocaps/nocaps_val_4500_captions.json",),
        ),
    ),
)
