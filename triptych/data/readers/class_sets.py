"""What the readers of image classification sets share: splits, files, their format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from triptych.core.errors import DataError, nearest
from triptych.data.lines import read_lines
from triptych.data.records import ImageSource, Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, Parts
from triptych.data.spec import Expected, Format, Layout

AGAIN = "Download it again"
Found = Iterator[Record | Skipped]
Entries = Iterator[Record | Skipped | Parts]


def read_parts(
    source: DataSourceConfig,
    parts: Sequence[str],
    read: Callable[[str], Found],
) -> Entries:
    """Yield the records of the part that is asked for, or of all parts, one after the other.

    Raises:
        DataError: There is no such part, or what `read` raises.
    """
    if source.split is not None and source.split not in parts:
        raise DataError(
            f"{source.path}: there is no split {source.split!r}{nearest(source.split, parts)} "
            f"(it has: {', '.join(parts)})"
        )
    for part in parts if source.split is None else (source.split,):
        yield from read(part)
    yield Parts(tuple(parts) if source.split is None and len(parts) > 1 else ())


def needed(root: Path, *names: str) -> Path:
    """Return the first of some files that exists.

    Raises:
        DataError: None does; the message names them and what the folder holds.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    held = sorted(path.name for path in root.iterdir())[:8] if root.is_dir() else []
    raise DataError(
        f"{root / names[0]}: there is no such file"
        f"{''.join(f', and no {name}' for name in names[1:])}; {root} holds: "
        f"{', '.join(held) or 'nothing'}"
    )


def list_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line of a file stands, and its text.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8: a list is whole or it is none.
    """
    for number, line in read_lines(path):
        if isinstance(line, Skipped):
            raise DataError(f"{line.where}: {line.message}")
        yield f"{path}:{number}", line.strip()


def joined_words(name: str) -> str:
    """Return a joined class name as words: `apple_pie` and `ApplyEyeMakeup` alike."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).strip()


def image_record(root: Path, name: str, label: str | None) -> Record:
    """Return the record of an image file; its name in `root` is its id."""
    return Record(record_id=name, image=ImageSource(str(root / name)), image_id=name, label=label)


def class_format(
    name: str,
    title: str,
    read: Callable[[DataSourceConfig], Entries],
    marks: Sequence[Sequence[str]],
    *,
    tells: str,
    parts: str,
    layout: tuple[str, str, Sequence[Expected], Sequence[str]],
    more_layouts: tuple[Layout, ...] = (),
) -> Format:
    """Return the format of a folder of images with classes.

    Args:
        name: What `reader` takes.
        title: Its name in words.
        read: Its reader.
        marks: Files or folders that only this set has, all of one group, for each group.
        tells: What its folder holds, in words that follow "holds".
        parts: The splits, in words.
        layout: The folder's usual name, where it is published, its files, and examples.
        more_layouts: Those of further sets that the format reads.
    """

    def is_set(path: str) -> bool:
        return any(all((Path(path) / mark).exists() for mark in group) for group in marks)

    folder, source, files, examples = layout
    return Format(
        name=name,
        title=title,
        fields=("image", "label"),
        read=read,
        tells=tells,
        of_path=lambda path: Path(path).is_dir() and is_set(path),
        parts=parts,
        layouts=(Layout(title, folder, source, tuple(files), tuple(examples)), *more_layouts),
    )
