"""Data that is published as addresses: the lists themselves, and what img2dataset makes of them.

Conceptual Captions (3M and 12M), SBU and LAION are lists of captions and addresses of images. The
img2dataset tool downloads them, in shards of 10,000, and notes beside each shard what failed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import (
    open_regular,
    read_json,
    read_json_object,
    read_text,
    reading,
)
from triptych.data.cache import log
from triptych.data.entries import EntryError, parse_caption
from triptych.data.images import image_suffixes
from triptych.data.lines import bounded_lines, read_lines
from triptych.data.readers.webdataset import read_shard
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.tables import cell_name, open_table

STATS = "_stats.json"
"""Behind the name of a shard: what became of its addresses."""

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp")
SBU_FILES = ("SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt")
SBU_KEYS = ("image_urls", "captions")


def is_url_list(first: str) -> bool:
    """Return whether a first line is a caption and an address, in either order."""
    cells = first.split("\t")
    return len(cells) == 2 and sum(map(_is_address, cells)) == 1


def _is_address(text: str) -> bool:
    """Return whether a text is an address of the web: a list of strangers names no other files."""
    return text.lower().startswith(("http://", "https://"))


def read_url_list(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read lines of a caption and an address (CC3M), or of an address and a caption (CC12M).

    The images are the addresses. Many are dead by now: download them once, with img2dataset.

    Raises:
        DataError: The file cannot be read, or none of its lines has an address.
    """
    check_split(source.split, (), source.path)
    for number, line in read_lines(Path(source.path)):
        where = f"{source.path}:{number}"
        if isinstance(line, Skipped):
            yield line
        elif not is_url_list(line):
            message = "is not a caption, a tab and an address, or the other way round"
            yield Skipped(SkipKind.BAD_RECORD, where, message)
        else:
            url, caption = sorted(line.split("\t"), key=_is_address, reverse=True)
            yield _remote(str(number), where, url, caption)


def is_sbu(path: str) -> bool:
    """Return whether a path is one of SBU's two files."""
    return PurePath(path).name in SBU_FILES


def is_sbu_json(data: Any) -> bool:
    """Return whether JSON content is SBU's: addresses and captions as two lists."""
    return isinstance(data, dict) and all(isinstance(data.get(key), list) for key in SBU_KEYS)


def read_sbu(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read SBU's file of addresses and its file of captions, line by line.

    Raises:
        DataError: One of the two is missing, or they have unequal numbers of lines.
    """
    check_split(source.split, (), source.path)
    urls, captions = (Path(source.path).with_name(name) for name in SBU_FILES)
    pairs = zip_longest(_lines_of(urls), _lines_of(captions))
    for number, (url, caption) in enumerate(pairs, 1):
        if url is None or caption is None:
            raise DataError(
                f"{urls} and {captions.name} have unequal numbers of lines: they do not belong "
                "together, or one is cut short"
            )
        where = f"{captions}:{number}"
        yield _remote(str(number), where, url.strip(), caption.rstrip("\r\n"))


def _lines_of(path: Path) -> Iterator[str]:
    with reading(path), open_regular(path) as file:
        for line in bounded_lines(file):
            yield line.decode("utf-8", "surrogateescape")


def read_sbu_json(data: Any, source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read SBU's `sbu-captions-all.json`.

    Raises:
        DataError: The file is of another format, or its lists are unequally long.
    """
    check_split(source.split, (), source.path)
    if not is_sbu_json(data):
        raise DataError(f"{source.path}: not SBU's: needs the lists {' and '.join(SBU_KEYS)}")
    urls, captions = (data[key] for key in SBU_KEYS)
    if len(urls) != len(captions):
        raise DataError(
            f"{source.path}: has {len(urls):,} image_urls and {len(captions):,} captions"
        )
    for index, (url, caption) in enumerate(zip(urls, captions, strict=True)):
        yield _remote(str(index), f"{source.path}: captions[{index}]", url, caption)


def _remote(record_id: str, where: str, url: Any, caption: Any) -> Record | Skipped:
    if not isinstance(url, str) or not _is_address(url):
        return Skipped(SkipKind.BAD_RECORD, where, f"{str(url)[:80]!r} is no address")
    try:
        text = parse_caption(caption)
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    return Record(record_id=record_id, image=ImageSource(url), image_id=url, caption=text)


@dataclass(slots=True)
class _Outcome:
    """What became of the addresses of a download.

    Attributes:
        num_asked: Addresses.
        num_downloaded: Images that img2dataset says were stored.
        reasons: Why the others failed, counted.
    """

    num_asked: int = 0
    num_downloaded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, stats: Any) -> int:
        """Take in the content of a `_stats.json`; return how many images its shard has.

        Raises:
            ValueError: It lacks the counts.
        """
        count, successes = (
            stats.get(name) if isinstance(stats, dict) else None for name in ("count", "successes")
        )
        if not isinstance(count, int) or not isinstance(successes, int):
            raise ValueError("lacks the numbers 'count' and 'successes'")
        self.num_asked += count
        self.num_downloaded += successes
        reasons = stats.get("status_dict")
        for reason, number in reasons.items() if isinstance(reasons, dict) else ():
            if reason != "success" and isinstance(number, int):
                self.reasons[reason] += number
        return successes

    def sentence(self) -> str:
        share = self.num_downloaded / max(self.num_asked, 1)
        failed = "; ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common(3))
        return (
            f"{self.num_downloaded:,} of {self.num_asked:,} addresses were downloaded "
            f"({share:.1%}){'; failed: ' if failed else ''}{failed}"
        )


