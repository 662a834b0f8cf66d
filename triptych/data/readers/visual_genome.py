"""Visual Genome (Krishna et al. 2017): regions as captions or as phrases with boxes, and questions.

The files hold one entry for each of 108,077 images and are read image by image: all regions are a
gigabyte of JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_answers, parse_box, parse_caption, parse_text
from triptych.data.lines import iterate_json
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split, choose_layout, has_file, peek
from triptych.data.spec import Expected, Format, Layout

IMAGES_FILE = "image_data.json"
FOLDERS = ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2", "images", "")
ANSWER_WEIGHT = 0.5  # of a single answer (mPLUG's released code)

Make = Callable[[Mapping[str, Any], ImageSource, str], Record]


def is_regions(key: str | int, value: Any) -> bool:
    """Return whether the first member of a file is an image with its regions."""
    return key == 0 and isinstance(value, dict) and isinstance(value.get("regions"), list)


def is_questions(key: str | int, value: Any) -> bool:
    """Return whether the first member of a file is an image with its questions."""
    return key == 0 and isinstance(value, dict) and isinstance(value.get("qas"), list)


def read_regions(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read each region of `region_descriptions.json` as a caption of its image.

    Images lie where the address in `image_data.json` beside the file says (`VG_100K`,
    `VG_100K_2`), or, without that file, in whichever of the two folders holds them.

    Raises:
        DataError: The file is damaged or of another kind, or no image is where it was looked for.
    """
    return _read(source, "regions", _caption)


