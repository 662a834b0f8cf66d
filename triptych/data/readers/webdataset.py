"""WebDataset tar shards, indexed by their headers, so that any sample can be read at random."""

from __future__ import annotations

import glob
import itertools
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from triptych.core.errors import DataError
from triptych.core.reading import cannot_read
from triptych.data.codes import CODES_EXTENSION
from triptych.data.columns import RECORDS, Columns
from triptych.data.entries import FIELDS, EntryError, parse_caption, parse_entry
from triptych.data.images import image_suffixes
from triptych.data.index import file_facts
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.storage import glob_urls, is_url, open_file, read_whole

FIRST_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # what an image is, if a sample has several
MAX_FILES = 1_000_000  # that braces may name
MAX_DIGITS = 18  # of a number in braces
MAX_SHOWN = 200  # characters of a pattern in an error
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
MAX_TEXT_BYTES = 16 * 2**20
MAX_REST_BYTES = 2**20  # how far behind the end mark is looked
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
UNPACK = "samples in it cannot be read at random. Unpack it to a plain .tar"
SUFFIX = ".tar"
INDEX_SUFFIX = ".index"
"""Behind the name of a shard: its records in columns, its size and its SHA-256."""

Members = dict[str, tarfile.TarInfo]  # extension to member


def is_shards(path: str) -> bool:
    """Return whether a path names tar shards: one, a pattern, or a folder that holds some.

    Raises:
        DataError: They are compressed.
    """
    if path.lower().endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{path}: is compressed; {UNPACK}")
    return path.endswith(SUFFIX) or (Path(path).is_dir() and any(Path(path).glob(f"*{SUFFIX}")))


def expand_shards(path: str) -> list[str]:
    """Return the shards that a path names; see `expand_paths`."""
    return expand_paths(path, SUFFIX)


def expand_paths(path: str, suffix: str) -> list[str]:
    """Return the files that a path names, sorted where they were found by looking.

    Args:
        path: A file, a folder of files, a brace pattern (`{000000..000012}`, `{train,val}`), a
            glob pattern (`*`, `?`), or braces and glob together; or URLs in the same way. URLs
            that braces name are not looked for here.
        suffix: Of the files in a folder.

    Raises:
        DataError: There are none, or some that the braces name are missing.
    """
    names = _expand_braces(path)
    if Path(path).is_dir():
        found = sorted(map(str, Path(path).glob(f"*{suffix}")))
        if not found:
            raise DataError(f"{path}: the folder holds no {suffix} file")
        return found
    files: list[str] = []
    missing = []
    for name in names:
        if re.search(r"[*?]", name):
            found = glob_urls(name) if is_url(name) else sorted(glob.glob(name))  # noqa: PTH207
            files.extend(found)
            missing.extend([] if found else [name])
        elif is_url(name) or Path(name).is_file():
            files.append(name)
        else:
            missing.append(name)
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(missing) + len(files)} files are missing; "
            f"the first: {', '.join(missing[:3])}"
        )
    return files


