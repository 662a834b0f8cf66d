"""Image classification sets of traffic, counting, actions and land, and folders of coded names.

GTSRB, KITTI as distances, CLEVR as counts and UCF101 as frames, each as it is published; Rendered
SST2; and folders of classes whose names are codes or joined words: EuroSAT, Caltech-101 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from triptych.core.errors import DataError
from triptych.core.reading import read_json
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
from triptych.data.readers.plain import read_image_folder
from triptych.data.readers.set_names import COUNTRIES, DISTANCES, LAND, SIGNS
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.spec import Expected, Format


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
            above = (f"{'../' * steps}{name}" for steps in range(4))
            yield from _signs(needed(images, *above), images, root)
            return
        for folder in sorted(needed(root, "Final_Training/Images").iterdir()):
            if folder.is_dir():
                yield from _signs(needed(folder, f"GT-{folder.name}.csv"), folder, root)

    return read_parts(source, ("train", "test"), read)


def _signs(path: Path, images: Path, root: Path) -> Found:
    """Yield the signs of a table `Filename;Width;Height;Roi...;ClassId`."""
    columns: list[str] = []
    for where, line in list_lines(path):
        cells = line.split(";")
        if not columns:
            columns = cells
            if not {"Filename", "ClassId"} <= set(columns):
                raise DataError(
                    f"{where}: expected the columns Filename;...;ClassId, found {line!r}"
                )
            continue
        row = dict(zip(columns, cells, strict=False))
        label = row.get("ClassId", "")
        if not label.isdecimal() or int(label) >= len(SIGNS) or not row.get("Filename"):
            message = f"ClassId {label!r} is not from 0 to {len(SIGNS) - 1}"
            yield Skipped(SkipKind.BAD_LABEL, where, message)
        else:
            name = (images / row["Filename"]).relative_to(root).as_posix()
            yield image_record(root, name, SIGNS[int(label)])


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
            numbers = [line for _, line in list_lines(listed[part])]
        for number in numbers:
            try:
                label = DISTANCES[_nearest(needed(folder, f"{number}.txt"))]
            except ValueError as error:
                yield Skipped(SkipKind.BAD_LABEL, f"{folder / number}.txt", str(error))
                continue
            yield image_record(root, f"training/image_2/{number}.png", label)

    return read_parts(source, parts, read)


def _nearest(path: Path) -> int:
    """Return the number of the class in `DISTANCES` of a file of objects.

    Raises:
        ValueError: A line is not 15 columns with a depth.
    """
    depths = []
    for _, line in list_lines(path):
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
        content = read_json(path)
        scenes = content.get("scenes") if isinstance(content, dict) else None
        if not isinstance(scenes, list):
            raise DataError(f"{path}: holds no list 'scenes'")
        for number, scene in enumerate(scenes):
            fields = scene if isinstance(scene, dict) else {}
            name, objects = fields.get("image_filename"), fields.get("objects")
            if isinstance(name, str) and isinstance(objects, list):
                yield image_record(root, f"images/{part}/{name}", str(len(objects)))
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
        entries = [
            line.split()[0] for _, line in list_lines(needed(root, f"ucfTrainTestlist/{name}"))
        ]
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
                yield image_record(root, frame.relative_to(root).as_posix(), joined_words(action))

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
    "rendered_sst2": {},
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
            record, record_id=own_id, image_id=own_id, label=names.get(label) or joined_words(label)
        )


FORMATS: tuple[Format, ...] = (
    class_format(
        "gtsrb",
        "German traffic signs (GTSRB), final round",
        read_gtsrb,
        [["Final_Training/Images"], ["Final_Test/Images"], ["GTSRB/Final_Training/Images"]],
        tells="GTSRB's Final_Training/Images",
        parts="train, test",
        layout=(
            "GTSRB",
            "https://benchmark.ini.rub.de/gtsrb_dataset.html",
            (
                Expected("Final_Training/Images/*/GT-*.csv", "training labels", 43),
                Expected("Final_Training/Images/*/*.ppm", "training images", 39_209),
                Expected("Final_Test/Images/*.ppm", "test images", 12_630),
                Expected(
                    "GT-final_test.csv",
                    "test labels",
                    other=("Final_Test/Images/GT-final_test.csv", "../GT-final_test.csv"),
                ),
            ),
            ("GTSRB --split test",),
        ),
    ),
    class_format(
        "kitti",
        "KITTI, distance to the nearest vehicle",
        read_kitti,
        [["training/label_2", "training/image_2"]],
        tells="KITTI's training/label_2",
        parts="training; the lists in ImageSets",
        layout=(
            "kitti",
            "https://www.cvlibs.net/datasets/kitti/eval_object.php?obj_benchmark=2d",
            (
                Expected("training/image_2/*.png", "images", 7_481),
                Expected("training/label_2/*.txt", "objects", 7_481),
                Expected("ImageSets/*.txt", "numbers of the images of a split", optional=True),
            ),
            ("kitti", "kitti --split val"),
        ),
    ),
    class_format(
        "clevr_counts",
        "CLEVR, number of objects",
        read_clevr_counts,
        [[f"scenes/CLEVR_{part}_scenes.json"] for part in CLEVR_PARTS],
        tells="CLEVR's scenes",
        parts="train, val",
        layout=(
            "CLEVR_v1.0",
            "https://cs.stanford.edu/people/jcjohns/clevr",
            (
                Expected("scenes/CLEVR_train_scenes.json", "training scenes"),
                Expected("scenes/CLEVR_val_scenes.json", "validation scenes"),
                Expected("images/train/*.png", "training images", 70_000),
                Expected("images/val/*.png", "validation images", 15_000),
            ),
            ("CLEVR_v1.0 --split val",),
        ),
    ),
    class_format(
        "ucf101",
        "UCF101, a frame of each clip",
        read_ucf101,
        [["ucfTrainTestlist"]],
        tells="UCF101's ucfTrainTestlist",
        parts="train, test of the first of three folds; test02 and so on",
        layout=(
            "ucf101",
            "https://www.crcv.ucf.edu/data/UCF101.php",
            (
                Expected("ucfTrainTestlist/trainlist01.txt", "training clips"),
                Expected("ucfTrainTestlist/testlist01.txt", "test clips"),
                Expected(
                    "UCF-101/*/*.jpg",
                    "a frame of each clip, named as the clip",
                    13_320,
                    other=("UCF-101-midframes/*/*.jpg",),
                ),
            ),
            ("ucf101 --split test",),
        ),
    ),
    *(
        class_format(
            name,
            title,
            read_named_folders(name),
            marks,
            tells=tells,
            parts=parts,
            layout=(
                folder,
                source,
                (Expected(files, "images in a folder of their class", count),),
                (example,),
            ),
        )
        for name, title, marks, tells, parts, folder, source, files, count, example in (
            (
                "eurosat",
                "EuroSAT",
                [["AnnualCrop", "SeaLake"]],
                "EuroSAT's class folders",
                "",
                "2750",
                "https://github.com/phelber/EuroSAT",
                "*/*.jpg",
                27_000,
                "2750",
            ),
            (
                "country211",
                "Country211",
                [["AD", "ZW"], ["test/AD", "test/ZW"]],
                "Country211's class folders",
                "train, valid, test",
                "country211",
                "https://github.com/openai/CLIP/blob/main/data/country211.md",
                "*/*/*.jpg",
                63_300,
                "country211 --split test",
            ),
            (
                "rendered_sst2",
                "Rendered SST2",
                [["train/negative", "train/positive"], ["test/negative", "test/positive"]],
                "folders of negative and positive sentences",
                "train, valid, test",
                "rendered-sst2",
                "https://github.com/openai/CLIP/blob/main/data/rendered-sst2.md",
                "*/*/*.png",
                9_613,
                "rendered-sst2 --split test",
            ),
            (
                "caltech101",
                "Caltech-101",
                [["Faces_easy", "Motorbikes"]],
                "Caltech-101's class folders",
                "",
                "101_ObjectCategories",
                "https://data.caltech.edu/records/mzrjq-6wc02",
                "*/*.jpg",
                9_145,
                "101_ObjectCategories",
            ),
        )
    ),
)
