"""Files that say what classes are called, and records whose labels become those names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from triptych.core.errors import DataError
from triptych.core.reading import read_json
from triptych.data.lines import read_lines
from triptych.data.records import Record
from triptych.data.skips import Skipped

T = TypeVar("T")
WORDNET_ID = re.compile(r"n\d{8}")
NAMES_FILES = ("classnames.txt", "LOC_synset_mapping.txt", "imagenet_class_index.json")
"""Where the names of ImageNet's classes are looked for, beside the class folders."""

# Two pairs of ImageNet-1k's classes have one name; these are our words after WordNet's glosses.
SAME_NAMES = {
    "n02012849": "crane bird",
    "n03126707": "construction crane",
    "n03710637": "maillot tights",
    "n03710721": "maillot swimsuit",
}


def is_wordnet_id(label: object) -> bool:
    """Return whether a label is a WordNet id such as `n01440764`, which no model has read."""
    return isinstance(label, str) and WORDNET_ID.fullmatch(label) is not None


def load_class_names(path: Path) -> dict[str, str]:
    """Read what classes are called.

    A text file has a line for each class: its id (a folder's name or a number), a space or a tab,
    and its name; of the synonyms of a WordNet id the first is the name. A `.json` file is an object
    of ids and names, or, as `imagenet_class_index.json` is, of numbers and `[id, name]`.

    Returns:
        The name of each id, all different.

    Raises:
        DataError: The file cannot be read, a line has no name, an id stands in it twice, or two
            classes have one name.
    """
    if path.suffix.lower() == ".json":
        entries = list(_json_entries(read_json(path), path))
    else:
        entries = list(_line_entries(path))
    texts: dict[str, str] = {}
    for where, own_id, text in entries:
        if not text.strip() or not own_id.strip():
            raise DataError(f"{where}: class {own_id!r} has no name; expected '<id> <name>'")
        if texts.setdefault(own_id, text.strip()) != text.strip():
            raise DataError(f"{where}: class {own_id!r} has two names")
    if not texts:
        raise DataError(f"{path}: holds no class; expected a line '<id> <name>' for each")
    return unique_names(texts, path)


def _json_entries(content: Any, path: Path) -> Iterator[tuple[str, str, str]]:
    if not isinstance(content, dict):
        found = type(content).__name__
        raise DataError(f"{path}: expected an object of class ids and names, found a {found}")
    for key, value in content.items():
        where = f"{path}: {key!r}"
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
            yield where, value[0], value[1].replace("_", " ")
        elif isinstance(value, str):
            yield where, key, value
        else:
            raise DataError(f"{where}: {value!r} is neither a name nor [id, name]")


def _line_entries(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if isinstance(line, Skipped):
            raise DataError(f"{where}: {line.message}. Save the file as UTF-8")
        own_id, *rest = line.strip().split(maxsplit=1)
        yield where, own_id, rest[0] if rest else ""


def unique_names(texts: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return the first synonym of each WordNet id; all of them where the first is not its alone.

    Args:
        texts: Names of classes by their ids; of a WordNet id, synonyms with commas between.
        path: The file that they come from, for the message.

    Raises:
        DataError: Two classes have one name.
    """
    first = {
        own_id: text.split(",")[0].strip() if is_wordnet_id(own_id) else text
        for own_id, text in texts.items()
    }
    counts = Counter(first.values())
    names = {own_id: name if counts[name] == 1 else SAME_NAMES.get(own_id, texts[own_id])
             for own_id, name in first.items()}  # fmt: skip
    owner: dict[str, str] = {}
    for own_id, name in names.items():
        if owner.setdefault(name, own_id) != own_id:
            raise DataError(
                f"{path}: the classes {owner[name]} and {own_id} are both called {name!r}: give "
                "each its own name, or they could not be told apart"
            )
    return names


def find_class_names(folders: Iterable[Path]) -> Path | None:
    """Return the first file of ImageNet's class names in some folders."""
    paths = (folder / name for folder in folders for name in NAMES_FILES)
    return next((path for path in paths if path.is_file()), None)


def name_classes(entries: Iterable[T], path: Path) -> Iterator[T | Record]:
    """Yield what a reader yields, with the class names of a file as labels.

    Args:
        entries: What the reader yields.
        path: The file of `load_class_names`.

    Raises:
        DataError: The file cannot be used, no record has a label, or it has no name for one.
    """
    names = load_class_names(path)
    is_named = False
    for entry in entries:
        if not isinstance(entry, Record) or entry.label is None:
            yield entry
            continue
        yield replace(entry, label=name_of(str(entry.label), names, path))
        is_named = True
    if not is_named:
        raise DataError(f"{path} names classes, and no record has a label: omit class_names")


def name_of(own_id: str, names: Mapping[str, str], path: Path) -> str:
    """Return the name of a class.

    Raises:
        DataError: There is none; the message has the file.
    """
    if own_id in names:
        return names[own_id]
    known = ", ".join(list(names)[:3])
    raise DataError(
        f"{path}: has no name for the class {own_id!r} (its first ids: {known}): add a line "
        f"'{own_id} <name>'"
    )


def check_names(labels: Iterable[object]) -> None:
    """Raise where labels are WordNet ids, which say nothing to a model that reads them.

    Raises:
        DataError: One is; the message says which file to give.
    """
    found = next((label for label in labels if is_wordnet_id(label)), None)
    if found is not None:
        raise DataError(
            f"the classes are WordNet ids ({found}), and a model is asked by names. Put "
            f"one of {', '.join(NAMES_FILES)} beside the class folders, or name a file of lines "
            f"'{found} <name>' with --class-names FILE"
        )