def is_download(path: str) -> bool:
    """Return whether a path is a folder that img2dataset wrote."""
    return Path(path).is_dir() and any(Path(path).glob(f"[0-9]*{STATS}"))


def download_files(path: str) -> list[str]:
    """Return what a download consists of: shards or their folders, and the notes beside them."""
    return sorted(str(p) for p in Path(path).glob("[0-9]*") if not p.name.startswith("."))


def unfinished_shards(folder: Path) -> list[str]:
    """Return a sentence for each shard whose download was not finished."""
    done = {path.name.removesuffix(STATS) for path in folder.glob(f"[0-9]*{STATS}")}
    begun = {path.stem for path in folder.glob("[0-9]*") if path.suffix in ("", ".tar")}
    return [
        f"{folder / shard}{STATS}: missing: the download of this shard was not finished"
        for shard in sorted(begun - done)
    ]


def download_outcome(folder: Path) -> list[str]:
    """Return how many addresses were downloaded, in a sentence."""
    outcome, unreadable = _Outcome(), 0
    for path in sorted(folder.glob(f"[0-9]*{STATS}")):
        try:
            outcome.add(read_json(path))
        except (DataError, ValueError):
            unreadable += 1
    more = f"; {unreadable:,} *{STATS} cannot be read" if unreadable else ""
    return [f"{outcome.sentence()}{more}"]


