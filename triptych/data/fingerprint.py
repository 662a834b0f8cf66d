"""What a data set was, in a few kilobytes: so that a run that goes on can tell that it changed.

Of the records there is a checksum of each, over what was read, not over the manifest's bytes. They
are kept as digests of `NUM_BLOCKS` blocks, which tell where a change lies, and as a sum that does
not depend on their order. Of the files that records name, such as images and shards, there are
sizes and times, and the content of one a block: of all, in a small set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from triptych.data.columns import RECORDS, raw_rows
from triptych.data.index import file_facts
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.data.storage import is_url

NUM_BLOCKS = 64
MAX_FILES = 32_768
"""Files that are looked at; of more, those of records that lie evenly among all."""

PIECE_BYTES = 65_536
"""Read at the beginning, in the middle and at the end of a file whose content is looked at."""

GROUPS = ("images", "texts", "other fields")
"""What a record's three checksums are of."""

SETTINGS = ("split", "kind", "ratio")
"""Of a source: they decide what is drawn, and are no part of a record."""

Plain = dict[str, Any]


def fingerprint(
    records: Sequence[Record], source: DataSourceConfig, like: Plain | None = None
) -> Plain:
    """Return the fingerprint of one source, as JSON values.

    Args:
        records: All that was read of it, in order.
        source: Where it came from.
        like: An earlier fingerprint, whose blocks are to be compared with these.
    """
    root = _root(source)
    checksums = np.fromiter(
        (value for row in raw_rows(records) for value in _checksums(row, root)), np.uint32
    ).reshape(-1, len(GROUPS))
    size = like["block_records"] if like else max(1, -(-len(checksums) // NUM_BLOCKS))
    paths = _paths(records)
    files = [] if not paths else file_facts(paths)
    file_size = like["block_files"] if like else max(1, -(-len(files) // NUM_BLOCKS))
    return {
        "path": source.path,
        "settings": {name: getattr(source, name) for name in SETTINGS},
        "records": len(checksums),
        "block_records": size,
        "blocks": _blocks(checksums, size, lambda part: [_digest(c) for c in part.T]),
        "any_order": _sum(checksums),
        "files": len(files),
        "gone": [path for path, facts in zip(paths, files, strict=True) if facts[1] < 0][:1],
        "block_files": file_size,
        "file_blocks": _blocks(files, file_size, _file_block),
    }


@dataclass(frozen=True, slots=True)
class Differences:
    """What two fingerprints of one source tell.

    Attributes:
        changes: What makes another data set of it, in words.
        notes: What looks otherwise, while the content is the same.
    """

    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def differences(before: Plain, now: Plain, records: Sequence[Record]) -> Differences:
    """Compare the fingerprint of a source with that of its records now, made `like` it."""
    changes = [
        f"its {name} was {before['settings'].get(name)!r} and is {value!r}"
        for name, value in now["settings"].items()
        if before["settings"].get(name) != value
    ]
    changes += _changed_records(before, now)
    notes = []
    if now["gone"]:
        changes.append(f"a file is gone: {now['gone'][0]}")
    elif before["files"] == now["files"] and not changes:
        changed, copied = _changed_files(before, now, records)
        changes += changed
        notes += copied
    if before["path"] != now["path"] and not changes:
        notes.append(f"was at {before['path']} before, and holds the same")
    return Differences(tuple(changes), tuple(notes))


def _changed_records(before: Plain, now: Plain) -> list[str]:
    old, new = before["blocks"], now["blocks"]
    if old == new and before["records"] == now["records"]:
        return []
    if before["records"] == now["records"] and before["any_order"] == now["any_order"]:
        return [f"the order of its {now['records']:,} records"]
    counts = ""
    if before["records"] != now["records"]:
        counts = f"it had {before['records']:,} records and has {now['records']:,}; "
    places = [i for i in range(max(len(old), len(new))) if old[i : i + 1] != new[i : i + 1]]
    first, size = places[0], now["block_records"]
    end = min((first + 1) * size, max(before["records"], now["records"]))
    where = f"record {end:,}" if size == 1 else f"records {first * size + 1:,} to {end:,}"
    if counts:
        return [f"{counts}the first difference is in {where}"]
    groups = [
        name
        for number, name in enumerate(GROUPS)
        if any(old[place][number] != new[place][number] for place in places)
    ]
    more = f" and {len(places) - 1} other parts" if len(places) > 1 else ""
    return [f"{' and '.join(groups)} in {where}{more}"]


def _changed_files(
    before: Plain, now: Plain, records: Sequence[Record]
) -> tuple[list[str], list[str]]:
    """Return what files have changed, and whether all were copied."""
    pairs = list(zip(before["file_blocks"], now["file_blocks"], strict=True))
    later = [old["times"] != new["times"] for old, new in pairs]
    copied = now["files"] > 1 and all(later)
    for number, (old, new) in enumerate(pairs):
        if old["sizes"] != new["sizes"]:
            what = "another size"
        elif old["content"] != new["content"]:
            what = "other content"
        elif later[number] and not new["whole"] and not copied:
            what = "another time, and the same size"
        else:
            continue
        paths = _paths(records)[number * now["block_files"] :][: now["block_files"]]
        which = paths[0] if len(paths) == 1 else f"a file from {paths[0]} to {paths[-1]}"
        return [f"{which} has {what}"], []
    is_seen = all(new["whole"] for _, new in pairs)
    if copied and not is_seen:
        return [], ["all its files have other times and the same sizes: taken to be copies"]
    return [], []


def _root(source: DataSourceConfig) -> bytes:
    """Return what paths of a source's files begin with, so that they can be told apart from it."""
    if is_url(source.path):
        root = source.path.rpartition("/")[0]
    elif source.image_root is None and Path(source.path).is_dir():
        root = source.path
    else:
        root = str(source.root)
    return f"{root.rstrip('/')}/".encode("utf-8", "surrogatepass")


def _checksums(row: Sequence[Any], root: bytes) -> tuple[int, int, int]:
    """Return the checksums of a row of `columns.RECORDS`, wherever the data lies."""
    _, path, offset, size, member, image_id, caption, text, rest = row
    image = b"%b\0%b\0%b" % (path or b"", member or b"", image_id or b"")
    if root in image:
        image = image.replace(root, b"")
    if offset is not None:
        image += b"\0%d %d" % (offset, -1 if size is None else size)
    texts = caption if text is None else b"%b\0%b" % (caption or b"", text)
    if rest is not None and root in rest:
        rest = rest.replace(root, b"")
    return crc32(image), crc32(texts or b""), crc32(rest or b"")


def _paths(records: Sequence[Record]) -> list[str]:
    """Return the local files that some records name, each once, in order."""
    stride = -(-len(records) // MAX_FILES)
    found: dict[str, None] = {}
    rows: Iterator[tuple[Any, ...]] = raw_rows(records, stride) if stride else iter(())
    for row in rows:
        if row[-1] is None:  # most kinds of data
            if row[1] is not None:
                found[row[1]] = None
            continue
        record = RECORDS.join(tuple(map(_text, row)))
        sources = (*record.all_images(), record.codes, record.mask)
        paths = [source.path for source in sources if source is not None]
        paths += [] if record.video is None else [record.video]
        found |= dict.fromkeys(path.encode("utf-8", "surrogatepass") for path in paths)  # type: ignore[misc]
    paths = [_text(path) for path in found]
    return [path for path in paths if not is_url(path)]


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _blocks(items: Any, size: int, describe: Callable[[Any], Any]) -> list[Any]:
    return [describe(items[start : start + size]) for start in range(0, len(items), size)]


def _digest(value: Any) -> str:
    """Return 8 bytes in hexadecimal digits that stand for an array, or for JSON values."""
    plain = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return hashlib.blake2b(plain, digest_size=8).hexdigest()


def _sum(checksums: NDArray[np.uint32]) -> str:
    """Return a sum over rows that does not depend on their order."""
    mixed = np.zeros(len(checksums), dtype=np.uint64)
    for column in checksums.T.astype(np.uint64):  # multiply and xorshift, as splitmix64 does
        mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
    return f"{int(mixed.sum(dtype=np.uint64)):016x}"


def _file_block(facts: Sequence[Sequence[Any]]) -> Plain:
    """Return digests of sizes and times, and the content of the first file."""
    path, size, _ = facts[0]
    return {
        "sizes": _digest([fact[1] for fact in facts]),
        "times": _digest([fact[2] for fact in facts]),
        "content": _content(path, size),
        "whole": len(facts) == 1 and size <= 3 * PIECE_BYTES,
    }


def _content(path: str, size: int) -> str:
    """Return a digest of three pieces of a file, of all of it if it is small."""
    digest = hashlib.blake2b(digest_size=8)
    if size <= 0:  # not there, or a folder
        return digest.hexdigest()
    starts = (0, PIECE_BYTES, 2 * PIECE_BYTES)
    if size > 3 * PIECE_BYTES:
        starts = (0, (size - PIECE_BYTES) // 2, size - PIECE_BYTES)
    try:
        with Path(path).open("rb") as file:
            for start in starts:
                file.seek(start)
                digest.update(file.read(PIECE_BYTES))
    except OSError:  # the run says more of it when it reads it
        pass
    return digest.hexdigest()
