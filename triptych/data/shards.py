"""Write any dataset as tar shards: mixed, resized if asked, in parallel, and so that it can go on.

Which sample lies in which shard depends on the data, the seed and the options alone. Each shard is
written whole or not at all, and after it its index: the records in columns, with the size and the
SHA-256 of the shard. A shard with an index is done, so the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import sys
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.files import has_entries, make_folder, placed, write_json, writing
from triptych.core.reading import read_json, read_json_object, reading
from triptych.core.rng import sample_generator
from triptych.data.columns import RECORDS, ColumnWriter
from triptych.data.images import decode_to_shrink
from triptych.data.manifest import read_records, source_facts
from triptych.data.readers.webdataset import (
    INDEX_SUFFIX,
    any_index,
    expand_shards,
    in_shard,
    is_shards,
    read_index,
    read_shard,
)
from triptych.data.records import Record
from triptych.data.samples import (
    SharedImage,
    add_member,
    group_by_image,
    image_extension,
    sample_entry,
)
from triptych.data.skips import VERB_FLAG, ImageProblem, SkipKind, SkipLog, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.storage import open_file

PLAN_FILE, LISTING_FILE = "plan.json", "shards.json"
SHARD_STREAM = 251
JPEG_QUALITY = 95
REFUSED = {
    "images": "several images",
    "video": "a clip",
    "text": "a text beside its image, which a shard could not tell from a caption",
    "mask": "a mask of its image's pixels",
    "codes": "stored codes, which `triptych data tokenize-images` writes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How shards are made.

    Attributes:
        samples_per_shard: Images in a shard.
        max_side: Longest side in pixels of an image; larger ones are shrunk, and their boxes with
            them. None copies all images as they are.
        seed: Of the order of the images.
    """

    samples_per_shard: int = 5000
    max_side: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject numbers out of range."""
        count = self.samples_per_shard
        check(count >= 1, "samples_per_shard", count, "be at least 1")
        usable = self.max_side is None or self.max_side >= 1
        check(usable, "max_side", self.max_side, "be at least 1 pixel, or absent")


@dataclass(frozen=True, slots=True)
class WrittenShards:
    """What was written.

    Attributes:
        num_shards: All shards of the folder.
        num_kept: Those that an earlier call had written.
        num_images: Samples in all shards.
        num_records: Records that they serve; captions of one image share a sample.
        num_bytes: Size of all shards.
        num_skipped: Entries and images that could not be used.
    """

    num_shards: int
    num_kept: int
    num_images: int
    num_records: int
    num_bytes: int
    num_skipped: int


def write_shards(
    source: DataSourceConfig,
    out: Path,
    options: ShardOptions,
    *,
    num_workers: int = 1,
    max_bad_share: float = 0.01,
    on_progress: Callable[[int, int], None] | None = None,
) -> WrittenShards:
    """Write `000000.tar`, their indices and `shards.json`, or go on with them.

    Args:
        source: The dataset; each record has one image.
        out: A new or empty folder, or one that the same call began to fill.
        options: How shards are made.
        num_workers: Processes that write, a shard each.
        max_bad_share: Largest allowed share of images that cannot be read, from 0 to 1.
        on_progress: Called with the shards done and all shards.

    Raises:
        DataError: The folder holds something else, a record has no single image, too much is bad,
            or a process died.
    """
    check(num_workers >= 1, "num_workers", num_workers, "be at least 1")
    found = read_records(source)
    groups = _Groups.of(found.records, source.path)
    _claim(out, source, options, len(found.records))
    order = sample_generator(options.seed, 0, 0, SHARD_STREAM).permutation(len(groups))
    job = _Job(found.records, groups, order, out, options)
    numbers = range(-(-len(groups) // options.samples_per_shard))
    kept = [number for number in numbers if _index_path(out, number).is_file()]
    todo = sorted(set(numbers) - set(kept))
    for done, _ in enumerate(_written(job, todo, num_workers), len(kept) + 1):
        if on_progress is not None:
            on_progress(done, len(numbers))
    about = [_about(out, number) for number in numbers]
    skipped = [Skipped(SkipKind(kind), *rest) for a in about for kind, *rest in a.pop("skipped")]
    with writing(f"shards {out}", out, only_full=True):
        write_json(out / LISTING_FILE, {"version": 1, "shards": about})
        log = SkipLog(out, found.num_samples, max_bad_share, flag=VERB_FLAG)
        log.add_all(found.skipped)
        log.add_all(skipped)
    return WrittenShards(
        num_shards=len(numbers),
        num_kept=len(kept),
        num_images=sum(a["samples"] for a in about),
        num_records=sum(a["records"] for a in about),
        num_bytes=sum(a["bytes"] for a in about),
        num_skipped=log.num_bad,
    )


def shrink(data: bytes, max_side: int) -> tuple[bytes, float]:
    """Return an image of at most `max_side` pixels a side, and by what its sides were multiplied.

    A larger one is averaged over areas and encoded as JPEG; another one stays as it is.

    Raises:
        ImageProblem: It cannot be decoded.
    """
    pixels, (width, height) = decode_to_shrink(data)
    scale = max_side / max(height, width)
    if scale >= 1:
        return data, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    flags = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), flags)[1]
    return encoded.tobytes(), scale


@dataclass(frozen=True, slots=True)
class _Groups:
    """The records of each image.

    Attributes:
        rows: (records,) numbers of records, those of an image one after the other.
        starts: (images + 1,) where each image's begin; images come in the order of their first.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, records: Sequence[Record], where: str) -> _Groups:
        """Group by image; raise a DataError where a record has no single image."""
        keys = array("q")
        for record in records:
            _check_record(record, where)
            keys.append(hash(record.image))
        _, first, inverse = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
        owner = first[inverse]  # (records,) the first record of the same image
        rows = np.lexsort((np.arange(len(owner)), owner))
        starts = np.flatnonzero(np.diff(owner[rows], prepend=-1))
        return cls(rows, np.append(starts, len(rows)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of_image(self, number: int) -> NDArray[np.int64]:
        """Return the numbers of an image's records."""
        return self.rows[self.starts[number] : self.starts[number + 1]]


def _check_record(record: Record, where: str) -> None:
    if record.image is None and not record.images and record.video is None:
        has: str | None = "no image"
    else:
        has = next((what for name, what in REFUSED.items() if getattr(record, name)), None)
    if has is not None:
        raise DataError(
            f"{where}: record {record.record_id} has {has}: shards hold single images with what is "
            "known of them"
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What a process needs to write any shard."""

    records: Sequence[Record]
    groups: _Groups
    order: NDArray[np.int64]
    out: Path
    options: ShardOptions

    def images(self, shard: int) -> NDArray[np.int64]:
        """Return the images of a shard, in their order."""
        size = self.options.samples_per_shard
        return self.order[shard * size : (shard + 1) * size]


def _claim(out: Path, source: DataSourceConfig, options: ShardOptions, num_records: int) -> None:
    """Say in a new folder what it is for, or check that it is for the same."""
    plain = {"path": source.path, "reader": source.reader, "split": source.split}
    plan = {"version": 1, **plain, **asdict(options), "num_records": num_records}
    plan["files"] = source_facts(source)
    path = out / PLAN_FILE
    if path.is_file():
        if read_json(path) != plan:
            raise DataError(
                f"{out} holds shards of other data or options, as {path} says: go on with the same "
                "command, choose another folder, or remove this one"
            )
        return
    if has_entries(out):
        raise DataError(f"{out} is not empty: choose another folder, or remove it first")
    make_folder(out)
    write_json(path, plan)


def _written(job: _Job, todo: Sequence[int], num_workers: int) -> Iterator[int]:
    """Write shards; yield the number of each that is done."""
    if num_workers == 1 or len(todo) < 2:
        for number in todo:
            _write_shard(job, number)
            yield number
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(num_workers, context, _begin, (job,))
    waiting = list(reversed(todo))
    running: dict[Future[None], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * num_workers:
                number = waiting.pop()
                running[pool.submit(_write_own, number)] = number
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                done.result()
                yield running.pop(done)
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that writes shards died ({error}), perhaps for lack of memory: the same "
            "command goes on with what is done, and --num-workers takes fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_job: _Job | None = None


def _begin(job: _Job) -> None:
    global _job
    _job = job
    cv2.setNumThreads(0)


def _write_own(number: int) -> None:
    assert _job is not None
    _write_shard(_job, number)


class _Hashed(io.RawIOBase):
    """A file that takes what is written, and its SHA-256 on the way."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Add bytes; return how many."""
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.size

    def close(self) -> None:
        """Close the file itself."""
        self._file.close()
        super().close()

    def finish(self) -> str:
        """Flush to the disk and return the SHA-256 in hexadecimal digits."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()


def _write_shard(job: _Job, number: int) -> None:
    """Write a shard, then its index.

    Raises:
        DataError: The disk refuses; the shards before it stay.
    """
    path = job.out / f"{number:06d}.tar"
    with writing(f"shard {path}", path):
        with placed(path) as temporary:
            about = _write_tar(job, number, temporary)
        own = [entry for entry in read_shard(str(path)) if isinstance(entry, Record)]
        about |= {"name": path.name, "records": len(own)}
        with placed(_index_path(job.out, number)) as temporary:
            writer = ColumnWriter(temporary, RECORDS, {"shard": json.dumps(about)})
            writer.write([in_shard(record, path.name) for record in own])
            writer.close()


def _write_tar(job: _Job, number: int, path: Path) -> dict[str, Any]:
    """Write the samples of a shard; return what its index says of the file."""
    skipped: list[Skipped] = []
    first = number * job.options.samples_per_shard
    num_samples = 0
    with (
        contextlib.closing(_Hashed(path)) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for image in job.images(number):
            rows = job.groups.of_image(int(image))
            records = [job.records[int(row)] for row in rows]
            for sample in group_by_image(records):
                data = _image_bytes(sample, job.options.max_side, skipped)
                if data is not None:
                    _add_sample(tar, f"{first:09d}_{num_samples:06d}", sample, data)
                    num_samples += 1
        tar.close()  # the hash is of the whole file
        sha256 = file.finish()
    return {
        "name": "",
        "samples": num_samples,
        "records": 0,
        "bytes": file.size,
        "sha256": sha256,
        "skipped": [(s.kind.value, s.where, s.message, s.record_id) for s in skipped],
    }


def _image_bytes(sample: SharedImage, max_side: int | None, skipped: list[Skipped]) -> bytes | None:
    """Return the image as the shard holds it, and scale its boxes; None where it is skipped."""
    try:
        data = sample.image.read()
        if max_side is None:
            return data
        data, scale = shrink(data, max_side)
    except ImageProblem as problem:
        where = str(sample.image)
        skipped += [Skipped(problem.kind, where, str(problem), r.record_id) for r in sample.records]
        return None
    if scale != 1.0:
        sample.records = [_scaled(record, scale) for record in sample.records]
    return data


def _scaled(record: Record, scale: float) -> Record:
    if record.box is None:
        return record
    x, y, width, height = (value * scale for value in record.box)
    return replace(record, box=(x, y, width, height))


def _add_sample(tar: tarfile.TarFile, key: str, sample: SharedImage, data: bytes) -> None:
    add_member(tar, f"{key}.{image_extension(sample.image, data)}", data)
    entry: Mapping[str, Any] = sample_entry(sample.records)
    if len(sample.records) == 1:
        entry = {"id": sample.records[0].record_id, **entry}
    add_member(tar, f"{key}.json", json.dumps(entry, ensure_ascii=False).encode())


def _index_path(out: Path, number: int) -> Path:
    return out / f"{number:06d}.tar{INDEX_SUFFIX}"


def _about(out: Path, number: int) -> dict[str, Any]:
    index = read_index(str(out / f"{number:06d}.tar"))
    if index is None:
        raise DataError(f"{_index_path(out, number)} does not fit its shard: remove both, go on")
    return dict(json.loads(index.about["shard"]))


def verify_shards(path: str) -> tuple[int, list[Skipped]]:
    """Compare the bytes of shards with their indices, where they have one.

    Args:
        path: What a source names; those that a folder's `shards.json` lists must all be there.

    Returns:
        How many shards have an index, and what is wrong with those that are damaged or missing.
    """
    if not is_shards(path):
        return 0, []
    problems = list(_missing(Path(path)))
    number = len(problems)
    for shard in expand_shards(path):
        index = any_index(shard)
        if index is None:
            continue
        number += 1
        about = json.loads(index.about["shard"])
        message = _damage(shard, about["bytes"], about["sha256"])
        if message:
            problems.append(Skipped(SkipKind.BAD_CHECKSUM, shard, message))
    return number, problems


def _missing(folder: Path) -> Iterator[Skipped]:
    listing = folder / LISTING_FILE
    if listing.is_file():
        with reading(listing):
            names = [str(about["name"]) for about in read_json_object(listing)["shards"]]
        for shard in (folder / name for name in names):
            if not shard.is_file():
                message = f"is missing; {listing} lists it"
                yield Skipped(SkipKind.MISSING_FILE, str(shard), message)


def _damage(shard: str, size: int, sha256: str) -> str:
    digest, length = hashlib.sha256(), 0
    with open_file(shard) as file:
        while piece := file.read(2**20):
            digest.update(piece)
            length += len(piece)
    found = digest.hexdigest()
    if length != size:
        return f"has {length} bytes, and had {size} when it was written"
    return "" if found == sha256 else f"its bytes changed since it was written (SHA-256 {found})"