def read_download(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read what img2dataset wrote: tar shards, folders of files, or parquet tables with images.

    Addresses that it could not download are no entries, but are counted. A shard that holds fewer
    images than its `_stats.json` says, cannot be read, or was not finished, is listed.

    Raises:
        DataError: The folder holds no `_stats.json`.
    """
    check_split(source.split, (), source.path)
    folder = Path(source.path)
    if not is_download(source.path):
        raise DataError(f"{folder}: not written by img2dataset: holds no 00000{STATS}")
    outcome = _Outcome()
    for path in sorted(folder.glob(f"[0-9]*{STATS}")):
        shard = str(path).removesuffix(STATS)
        try:
            expected = outcome.add(read_json(path))
        except (DataError, ValueError) as error:
            yield Skipped(SkipKind.BAD_JSON, str(path), f"{error}")
            expected = 0
        num_records = num_skipped = 0
        try:
            for entry in _shard_entries(Path(shard)):
                num_records += isinstance(entry, Record)
                num_skipped += isinstance(entry, Skipped)
                yield entry
        except (DataError, OSError, ValueError) as error:  # pyarrow's errors are among these
            yield Skipped(SkipKind.UNREADABLE, shard, f"{error}")
            continue
        if num_records + num_skipped < expected:
            message = f"holds {num_records + num_skipped:,} of the {expected:,} images that were "
            yield Skipped(SkipKind.TRUNCATED, shard, f"{message}stored, as {path.name} says")
    for sentence in unfinished_shards(folder):
        where, _, message = sentence.partition(": ")
        yield Skipped(SkipKind.TRUNCATED, where, message)
    log.warning("%s: %s", folder, outcome.sentence())


def _shard_entries(shard: Path) -> Iterable[Record | Skipped]:
    table, tar = shard.with_name(f"{shard.name}.parquet"), shard.with_name(f"{shard.name}.tar")
    if tar.is_file():
        return read_shard(str(tar))
    if shard.is_dir():
        return _of_folder(shard, table)
    if table.is_file():
        return _of_table(shard, table)
    return [Skipped(SkipKind.MISSING_FILE, str(shard), f"neither {tar.name} nor a folder is there")]


def _of_folder(shard: Path, table: Path) -> Iterator[Record | Skipped]:
    """Yield the images of a folder; captions come from the table beside it, or from their files."""
    suffixes = image_suffixes()
    with os.scandir(shard) as listed:
        names = sorted(entry.name for entry in listed)
    images = {Path(n).stem: n for n in names if Path(n).suffix.lower() in suffixes}
    if not table.is_file():
        for key, name in images.items():
            where = str(shard / name)
            yield _stored(shard.name, key, where, ImageSource(where), _caption_file(shard, key))
        return
    for _, _, row in _rows(table, ["key", "caption", "status"]):
        if row["status"] != "success":
            continue
        key = str(row["key"])
        where = str(shard / images.get(key, key))
        if key not in images:
            yield Skipped(SkipKind.MISSING_FILE, where, f"{table.name} says that it is there")
        else:
            yield _stored(shard.name, key, where, ImageSource(where), row["caption"])


def _caption_file(shard: Path, key: str) -> Any:
    """Return the caption in `KEY.json` or `KEY.txt`, or the entry to skip."""
    for suffix in (".json", ".txt"):
        path = shard / f"{key}{suffix}"
        if path.is_file():
            try:
                if suffix == ".txt":
                    return read_text(path)
                return read_json_object(path).get("caption")
            except DataError as error:
                return Skipped(SkipKind.BAD_JSON, str(path), f"cannot be read: {error}")
    return None


def _of_table(shard: Path, table: Path) -> Iterator[Record | Skipped]:
    columns = open_table(str(table)).schema.names
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if image is None:
        message = f"{table.name} holds no images, and there is no {shard.name}.tar or folder"
        yield Skipped(SkipKind.MISSING_FILE, str(shard), message)
        return
    rows = _rows(table, ["key", "caption", "status"])
    for number, (group, in_group, row) in enumerate(rows):
        if row["status"] == "success":
            cell = cell_name(image, group, in_group)
            source = ImageSource(str(table), number, None, cell)
            where = f"{table}:{number}"
            yield _stored(shard.name, str(row["key"]), where, source, row["caption"])


def _rows(table: Path, names: list[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield row group, row in it, and the cells of each row.

    Raises:
        DataError: It is no table, or lacks a column.
    """
    opened = open_table(str(table))
    absent = [name for name in names if name not in opened.schema.names]
    if absent:
        raise DataError(f"{table}: has no column {', '.join(absent)}, as img2dataset writes it")
    for group in range(opened.num_groups):
        rows = (row for batch in opened.rows(group, names) for row in batch)
        for in_group, row in enumerate(rows):
            yield group, in_group, row


def _stored(shard: str, key: str, where: str, image: ImageSource, caption: Any) -> Record | Skipped:
    if isinstance(caption, Skipped):
        return caption
    if caption is None:
        return Skipped(SkipKind.EMPTY_CAPTION, where, "has no caption")
    try:
        text = parse_caption(caption)
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    own_id = f"{shard}/{key}"
    return Record(record_id=own_id, image=image, image_id=str(image), caption=text)


def _download_layout(dataset: str, folder: str, source: str) -> Layout:
    return Layout(
        f"{dataset}, downloaded with img2dataset",
        folder,
        source,
        (
            Expected("[0-9]*_stats.json", "what became of the addresses of each shard"),
            Expected(
                "[0-9]*.tar",
                "images with captions",
                other=("[0-9]*/*.jpg", "[0-9]*.parquet"),
            ),
        ),
        (folder,),
    )


CC3M = "https://ai.google.com/research/ConceptualCaptions/download"
CC12M = "https://github.com/google-research-datasets/conceptual-12m"
SBU = "https://www.cs.rice.edu/~vo9/sbucaptions/"
LAION = "https://laion.ai/blog/laion-400-open-dataset/"

FORMATS = (
    Format(
        name="img2dataset",
        title="Captioned images that img2dataset downloaded: shards, folders or tables",
        fields=("image", "caption"),
        read=read_download,
        tells=f"shards with *{STATS} beside them",
        of_path=is_download,
        files=download_files,
        missing=unfinished_shards,
        remarks=download_outcome,
        layouts=(
            _download_layout("Conceptual Captions 3M", "cc3m", CC3M),
            _download_layout("Conceptual Captions 12M", "cc12m", CC12M),
            _download_layout("SBU captions", "sbu", SBU),
            _download_layout("LAION-400M", "laion", LAION),
        ),
    ),
    Format(
        name="url_list",
        title="Lists of captions and addresses, as published; img2dataset downloads the images",
        fields=("image", "caption"),
        read=read_url_list,
        tells="lines of a caption and an address",
        of_line=is_url_list,
        suffixes=(".tsv",),
        layouts=(
            Layout(
                "Conceptual Captions 3M, addresses",
                "cc3m",
                CC3M,
                (
                    Expected("Train_GCC-training.tsv", "3,318,333 captions"),
                    Expected("Validation_GCC-1.1.0-Validation.tsv", "15,840 captions"),
                ),
                ("cc3m/Train_GCC-training.tsv",),
            ),
            Layout(
                "Conceptual Captions 12M, addresses",
                "cc12m",
                CC12M,
                (Expected("cc12m.tsv", "12,423,374 captions"),),
                ("cc12m/cc12m.tsv",),
            ),
        ),
    ),
    Format(
        name="sbu",
        title="SBU captions (Ordonez et al. 2011), addresses as published",
        fields=("image", "caption"),
        read=read_sbu,
        read_json=read_sbu_json,
        tells="the lists 'image_urls' and 'captions'",
        of_path=is_sbu,
        of_json=is_sbu_json,
        beside=lambda path: [path.with_name(n) for n in SBU_FILES] if is_sbu(str(path)) else [],
        layouts=(
            Layout(
                "SBU captions, addresses",
                "sbu",
                SBU,
                (
                    Expected(SBU_FILES[0], "addresses", other=("sbu-captions-all.json",)),
                    Expected(SBU_FILES[1], "captions", other=("sbu-captions-all.json",)),
                ),
                (f"sbu/{SBU_FILES[0]}", "sbu/sbu-captions-all.json"),
            ),
        ),
    ),
)
