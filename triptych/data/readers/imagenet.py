"""ImageNet (Russakovsky et al. 2015): class folders named by WordNet ids, and validation images.

The official validation images lie flat in one folder; a file beside them, in the development kit
or in Kaggle's copy, holds the class of each. Class names come from a file too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.class_names import (
    NAMES_FILES,
    find_class_names,
    is_wordnet_id,
    load_class_names,
    name_of,
    unique_names,
)
from triptych.data.images import image_suffixes
from triptych.data.lines import read_lines
from triptych.data.matlab import load_mat
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout

PARTS = ("train", "val", "test")
FLAT_PREFIXES = ("ILSVRC2012_val_", "ILSVRC2012_test_")
TRUTH_FILE, KAGGLE_FILE = "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
META_FILE, KIT = "meta.mat", "ILSVRC2012_devkit_t12/data"
TRUTH_FILES = (KAGGLE_FILE, TRUTH_FILE, META_FILE)
NUM_CLASSES = 1000  # the kit's further numbers are of what lies above the classes in WordNet
NUM_LOOKED_AT = 256  # entries of a folder, which may hold a million images
NUM_PARENTS = 4  # Kaggle's class names lie so far above ILSVRC/Data/CLS-LOC/val


def is_imagenet(folder: Path) -> bool:
    """Return whether a folder, or a part in it, holds folders named by WordNet ids, or flat images.

    Only names are looked at.
    """
    return any(_is_part(part) for part in (folder, *(folder / name for name in PARTS)))


def read_imagenet(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read `[part/]n01440764/**/*.JPEG`, or the flat `[val/]ILSVRC2012_val_00000001.JPEG`.

    Labels are class names where a file has them: `class_names`, or one of
    `class_names.NAMES_FILES` in the folder or above it, or the development kit; else WordNet ids.
    Classes of flat images come from `annotations`, or from Kaggle's or the kit's file beside or
    above them; without one they have no label.

    Raises:
        DataError: The part does not exist or holds no image, or the files of classes and names
            are broken or do not fit the images.
    """
    root = Path(source.path)
    found = [name for name in PARTS if _is_part(root / name)]
    if source.split is not None or (found and not _is_part(root)):
        parts = check_split(source.split, found, source.path)
        folders = [root / name for name in ([source.split] if source.split else found)]
    else:
        parts, folders = (), [root]
    names_file, names = _class_names(source, folders[0])
    is_empty = True
    for folder in folders:
        prefix = f"{folder.name}/" if len(folders) > 1 else ""
        for record in _labelled(folder, prefix, source):
            is_empty = False
            if isinstance(record, Record) and is_wordnet_id(record.label) and names:
                label = name_of(str(record.label), names, names_file)
                record = Record(record_id=record.record_id, image=record.image,
                                image_id=record.image_id, label=label)  # fmt: skip
            yield record
    if is_empty:
        raise DataError(
            f"{folders[0]}: holds no image; expected {folders[0]}/n01440764/*.JPEG or "
            f"{folders[0]}/ILSVRC2012_val_00000001.JPEG"
        )
    yield Parts(parts)


