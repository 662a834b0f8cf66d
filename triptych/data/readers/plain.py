"""Files without annotations: a folder of images, by class or not, and a text a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from triptych.core.errors import DataError
from triptych.data.images import image_suffixes
from triptych.data.lines import read_lines
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, check_split
from triptych.data.spec import Expected, Format, Layout


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder holds an image, directly or up to two levels down."""
    return _has_image(folder) or any(
        _has_image(child) or any(map(_has_image, _folders(child))) for child in _folders(folder)
    )


def read_image_folder(source: DataSourceConfig) -> Iterator[Record]:
    """Read `root/class/**/image`, or `root/split/class/**/image` where `split` is set.

    The class folder's name is the label. Images in the root itself come last, without a label.
    Files whose suffix is of no format that Pillow decodes, and hidden files, are passed over.
    Classes and images come in the order of their names.

    Raises:
        DataError: The folder or the split does not exist, or no class folder holds an image.
    """
    root = Path(source.path)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    if source.split is not None:
        check_split(source.split, (folder.name for folder in _folders(root)), source.path)
        root = root / source.split
    is_empty = True
    for folder in _folders(root):
        for record in _images(root, _files_below(folder), folder.name):
            is_empty = False
            yield record
    files = sorted(path for path in root.iterdir() if path.is_file())
    for record in _images(root, files, None):
        is_empty = False
        yield record
    if is_empty:
        raise DataError(
            f"{root}: no image in it; expected {root}/<class>/<image>.jpg or "
            f"{root}/<image>.jpg, found "
            f"{', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'nothing'}"
        )


def _images(root: Path, paths: Iterable[Path], label: str | None) -> Iterator[Record]:
    suffixes = image_suffixes()
    for path in paths:
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            name = path.relative_to(root).as_posix()
            image = ImageSource(str(path))
            yield Record(record_id=name, image=image, image_id=name, label=label)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and those in it, sorted, one folder in memory at a time."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        else:
            yield path


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _has_image(folder: Path) -> bool:
    suffixes = image_suffixes()
    return any(path.suffix.lower() in suffixes for path in folder.iterdir())


def read_text_file(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read each line that is not blank as one text; its line number is its id.

    Raises:
        DataError: The file cannot be read.
    """
    check_split(source.split, (), source.path)
    for number, line in read_lines(Path(source.path)):
        if isinstance(line, Skipped):
            yield line
        else:
            yield Record(record_id=str(number), text=line.strip())


FORMATS = (
    Format(
        name="image_folder",
        title="A folder of images, one folder a class",
        fields=("image", "label"),
        read=read_image_folder,
        tells="class folders with images",
        of_path=lambda path: Path(path).is_dir() and is_image_folder(Path(path)),
        is_fallback=True,
        parts="the folders above the class folders",
        layouts=(
            Layout(
                "your own data",
                "own",
                "",
                (Expected("*/*", "images in a folder of their class", other=("*.*", "*/*/*")),),
                ("images", "imagenet --split train"),
            ),
        ),
    ),
    Format(
        name="text",
        title="A text a line",
        fields=("text",),
        read=read_text_file,
        tells="texts",
        of_line=lambda _: True,
        suffixes=(".txt",),
        is_fallback=True,
        layouts=(
            Layout(
                "your own data", "own", "", (Expected("*.txt", "one text a line"),), ("my.txt",)
            ),
        ),
    ),
)
