"""A folder of class folders: `root/cat/1.jpg`. The folder's name is the label."""

from __future__ import annotations

from pathlib import Path

from triptych.core.errors import DataError
from triptych.data.records import ImageSource, Record
from triptych.data.source import DataSourceConfig, RecordList, check_split

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
    }
)


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder holds a folder that holds a picture, directly or one level down."""
    return any(
        _has_image(child) or any(map(_has_image, _folders(child))) for child in _folders(folder)
    )


def read_image_folder(source: DataSourceConfig) -> RecordList:
    """Read `root/class/**/picture`, or `root/split/class/**/picture` where `split` is set.

    Files that have no picture's suffix, and hidden files, are passed over. Classes and pictures
    come in the order of their names.

    Raises:
        DataError: The folder or the split does not exist, or no class folder holds a picture.
    """
    root = Path(source.path)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    if source.split is not None:
        check_split(source.split, (folder.name for folder in _folders(root)), source.path)
        root = root / source.split
    found = RecordList()
    for folder in _folders(root):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                name = path.relative_to(root).as_posix()
                found.records.append(
                    Record(
                        record_id=name,
                        image=ImageSource(str(path)),
                        image_id=name,
                        label=folder.name,
                    )
                )
    if not found.records:
        raise DataError(
            f"{root}: no picture in a class folder; expected {root}/<class>/<picture>.jpg, found "
            f"{', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'nothing'}"
        )
    return found


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _has_image(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