def _is_part(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    first = (path.name for path in islice(folder.iterdir(), NUM_LOOKED_AT))
    return any(is_wordnet_id(name) or name.startswith(FLAT_PREFIXES) for name in first)


def _places(folder: Path) -> list[Path]:
    """Return where files about a folder of images may lie, the nearest first."""
    near = [folder, *folder.resolve().parents][: NUM_PARENTS + 1]
    return [place for one in near for place in (one, one / "data", one / KIT)]


def _beside(folder: Path) -> list[Path]:
    """Return the files that an index of a folder of ImageNet depends on, there or not."""
    if not (folder.is_dir() and is_imagenet(folder)):
        return []
    names = (*NAMES_FILES, *TRUTH_FILES)
    return [place / name for place in _places(folder) for name in names]


def _class_names(source: DataSourceConfig, folder: Path) -> tuple[Path, dict[str, str]]:
    if source.class_names is not None:  # every reader's labels are replaced by its names
        return Path(source.class_names), {}
    found = find_class_names(_places(folder))
    if found is not None:
        return found, load_class_names(found)
    meta = next((p / META_FILE for p in _places(folder) if (p / META_FILE).is_file()), None)
    if meta is None:
        return folder, {}
    leaves = {own_id: words for number, own_id, words in _synsets(meta) if number <= NUM_CLASSES}
    return meta, unique_names(leaves, meta)


def _labelled(folder: Path, prefix: str, source: DataSourceConfig) -> Iterator[Record | Skipped]:
    suffixes = image_suffixes()
    classes = sorted(path for path in folder.iterdir() if is_wordnet_id(path.name))
    for one in classes:
        for path in sorted(one.rglob("*")):
            if path.suffix.lower() in suffixes:
                name = prefix + path.relative_to(folder).as_posix()
                yield _record(name, path, one.name)
    flat = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    if not flat:
        return
    truth = _truth(source, folder, [path.stem for path in flat])
    for path in flat:
        if truth is None:
            yield _record(prefix + path.name, path, None)
        elif path.stem in truth:
            yield _record(prefix + path.name, path, truth[path.stem])
        else:
            yield Skipped(SkipKind.BAD_LABEL, str(path), "the file of classes does not have it")


def _record(name: str, path: Path, label: str | None) -> Record:
    return Record(record_id=name, image=ImageSource(str(path)), image_id=name, label=label)


def _truth(source: DataSourceConfig, folder: Path, stems: Sequence[str]) -> dict[str, str] | None:
    """Return the WordNet id of each flat image by its name without suffix; None where unknown."""
    if not any(stem.startswith("ILSVRC2012_val_") for stem in stems):
        return None
    if source.annotations is not None:
        path: Path | None = Path(source.annotations)
    else:
        places = [place / name for place in _places(folder) for name in (KAGGLE_FILE, TRUTH_FILE)]
        path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    return _kaggle_truth(path) if path.suffix.lower() == ".csv" else _kit_truth(path)


def _kaggle_truth(path: Path) -> dict[str, str]:
    """Read `ImageId,PredictionString`: an image, and `n03995372 85 1 499 272 ...`."""
    truth = {}
    for number, line in read_lines(path):
        text = line if isinstance(line, str) else line.message
        name, _, boxes = text.partition(",")
        label = boxes.split(" ")[0]
        if name == "ImageId":
            continue
        if not is_wordnet_id(label):
            raise DataError(
                f"{path}:{number}: {text[:60]!r} is not an image and a WordNet id, as in "
                "'ILSVRC2012_val_00048981,n03995372 85 1 499 272'"
            )
        truth[name] = label
    return truth


def _kit_truth(path: Path) -> dict[str, str]:
    """Read the kit's numbers, one a line for 50,000 images, which `meta.mat` beside it explains."""
    meta = path.with_name(META_FILE)
    if not meta.is_file():
        raise DataError(
            f"{path}: holds the kit's own numbers, and {META_FILE} says what they mean: put it "
            f"beside the file (both lie in {KIT}), or use Kaggle's {KAGGLE_FILE}"
        )
    ids = {number: own_id for number, own_id, _ in _synsets(meta)}
    truth = {}
    for number, text in read_lines(path):
        value = text.strip() if isinstance(text, str) else ""
        if not value.isdecimal() or int(value) not in ids:
            raise DataError(f"{path}:{number}: {value!r} is no class of {meta}")
        truth[f"ILSVRC2012_val_{number:08d}"] = ids[int(value)]
    return truth


def _synsets(path: Path) -> list[tuple[int, str, str]]:
    """Return number, WordNet id and words of each class of the kit's `meta.mat`."""
    entries: Any = load_mat(path).get("synsets")
    try:
        return [
            (int(entry["ILSVRC2012_ID"].item()), entry["WNID"], entry["words"]) for entry in entries
        ]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: holds no 'synsets' with ILSVRC2012_ID, WNID and words") from error


FORMAT = Format(
    name="imagenet",
    title="ImageNet-1k, and other folders named by WordNet ids",
    fields=("image", "label"),
    read=read_imagenet,
    tells="folders named by WordNet ids",
    of_path=lambda path: Path(path).is_dir() and is_imagenet(Path(path)),
    beside=_beside,
    parts=", ".join(PARTS),
    layouts=(
        Layout(
            "ImageNet-1k (ILSVRC2012)",
            "imagenet",
            "https://www.image-net.org",
            (
                Expected(
                    "train/n*/*.JPEG",
                    "training images",
                    1_281_167,
                    other=("ILSVRC/Data/CLS-LOC/train/n*/*.JPEG",),
                ),
                Expected(
                    "val/n*/*.JPEG",
                    "validation images, by class or flat",
                    50_000,
                    other=("val/*.JPEG", "ILSVRC/Data/CLS-LOC/val/*.JPEG"),
                ),
                Expected(
                    "LOC_val_solution.csv",
                    "classes of validation images that lie flat",
                    optional=True,
                    other=(f"{KIT}/{TRUTH_FILE}", f"val/{TRUTH_FILE}"),
                ),
                Expected(
                    "classnames.txt",
                    "class names, a line '<id> <name>' each",
                    other=(
                        "LOC_synset_mapping.txt",
                        "imagenet_class_index.json",
                        f"{KIT}/{META_FILE}",
                    ),
                ),
            ),
            ("imagenet --split val",),
        ),
    ),
)