def read_webdataset(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read one record for each sample, a group of members that are equal up to the first dot.

    A sample is an image (`.jpg`, `.png`, `.tif` or what else Pillow decodes) with a caption from
    `.txt`, or a `.json` that has manifest fields, `caption`, or `text` (as img2dataset writes
    them), or with a class number from `.cls`; `.codes.npy` holds stored codes. Ids are `shard/key`.
    Only headers, texts and JSON are read, or the index that `triptych data shard` wrote.

    Raises:
        DataError: No shards, some missing, or one that is compressed or no tar file.
    """
    check_split(source.split, (), source.path)
    for shard in expand_shards(source.path):
        index = read_index(shard)
        if index is None:
            yield from read_shard(shard)
        else:
            yield from (in_shard(record, shard) for record in index)


def read_shard(shard: str) -> Iterator[Record | Skipped]:
    """Yield what the headers, texts and JSON of a shard say, whatever an index says."""
    samples: dict[str, Members] = {}
    try:
        with open_file(shard) as file:
            yield from _index(shard, file, samples)
            images_only = not any(members.keys() & {"txt", "cls"} for members in samples.values())
            for key, members in samples.items():
                yield from _sample(shard, key, members, file, images_only)
    except OSError as error:
        raise cannot_read(Path(shard), error) from error


def read_index(shard: str) -> Columns[Record] | None:
    """Return the index beside a shard; None where there is none, or it is of another shard."""
    index = any_index(shard)
    if index is None:
        return None
    ((_, size, _),) = file_facts([shard])
    return index if json.loads(index.about["shard"])["bytes"] == size else None


def any_index(shard: str) -> Columns[Record] | None:
    """Return the index beside a shard, even if the shard has another size; None without one."""
    path = shard + INDEX_SUFFIX
    try:
        if is_url(shard):
            return Columns(read_whole(path), RECORDS)
        return Columns(Path(path), RECORDS) if Path(path).is_file() else None
    except (OSError, ValueError):  # none, not ours, or a server that refuses what it does not have
        return None


def in_shard(record: Record, shard: str) -> Record:
    """Return a record of an index as one of the shard that the index was found beside."""
    assert record.image is not None, "an index beside a shard holds images"
    image = replace(record.image, path=shard)
    image_id = str(image) if record.image_id == str(record.image) else record.image_id
    return replace(record, image=image, image_id=image_id)


def _index(shard: str, file: BinaryIO, samples: dict[str, Members]) -> Iterator[Skipped]:
    """Fill `samples` from the headers of a shard; yield what cannot be used."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                where = f"{shard}::{member.name}"
                key, extension = _split_name(member.name)
                if not member.isfile() or not key:
                    continue
                if member.offset_data + member.size > size:
                    samples.pop(key, None)
                    yield Skipped(SkipKind.TRUNCATED, where, "the shard ends within this member")
                    return
                elif extension in samples.setdefault(key, {}):
                    message = "another member of this name came before"
                    yield Skipped(SkipKind.BAD_RECORD, where, message)
                else:
                    samples[key][extension] = member
            yield from _end_problem(shard, file, tar.offset)
    except tarfile.ReadError as error:
        if not samples:
            raise _not_a_shard(shard, file, error) from error
        yield Skipped(SkipKind.TRUNCATED, shard, f"the shard is cut short: {error}")


def _end_problem(shard: str, file: BinaryIO, offset: int) -> Iterator[Skipped]:
    """Yield what is wrong where the headers end: `tarfile` stops at a damaged header in silence."""
    file.seek(offset)
    rest = file.read(MAX_REST_BYTES)
    if len(rest) < tarfile.BLOCKSIZE:
        yield Skipped(SkipKind.TRUNCATED, shard, "the shard ends without its end mark")
    elif any(rest[: tarfile.BLOCKSIZE]):
        message = f"no header at byte {offset}; the samples after it are lost"
        yield Skipped(SkipKind.TRUNCATED, shard, message)
    elif any(rest):
        message = f"samples after the end mark at byte {offset} are not read (joined tar files?)"
        yield Skipped(SkipKind.BAD_RECORD, shard, message)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield members; a shard cut within a member's data gives that member, then raises."""
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # they would pile up for large shards


def _sample(
    shard: str, key: str, members: Members, file: Any, images_only: bool
) -> Iterator[Record | Skipped]:
    where = f"{shard}::{key}"
    record_id = f"{PurePosixPath(shard).stem}/{key}"
    member = _image_member(members)
    if member is None:
        message = f"no image among its members ({', '.join(sorted(members)) or 'none'})"
        yield Skipped(SkipKind.MISSING_FILE, where, message)
        return
    image = _source(shard, member)
    assert image is not None
    try:
        fields = _json_member(file, members.get("json"))
        if "txt" in members and "caption" not in fields:
            fields["caption"] = _text_member(file, members["txt"])
        if "cls" in members and "label" not in fields:
            fields["label"] = _class_member(file, members["cls"])
        if fields.get("caption") is not None and not isinstance(fields["caption"], list):
            fields["caption"] = parse_caption(fields["caption"])
    except EntryError as error:
        yield Skipped(error.kind, where, str(error))
        return
    fields["image"] = member.name
    entries = parse_entry(
        fields,
        record_id=record_id,
        where=where,
        locate=lambda _: image,
        images_only=images_only,
    )
    codes = _source(shard, members.get(CODES_EXTENSION))
    for entry in entries:
        yield replace(entry, codes=codes) if isinstance(entry, Record) and codes else entry


def _image_member(members: Members) -> tarfile.TarInfo | None:
    """Return the member that is the image: the webdataset formats first, then by the alphabet."""
    others = sorted(name for name in members if f".{name}" in image_suffixes())
    return next((members[e] for e in (*FIRST_EXTENSIONS, *others) if e in members), None)


def _source(shard: str, member: tarfile.TarInfo | None) -> ImageSource | None:
    if member is None:
        return None
    return ImageSource(shard, member.offset_data, member.size, member.name)


def _json_member(file: Any, member: tarfile.TarInfo | None) -> dict[str, Any]:
    """Return the manifest fields of a `.json` member; `text` beside an image is its caption."""
    if member is None:
        return {}
    try:
        value = json.loads(_text_member(file, member))
    except (ValueError, RecursionError) as error:
        if isinstance(error, EntryError):
            raise
        raise EntryError(SkipKind.BAD_JSON, f"{member.name} is not valid JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise EntryError(SkipKind.BAD_RECORD, f"{member.name} is not a JSON object")
    fields = {name: value[name] for name in FIELDS if value.get(name) is not None}
    for name in ("images", "video", "split", "mask"):  # what a shard's sample cannot point to
        fields.pop(name, None)
    text = fields.pop("text", None)
    if text is not None:
        fields.setdefault("caption", text)
    return fields


def _text_member(file: Any, member: tarfile.TarInfo) -> str:
    if member.size > MAX_TEXT_BYTES:
        message = f"{member.name} has {member.size} bytes, too many for a text"
        raise EntryError(SkipKind.BAD_RECORD, message)
    file.seek(member.offset_data)
    try:
        return str(file.read(member.size).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise EntryError(SkipKind.NOT_UTF8, f"{member.name} is not UTF-8") from error


def _class_member(file: Any, member: tarfile.TarInfo) -> int | str:
    text = _text_member(file, member).strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def _split_name(name: str) -> tuple[str, str]:
    """Return key and lower-case extension: `a/b.seg.png` is (`a/b`, `seg.png`)."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _expand_braces(pattern: str) -> list[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    counts = [_num_alternatives(part) for part in parts[1::2]]
    if math.prod(counts) > MAX_FILES:
        raise DataError(
            f"{pattern[:MAX_SHOWN]}: its braces name more than {MAX_FILES:,} files: read a part of "
            "them at a time"
        )
    if not all(counts):
        raise DataError(f"{pattern[:MAX_SHOWN]}: its braces name no file: a range goes upwards")
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _num_alternatives(inner: str) -> int:
    """Return how many texts a pair of braces stands for, before any is made."""
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.count(",") + 1
    if max(map(len, numbers.groups())) > MAX_DIGITS:
        return MAX_FILES + 1
    return max(int(numbers[2]) + 1 - int(numbers[1]), 0)


def _alternatives(inner: str) -> list[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",")
    first, last = numbers.groups()
    return [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]


def _not_a_shard(shard: str, file: BinaryIO, error: Exception) -> DataError:
    file.seek(0)
    start = file.read(2)
    if start in COMPRESSED:
        return DataError(f"{shard}: is compressed ({COMPRESSED[start]}); {UNPACK}")
    return DataError(f"{shard}: is not a tar file: {error}")


FORMAT = Format(
    name="webdataset",
    title="WebDataset: tar shards of images with texts, JSON or class numbers",
    fields=("image", "caption", "label", "text", "codes"),
    read=read_webdataset,
    tells=f"{SUFFIX} shards",
    of_path=is_shards,
    is_fallback=True,
    files=expand_shards,
    layouts=(
        Layout(
            "shards, such as those of `triptych data shard`",
            "shards",
            "https://github.com/webdataset/webdataset",
            (
                Expected("*.tar", "images as KEY.jpg with KEY.txt, KEY.json or KEY.cls"),
                Expected("*.tar.index", "their records, of `triptych data shard`", optional=True),
            ),
            ("shards", "'shards/{000000..000012}.tar'", "hf://datasets/OWNER/NAME/*.tar"),
        ),
    ),
)
