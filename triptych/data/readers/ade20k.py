"""ADE20K's scene parsing benchmark (Zhou et al. 2017), as `ADEChallengeData2016.zip` unpacks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triptych.core.errors import DataError
from triptych.data.masks import ADE20K_NAMES
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, Parts, check_split
from triptych.data.spec import Expected, Format, Layout

SPLITS = ("training", "validation")


def is_ade20k(path: str) -> bool:
    """Return whether a path is a folder with `images/SPLIT` and `annotations/SPLIT`."""
    root = Path(path)
    return any(
        (root / "images" / split).is_dir() and (root / "annotations" / split).is_dir()
        for split in SPLITS
    )


def read_ade20k(source: DataSourceConfig) -> Iterator[Record | Skipped | Parts]:
    """Read `images/SPLIT/NAME.jpg` with `annotations/SPLIT/NAME.png`.

    Value 0 of a mask is ignored, and 1 to 150 are the classes that `objectInfo150.txt` names.

    Raises:
        DataError: The folder, the split, or the file of names is missing.
    """
    root = Path(source.path)
    if not is_ade20k(source.path):
        raise DataError(
            f"{root}: expected {root}/images/training and {root}/annotations/training, as "
            "ADEChallengeData2016.zip has them"
        )
    if not (root / ADE20K_NAMES).is_file():
        raise DataError(f"{root / ADE20K_NAMES} is missing: it names the 150 classes")
    found = [split for split in SPLITS if (root / "images" / split).is_dir()]
    parts = check_split(source.split, found, source.path)
    for split in found if source.split is None else [source.split]:
        for image in sorted((root / "images" / split).glob("*.jpg")):
            mask = root / "annotations" / split / f"{image.stem}.png"
            name = image.relative_to(root).as_posix()
            if mask.is_file():
                yield Record(
                    record_id=name,
                    image=ImageSource(str(image)),
                    image_id=name,
                    mask=ImageSource(str(mask)),
                )
            else:
                yield Skipped(SkipKind.MISSING_FILE, str(mask), f"is missing; {image} is there")
    yield Parts(parts)


FORMAT = Format(
    name="ade20k",
    title="ADE20K scene parsing (Zhou et al. 2017)",
    fields=("image", "mask"),
    read=read_ade20k,
    tells="images/training and annotations/training, as ADE20K has them",
    of_path=is_ade20k,
    parts="training and validation",
    layouts=(
        Layout(
            "ADE20K, SceneParse150",
            "ADEChallengeData2016",
            "http://sceneparsing.csail.mit.edu",
            (
                Expected("images/training/ADE_train_*.jpg", "images", 20_210),
                Expected("annotations/training/ADE_train_*.png", "their masks", 20_210),
                Expected("images/validation/ADE_val_*.jpg", "images", 2_000),
                Expected("annotations/validation/ADE_val_*.png", "their masks", 2_000),
                Expected(ADE20K_NAMES, "names of the classes"),
            ),
            ("ADEChallengeData2016 --split validation",),
        ),
    ),
)
