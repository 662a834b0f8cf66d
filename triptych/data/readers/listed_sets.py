"""Image classification sets whose splits and classes stand in files beside the images.

Food-101, Flowers-102, Oxford-IIIT Pets, Stanford Cars, FGVC-Aircraft, DTD and SUN397, each as it is
published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.matlab import load_mat
from triptych.data.readers.class_sets import (
    Entries,
    Found,
    class_format,
    image_record,
    joined_words,
    list_lines,
    needed,
    read_parts,
)
from triptych.data.readers.set_names import FLOWERS
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.spec import Expected, Format


def _matrix(content: Mapping[str, Any], name: str, path: Path) -> list[int]:
    try:
        return [int(value) for value in content[name].ravel().tolist()]
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: holds no numbers {name!r}; it has {', '.join(content)}"
        ) from error


def read_food101(source: DataSourceConfig) -> Entries:
    """Read `meta/train.txt` and `images/apple_pie/1005649.jpg` (Bossard et al. 2014)."""
    root = Path(source.path)

    def read(part: str) -> Found:
        for _, name in list_lines(needed(root, f"meta/{part}.txt")):
            yield image_record(root / "images", f"{name}.jpg", joined_words(name.split("/")[0]))

    return read_parts(source, ("train", "test"), read)


FLOWER_PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}


def read_flowers102(source: DataSourceConfig) -> Entries:
    """Read `setid.mat`, `imagelabels.mat` and `jpg/image_00001.jpg` (Nilsback, Zisserman 2008)."""
    root = Path(source.path)

    def read(part: str) -> Found:
        sets, marks = needed(root, "setid.mat"), needed(root, "imagelabels.mat")
        labels = _matrix(load_mat(marks), "labels", marks)
        for number in _matrix(load_mat(sets), FLOWER_PARTS[part], sets):
            name = f"image_{number:05d}.jpg"
            label = labels[number - 1] if 1 <= number <= len(labels) else 0
            if 1 <= label <= len(FLOWERS):
                yield image_record(root / "jpg", name, FLOWERS[label - 1])
            else:
                message = f"image {number} has no label from 1 to {len(FLOWERS)}"
                yield Skipped(SkipKind.BAD_LABEL, f"{marks}: {name}", message)

    return read_parts(source, tuple(FLOWER_PARTS), read)


def read_pets(source: DataSourceConfig) -> Entries:
    """Read `annotations/trainval.txt` and `images/Abyssinian_100.jpg` (Parkhi et al. 2012).

    A line is an image, its class (1 to 37), its species and its breed; the class is named in the
    image's name.
    """
    root = Path(source.path)

    def read(part: str) -> Found:
        for where, line in list_lines(needed(root, f"annotations/{part}.txt")):
            if line.startswith("#"):
                continue
            name = line.split()[0]
            if re.fullmatch(r".+_\d+ \d+ \d+ \d+", line) is None:
                message = f"{line[:60]!r} is not like 'Abyssinian_100 1 1 1'"
                yield Skipped(SkipKind.BAD_RECORD, where, message)
                continue
            yield image_record(root / "images", f"{name}.jpg", joined_words(name.rsplit("_", 1)[0]))

    return read_parts(source, ("trainval", "test"), read)


def read_cars(source: DataSourceConfig) -> Entries:
    """Read `devkit/cars_train_annos.mat` and `cars_train/00001.jpg` (Krause et al. 2013).

    Test labels lie in `cars_test_annos_withlabels.mat`, here or in the devkit; without that file
    test records have no label.
    """
    root = Path(source.path)

    def read(part: str) -> Found:
        meta = needed(root, "devkit/cars_meta.mat", "cars_meta.mat")
        names = load_mat(meta).get("class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{meta}: holds no list 'class_names'")
        stems = [f"cars_{part}_annos_withlabels", f"cars_{part}_annos"]
        path = needed(root, *(f"{at}{stem}.mat" for stem in stems for at in ("devkit/", "")))
        entries = load_mat(path).get("annotations")
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            where = f"{path}: annotations[{number}]"
            name, mark = entry.get("fname"), entry.get("class")
            label = None if mark is None else int(mark.item())
            if not isinstance(name, str):
                yield Skipped(SkipKind.MISSING_FIELD, where, "has no 'fname'")
            elif label is not None and not 1 <= label <= len(names):
                message = f"class {label} is not from 1 to {len(names)}"
                yield Skipped(SkipKind.BAD_LABEL, where, message)
            else:
                own = None if label is None else names[label - 1]
                yield image_record(root, f"cars_{part}/{name}", own)

    return read_parts(source, ("train", "test"), read)


AIRCRAFT_PARTS = ("train", "val", "trainval", "test")
AIRCRAFT_LIST = re.compile(r"images_(variant|family|manufacturer)_(train|val|trainval|test)\.txt")


def read_aircraft(source: DataSourceConfig) -> Entries:
    """Read `data/images_variant_train.txt` and `data/images/0034309.jpg` (Maji et al. 2013).

    The classes are variants; name a list such as `data/images_family_test.txt` itself for families
    or manufacturers. Without a split, train, val and test are read (trainval is the first two).
    """
    path = Path(source.path)
    if path.is_file():
        return _aircraft(path)
    root = path / "data" if (path / "data").is_dir() else path
    every = ("train", "val", "test")
    return read_parts(
        source,
        AIRCRAFT_PARTS if source.split else every,
        lambda part: _aircraft(needed(root, f"images_variant_{part}.txt")),
    )


def _is_aircraft(path: Path) -> bool:
    lists = (path / at / "images_variant_train.txt" for at in (".", "data"))
    return AIRCRAFT_LIST.fullmatch(path.name) is not None or any(one.is_file() for one in lists)


def _aircraft(path: Path) -> Found:
    for where, line in list_lines(path):
        number, _, name = line.partition(" ")
        if number.isdecimal() and name.strip():
            yield image_record(path.parent / "images", f"{number}.jpg", name.strip())
        else:
            message = f"{line[:60]!r} is not like '1025794 707-320'"
            yield Skipped(SkipKind.BAD_RECORD, where, message)


DTD_PARTS = tuple(f"{part}{fold}" for fold in range(1, 11) for part in ("train", "val", "test"))


def read_dtd(source: DataSourceConfig) -> Entries:
    """Read `labels/train1.txt` and `images/banded/banded_0002.jpg` (Cimpoi et al. 2014).

    `split` is train, val or test, of the first of ten folds, or a list such as `train7`. Without
    one, the first fold is read.
    """
    root = Path(source.path)
    short = ("train", "val", "test")

    def read(part: str) -> Found:
        name = part if part[-1].isdecimal() else f"{part}1"
        for _, line in list_lines(needed(root, f"labels/{name}.txt")):
            yield image_record(root / "images", line, joined_words(line.split("/")[0]))

    return read_parts(source, (*short, *DTD_PARTS) if source.split else short, read)


SUN_PARTS = tuple(f"{part}_{fold:02d}" for fold in range(1, 11) for part in ("Training", "Testing"))


def read_sun397(source: DataSourceConfig) -> Entries:
    """Read `Training_01.txt` and `a/abbey/sun_aaa.jpg` (Xiao et al. 2010).

    The lists lie beside the folders `a` to `z`, above them, or in `Partitions`. `split` is train or
    test, of the first of ten folds, or a list such as `Testing_07`. `/a/arrival_gate/outdoor` is
    the class "arrival gate outdoor".
    """
    root = Path(source.path)
    images = root / "SUN397" if (root / "SUN397").is_dir() else root
    names = {"train": "Training_01", "test": "Testing_01"}

    def read(part: str) -> Found:
        name = f"{names.get(part, part)}.txt"
        path = needed(root, name, *(f"{at}/{name}" for at in ("Partitions", "SUN397", "..")))
        for where, line in list_lines(path):
            folders = line.strip("/").split("/")
            if len(folders) < 3:
                message = f"{line[:60]!r} is not like '/a/abbey/sun_aaalbzqrimafwbiv.jpg'"
                yield Skipped(SkipKind.BAD_RECORD, where, message)
            else:
                label = joined_words(" ".join(folders[1:-1]))
                yield image_record(images, "/".join(folders), label)

    return read_parts(source, (*names, *SUN_PARTS) if source.split else tuple(names), read)


FORMATS: tuple[Format, ...] = (
    class_format(
        "food101",
        "Food-101",
        read_food101,
        [["meta/train.txt", "images"]],
        tells="Food-101's meta/train.txt",
        parts="train, test",
        layout=(
            "food-101",
            "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
            (
                Expected("meta/train.txt", "names of training images"),
                Expected("meta/test.txt", "names of test images"),
                Expected("images/*/*.jpg", "images", 101_000),
            ),
            ("food-101 --split test",),
        ),
    ),
    class_format(
        "flowers102",
        "Oxford Flowers-102",
        read_flowers102,
        [["setid.mat", "imagelabels.mat"]],
        tells="Flowers-102's setid.mat",
        parts="train, val, test",
        layout=(
            "flowers-102",
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
            (
                Expected("setid.mat", "image numbers of the splits"),
                Expected("imagelabels.mat", "labels"),
                Expected("jpg/image_*.jpg", "images", 8_189),
            ),
            ("flowers-102 --split test",),
        ),
    ),
    class_format(
        "pets",
        "Oxford-IIIT Pets",
        read_pets,
        [["annotations/trainval.txt", "images"], ["annotations/test.txt", "images"]],
        tells="the Pets' annotations/trainval.txt",
        parts="trainval, test",
        layout=(
            "oxford-iiit-pet",
            "https://www.robots.ox.ac.uk/~vgg/data/pets",
            (
                Expected("annotations/trainval.txt", "images and classes"),
                Expected("annotations/test.txt", "images and classes"),
                Expected("images/*.jpg", "images", 7_390),
            ),
            ("oxford-iiit-pet --split test",),
        ),
    ),
    class_format(
        "cars",
        "Stanford Cars",
        read_cars,
        [["devkit/cars_meta.mat"], ["cars_meta.mat"]],
        tells="the Cars' devkit",
        parts="train, test",
        layout=(
            "stanford_cars",
            "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
            (
                Expected("devkit/cars_meta.mat", "class names", other=("cars_meta.mat",)),
                Expected(
                    "devkit/cars_train_annos.mat",
                    "training labels",
                    other=("cars_train_annos.mat",),
                ),
                Expected(
                    "cars_test_annos_withlabels.mat",
                    "test labels",
                    other=("devkit/cars_test_annos_withlabels.mat",),
                ),
                Expected("cars_train/*.jpg", "training images", 8_144),
                Expected("cars_test/*.jpg", "test images", 8_041),
            ),
            ("stanford_cars --split test",),
        ),
    ),
    replace(
        class_format(
            "aircraft",
            "FGVC-Aircraft",
            read_aircraft,
            [["data/images_variant_train.txt"], ["images_variant_train.txt"]],
            tells="FGVC-Aircraft's images_variant_train.txt",
            parts="train, val, trainval, test",
            layout=(
                "fgvc-aircraft-2013b",
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
                (
                    Expected("data/images_variant_*.txt", "variants of the images of a split", 4),
                    Expected("data/images_family_*.txt", "families", 4, optional=True),
                    Expected("data/images_manufacturer_*.txt", "manufacturers", 4, optional=True),
                    Expected("data/images/*.jpg", "images", 10_000),
                ),
                (
                    "fgvc-aircraft-2013b --split test",
                    "fgvc-aircraft-2013b/data/images_family_test.txt",
                ),
            ),
        ),
        of_path=lambda path: _is_aircraft(Path(path)),
    ),
    class_format(
        "dtd",
        "Describable Textures (DTD)",
        read_dtd,
        [["labels/train1.txt"], ["labels/test1.txt"]],
        tells="DTD's labels/train1.txt",
        parts="train, val, test of the first of ten folds; train7 and so on",
        layout=(
            "dtd",
            "https://www.robots.ox.ac.uk/~vgg/data/dtd",
            (
                Expected("labels/*.txt", "images of each split of ten folds"),
                Expected("images/*/*.jpg", "images", 5_640),
            ),
            ("dtd --split test",),
        ),
    ),
    class_format(
        "sun397",
        "SUN397",
        read_sun397,
        [
            ["Training_01.txt"],
            ["Partitions/Training_01.txt"],
            ["SUN397/Training_01.txt"],
            ["Testing_01.txt"],
        ],
        tells="SUN397's Training_01.txt",
        parts="train, test of the first of ten folds; Testing_07 and so on",
        layout=(
            "SUN397",
            "https://vision.princeton.edu/projects/2010/SUN",
            (
                Expected(
                    "Training_01.txt", "training images", other=("Partitions/Training_01.txt",)
                ),
                Expected("Testing_01.txt", "test images", other=("Partitions/Testing_01.txt",)),
                Expected("[a-z]/*", "folders of images by the class's first letter"),
            ),
            ("SUN397 --split test",),
        ),
    ),
)