def read_phrases(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read each region of `region_descriptions.json` as a phrase with its box; see `read_regions`.

    Raises:
        DataError: See `read_regions`.
    """
    return _read(source, "regions", _phrase)


def read_questions(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read `question_answers.json`, as more data for VQAv2: one answer each, of weight 0.5.

    The full stop at the end of an answer is removed: answers of VQAv2 have none.

    Raises:
        DataError: See `read_regions`.
    """
    return _read(source, "qas", _question)


def _caption(entry: Mapping[str, Any], image: ImageSource, image_id: str) -> Record:
    return Record(
        record_id=_id(entry, "region_id"),
        image=image,
        image_id=image_id,
        caption=parse_caption(entry.get("phrase")),
    )


def _phrase(entry: Mapping[str, Any], image: ImageSource, image_id: str) -> Record:
    return Record(
        record_id=_id(entry, "region_id"),
        image=image,
        image_id=image_id,
        phrase=parse_text("phrase", entry.get("phrase")),
        box=parse_box([entry.get(name) for name in ("x", "y", "width", "height")]),
    )


def _question(entry: Mapping[str, Any], image: ImageSource, image_id: str) -> Record:
    answer = entry.get("answer")
    if isinstance(answer, str):
        answer = answer.strip().removesuffix(".")
    return Record(
        record_id=_id(entry, "qa_id"),
        image=image,
        image_id=image_id,
        question=parse_text("question", entry.get("question")),
        answers=parse_answers([answer]),
        answers_weight=ANSWER_WEIGHT,
    )


def _read(source: DataSourceConfig, name: str, make: Make) -> Iterator[Record | Skipped]:
    check_split(source.split, (), source.path)
    first, images = peek(iterate_json(Path(source.path)))
    if not any(isinstance(value, dict) and name in value for _, value in first):
        raise DataError(
            f"{source.path}: none of its first {len(first)} entries has {name!r}: not a file of "
            "Visual Genome's (region_descriptions.json, question_answers.json)"
        )
    locate = _locator(source, [value for _, value in first])
    for index, value in images:
        where = f"{source.path}: [{index}]"
        entries = value.get(name) if isinstance(value, dict) else None
        image_id = _image_id(value)
        if not isinstance(entries, list) or image_id is None:
            message = f"needs a whole number as 'id', and a list as {name!r}"
            yield Skipped(SkipKind.MISSING_FIELD, where, message)
            continue
        path = locate(image_id)
        if path is None:
            message = f"image {image_id} is not in {IMAGES_FILE}"
            yield Skipped(SkipKind.MISSING_FILE, where, message)
            continue
        image = ImageSource(str(source.root / path))
        yield from _entries(entries, f"{where}.{name}", image, str(image_id), make)


def _entries(
    entries: Iterable[Any], where: str, image: ImageSource, image_id: str, make: Make
) -> Iterator[Record | Skipped]:
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise EntryError(SkipKind.BAD_RECORD, "is not an object")
            yield make(entry, image, image_id)
        except EntryError as error:
            yield Skipped(error.kind, f"{where}[{index}]", str(error))


def _id(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name, entry.get("id"))  # version 1.0 says "id"
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise EntryError(SkipKind.MISSING_FIELD, f"has no {name!r}")
    return str(value)


def _image_id(value: Any) -> int | None:
    for name in ("id", "image_id"):
        found = value.get(name) if isinstance(value, dict) else None
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
    return None


def _locator(source: DataSourceConfig, first: list[Any]) -> Callable[[int], str | None]:
    """Return what gives the path of an image below `image_root`; None of one that is not known."""
    ids = [image_id for value in first if (image_id := _image_id(value)) is not None]
    listed = _images(source)
    if listed is None:
        choose_layout(source.root, [_in(folder) for folder in FOLDERS], ids, "images")
        return _Finder(source.root).find
    layouts = [
        lambda image_id: _below(listed.get(image_id), ""),
        lambda image_id: _below(listed.get(image_id), "images/"),
        *(_in(folder) for folder in FOLDERS),
    ]
    layout = choose_layout(source.root, layouts, [i for i in ids if i in listed] or ids, "images")
    return lambda image_id: layout(image_id) if image_id in listed else None


def _in(folder: str) -> Callable[[int], str]:
    return lambda image_id: f"{folder}/{image_id}.jpg" if folder else f"{image_id}.jpg"


def _below(path: str | None, folder: str) -> str:
    return f"{folder}{path}" if path else ""


class _Finder:
    """Looks for each image in the folders, first in that of the last one."""

    def __init__(self, root: Path) -> None:
        self._root, self._folders = root, list(FOLDERS)

    def find(self, image_id: int) -> str:
        for folder in self._folders:
            path = _in(folder)(image_id)
            if has_file(self._root / path):
                self._folders.remove(folder)
                self._folders.insert(0, folder)
                return path
        return _in(self._folders[0])(image_id)  # is reported as missing where it is opened


def _images(source: DataSourceConfig) -> dict[int, str] | None:
    """Return image ids to `VG_100K/1.jpg`, from the file of all images; None without it."""
    beside = Path(source.path).with_name(IMAGES_FILE)
    path = beside if source.annotations is None else Path(source.annotations)
    if source.annotations is None and not path.is_file():
        return None
    found = {}
    for _, image in iterate_json(path):
        image_id = _image_id(image)
        url = image.get("url") if isinstance(image, dict) else None
        if image_id is not None and isinstance(url, str):
            found[image_id] = "/".join(url.split("/")[-2:])
    if not found:
        raise DataError(f"{path}: no entry has 'image_id' and 'url', as {IMAGES_FILE} has")
    return found


SOURCE = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
IMAGES = (
    Expected("VG_100K/*.jpg", "images, first part", 64_346, other=("images/VG_100K/*.jpg",)),
    Expected("VG_100K_2/*.jpg", "images, second part", 43_903, other=("images/VG_100K_2/*.jpg",)),
    Expected(IMAGES_FILE, "addresses and sizes of the images", optional=True),
)


def _beside(path: Path) -> list[Path]:
    return [path.with_name(IMAGES_FILE)] if path.suffix.lower() == ".json" else []


def _regions_layout(reader: str) -> Layout:
    return Layout(
        "Visual Genome, regions",
        "visual_genome",
        SOURCE,
        (Expected("region_descriptions.json", "5.4 million regions"), *IMAGES),
        (f"visual_genome/region_descriptions.json{reader}",),
    )


FORMATS = (
    Format(
        name="visual_genome",
        title="Visual Genome (Krishna et al. 2017): regions as captions",
        fields=("image", "caption"),
        read=read_regions,
        tells="a list of images with 'regions'",
        of_member=is_regions,
        beside=_beside,
        layouts=(_regions_layout(""),),
    ),
    Format(
        name="visual_genome_phrases",
        title="Visual Genome: regions as phrases with boxes, for grounding",
        fields=("image", "phrase", "box"),
        read=read_phrases,
        tells="the same, where this reader is named",
        of_member=lambda *_: False,
        beside=_beside,
        layouts=(_regions_layout(" --reader visual_genome_phrases"),),
    ),
    Format(
        name="visual_genome_qa",
        title="Visual Genome: questions with one answer of weight 0.5, as more data for VQAv2",
        fields=("image", "question", "answers", "answers_weight"),
        read=read_questions,
        tells="a list of images with 'qas'",
        of_member=is_questions,
        beside=_beside,
        layouts=(
            Layout(
                "Visual Genome, questions",
                "visual_genome",
                SOURCE,
                (Expected("question_answers.json", "1.4 million questions"), *IMAGES),
                ("visual_genome/question_answers.json",),
            ),
        ),
    ),
)
