"""Image classification sets whose splits and classes stand in files beside the images.

Food-101, Flowers-102, Oxford-IIIT Pets, Stanford Cars, FGVC-Aircraft, DTD, SUN397, GTSRB, KITTI,
CLEVR and UCF101, each as it is published; and folders of classes whose names are codes or joined
words: EuroSAT, Caltech-101 and Country211.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.lines import load_json, read_lines
from triptych.data.matlab import load_mat
from triptych.data.readers.pixel_sets import Entries, needed, read_parts
from triptych.data.readers.plain import read_image_folder
from triptych.data.readers.set_names import COUNTRIES, DISTANCES, FLOWERS, LAND, SIGNS
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig

Found = Iterator[Record | Skipped]


def _record(root: Path, name: str, label: str | None) -> Record:
    return Record(record_id=name, image=ImageSource(str(root / name)), image_id=name, label=label)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line of a file stands, and its text.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8: a list is whole or it is none.
    """
    for number, line in read_lines(path):
        if isinstance(line, Skipped):
            raise DataError(f"{line.where}: {line.message}")
        yield f"{path}:{number}", line.strip()


def _words(name: str) -> str:
    """Return a joined class name as words: `apple_pie` and `ApplyEyeMakeup` alike."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).strip()


def _matrix(content: Mapping[str, Any], name: str, path: Path) -> list[int]:
    try:
        return [int(value) for value in content[name].ravel().tolist()]
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: holds no numbers {name!r}; it has {', '.join(content)}") from error


def read_food101(source: DataSourceConfig) -> Entries:
    """Read `meta/train.txt` and `images/apple_pie/1005649.jpg` (Bossard et al. 2014)."""
    root = Path(source.path)

    def read(part: str) -> Found:
        for _, name in _lines(needed(root, f"meta/{part}.txt")):
            yield _record(root / "images", f"{name}.jpg", _words(name.split("/")[0]))

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
                yield _record(root / "jpg", name, FLOWERS[label - 1])
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
        for where, line in _lines(needed(root, f"annotations/{part}.txt")):
            if line.startswith("#"):
                continue
            name = line.split()[0]
            if re.fullmatch(r".+_\d+ \d+ \d+ \d+", line) is None:
                message = f"{line[:60]!r} is not like 'Abyssinian_100 1 1 1'"
                yield Skipped(SkipKind.BAD_RECORD, where, message)
                continue
            yield _record(root / "images", f"{name}.jpg", _words(name.rsplit("_", 1)[0]))

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
                yield _record(root, f"cars_{part}/{name}", own)

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


def _aircraft(path: Path) -> Found:
    for where, line in _lines(path):
        number, _, name = line.partition(" ")
        if number.isdecimal() and name.strip():
            yield _record(path.parent / "images", f"{number}.jpg", name.strip())
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
        for _, line in _lines(needed(root, f"labels/{name}.txt")):
            yield _record(root / "images", line, _words(line.split("/")[0]))

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
        for where, line in _lines(path):
            folders = line.strip("/").split("/")
            if len(folders) < 3:
                message = f"{line[:60]!r} is not like '/a/abbey/sun_aaalbzqrimafwbiv.jpg'"
                yield Skipped(SkipKind.BAD_RECORD, where, message)
            else:
                label = _words(" ".join(folders[1:-1]))
                yield _record(images, "/".join(folders), label)

    return read_parts(source, (*names, *SUN_PARTS) if source.split else tuple(names), read)


def read_gtsrb(source: DataSourceConfig) -> Entries:
    """Read the German traffic signs of the final round (Stallkamp et al. 2012).

    `Final_Training/Images/00000/GT-00000.csv` lists the images beside it; those of the test lie
    in `Final_Test/Images`, listed by `GT-final_test.csv` there or above.
    """
    root = Path(source.path)
    root = root / "GTSRB" if (root / "GTSRB").is_dir() else root

    def read(part: str) -> Found:
        if part == "test":
            images = needed(root, "Final_Test/Images")
            name = "GT-final_test.csv"
            yield from _signs(needed(images, name, f"../{name}", f"../../{name}", f"../../../{name}"),
                              images, root)  # fmt: skip
            return
        for folder in sorted(needed(root, "Final_Training/Images").iterdir()):
            if folder.is_dir():
                yield from _signs(needed(folder, f"GT-{folder.name}.csv"), folder, root)

    return read_parts(source, ("train", "test"), read)


def _signs(path: Path, images: Path, root: Path) -> Found:
    """Yield the signs of a table `Filename;Width;Height;Roi...;ClassId`."""
    columns: list[str] = []
    for where, line in _lines(path):
        cells = line.split(";")
        if not columns:
            columns = cells
            if not {"Filename", "ClassId"} <= set(columns):
                raise DataError(f"{where}: expected the columns Filename;...;ClassId, found {line!r}")
            continue
        row = dict(zip(columns, cells, strict=False))
        label = row.get("ClassId", "")
        if not label.isdecimal() or int(label) >= len(SIGNS) or not row.get("Filename"):
            message = f"ClassId {label!r} is not from 0 to {len(SIGNS) - 1}"
            yield Skipped(SkipKind.BAD_LABEL, where, message)
        else:
            name = (images / row["Filename"]).relative_to(root).as_posix()
            yield _record(root, name, SIGNS[int(label)])


VEHICLES = ("Car", "Van", "Truck")
BOUNDS_M = (8.0, 20.0, 999.0)


def read_kitti(source: DataSourceConfig) -> Entries:
    """Read KITTI's 2D detection set as distances to the nearest vehicle (Geiger et al. 2012).

    `training/image_2/000000.png` and `training/label_2/000000.txt`, whose column 14 is the depth
    of an object in metres. The class is that of the nearest car, van or truck: up to 8 m, up to
    20 m, further, or none (Zhai et al. 2019, as CLIP and FLAVA take it). The published part is
    `training`; others are lists of numbers in `ImageSets/train.txt` and so on, where they are.
    """
    root = Path(source.path)
    listed = {path.stem: path for path in sorted(root.glob("ImageSets/*.txt"))}
    parts = ("training", *listed) if source.split else ("training",)

    def read(part: str) -> Found:
        folder = needed(root, "training/label_2")
        if part == "training":
            numbers = sorted(path.stem for path in folder.glob("*.txt"))
        else:
            numbers = [line for _, line in _lines(listed[part])]
        for number in numbers:
            try:
                label = DISTANCES[_nearest(needed(folder, f"{number}.txt"))]
            except ValueError as error:
                yield Skipped(SkipKind.BAD_LABEL, f"{folder / number}.txt", str(error))
                continue
            yield _record(root, f"training/image_2/{number}.png", label)

    return read_parts(source, parts, read)


def _nearest(path: Path) -> int:
    """Return the number of the class in `DISTANCES` of a file of objects.

    Raises:
        ValueError: A line is not 15 columns with a depth.
    """
    depths = []
    for _, line in _lines(path):
        cells = line.split()
        if len(cells) < 15:
            raise ValueError(f"{line[:60]!r} has {len(cells)} columns, an object has 15")
        if cells[0] in VEHICLES:
            depths.append(float(cells[13]))
    nearest = min(depths, default=1000.0)
    return sum(nearest > bound for bound in BOUNDS_M)


CLEVR_PARTS = ("train", "val")


def read_clevr_counts(source: DataSourceConfig) -> Entries:
    """Read CLEVR's scenes as numbers of objects (Johnson et al. 2017): "3" to "10".

    `scenes/CLEVR_train_scenes.json` and `images/train/CLEVR_train_000000.png`.
    """
    root = Path(source.path)

    def read(part: str) -> Found:
        path = needed(root, f"scenes/CLEVR_{part}_scenes.json")
        content = load_json(path)
        scenes = content.get("scenes") if isinstance(content, dict) else None
        if not isinstance(scenes, list):
            raise DataError(f"{path}: holds no list 'scenes'")
        for number, scene in enumerate(scenes):
            fields = scene if isinstance(scene, dict) else {}
            name, objects = fields.get("image_filename"), fields.get("objects")
            if isinstance(name, str) and isinstance(objects, list):
                yield _record(root, f"images/{part}/{name}", str(len(objects)))
            else:
                where = f"{path}: scenes[{number}]"
                message = "has no 'image_filename' or no list 'objects'"
                yield Skipped(SkipKind.MISSING_FIELD, where, message)

    return read_parts(source, CLEVR_PARTS, read)


UCF_PARTS = {f"{part}{fold:02d}": f"{part}list{fold:02d}.txt" for fold in (1, 2, 3)
             for part in ("train", "test")}  # fmt: skip
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_ucf101(source: DataSourceConfig) -> Entries:
    """Read a frame of each clip of UCF101 (Soomro et al. 2012), as CLIP and FLAVA classify it.

    `ucfTrainTestlist/trainlist01.txt` lists `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi`; its
    frame is `v_ApplyEyeMakeup_g08_c01.jpg` in a class folder below `UCF-101-midframes`, `UCF-101`
    or the root, where `Apply_Eye_Makeup` is the same folder. `split` is train or test, of the
    first of three folds, or such as `test02`.

    Raises:
        DataError: A list is missing, or the first clip has no frame; the message says how to
            make them.
    """
    root = Path(source.path)

    def read(part: str) -> Found:
        name = UCF_PARTS[part if part in UCF_PARTS else f"{part}01"]
        entries = [line.split()[0] for _, line in _lines(needed(root, f"ucfTrainTestlist/{name}"))]
        folders = _frame_folders(root)
        for number, entry in enumerate(entries):
            action, _, clip = entry.partition("/")
            stem = Path(clip).stem
            folder = folders.get(action)
            frame = None if folder is None else _frame(folder, stem)
            if frame is None and number == 0:
                raise DataError(
                    f"{root}: {entry} has no frame {stem}.jpg in a folder {action}. Images are "
                    "classified, not clips: write the middle frame of each clip beside it, such "
                    f"as {root}/UCF-101/{action}/{stem}.jpg"
                )
            if frame is None:
                message = "its frame is missing"
                yield Skipped(SkipKind.MISSING_FILE, entry, message)
            else:
                yield _record(root, frame.relative_to(root).as_posix(), _words(action))

    parts = ("train", "test")
    return read_parts(source, (*parts, *UCF_PARTS) if source.split else parts, read)


def _frame_folders(root: Path) -> dict[str, Path]:
    """Return the class folders by their names without underscores."""
    found: dict[str, Path] = {}
    for place in (root / "UCF-101-midframes", root / "UCF-101", root):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.is_dir():
                found.setdefault(folder.name.replace("_", ""), folder)
    return found


def _frame(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}{suffix}" for suffix in FRAME_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


FOLDER_PARTS = ("train", "valid", "val", "test")
FOLDER_NAMES: Mapping[str, Mapping[str, str]] = {
    "eurosat": LAND,
    "country211": COUNTRIES,
    "caltech101": {"BACKGROUND_Google": "background", "Faces_easy": "face up close"},
}


def read_named_folders(name: str) -> Callable[[DataSourceConfig], Entries]:
    """Return the reader of class folders whose names become words: EuroSAT, Country211 ...

    Its reader gives `[part/]class/image`, as `read_image_folder` does.
    """
    names = FOLDER_NAMES[name]

    def read(source: DataSourceConfig) -> Entries:
        found = [part for part in FOLDER_PARTS if (Path(source.path) / part).is_dir()]
        if source.split is not None or not found:
            yield from _named(source, "", names)
            return
        yield from read_parts(
            source, found, lambda part: _named(replace(source, split=part), f"{part}/", names)
        )

    return read


def _named(source: DataSourceConfig, prefix: str, names: Mapping[str, str]) -> Found:
    for record in read_image_folder(source):
        label = str(record.label)
        own_id = prefix + record.record_id
        yield replace(
            record, record_id=own_id, image_id=own_id, label=names.get(label) or _words(label)
        )


def has_folders(path: str, names: Sequence[str], places: Sequence[str] = (".",)) -> bool:
    """Return whether a folder, or one of some in it, holds folders or files of these names."""
    return any(all((Path(path) / at / name).exists() for name in names) for at in places)
