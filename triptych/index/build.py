"""Build an index of a dataset's images, or bring one up to date."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.config import MAX_BATCH_SIZE, MAX_WORKERS, check_range
from triptych.core.errors import ConfigError, DataError
from triptych.core.files import folder_for_one, make_folder, placed, writing
from triptych.core.processes import keep_freed_memory
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import ImageSource, Record
from triptych.data.skips import VERB_FLAG, SkipLog
from triptych.data.source import DataSourceConfig
from triptych.data.storage import is_url
from triptych.data.transforms.pipeline import TransformedImage
from triptych.evaluation.evaluator import evaluation_mode
from triptych.index.approximate import build_approximate
from triptych.index.store import (
    FAISS,
    IMAGES,
    ROWS_AT_ONCE,
    VECTORS,
    IndexedImage,
    IndexState,
    Vectors,
    check_model,
    map_vectors,
    next_generation,
    read_images,
    read_state,
    vector_column,
    write_images,
    write_state,
    write_vectors,
)
from triptych.serving.loading import LoadedModel

PART = 1024
"""Images whose vectors are saved together: what a killed build loses at most."""

BUILDING = ".building"
OWN_NAMES = re.compile(r"\.|g\d|skipped\.jsonl$|README\.md$")
APPROXIMATE_FROM = 1_000_000
"""Vectors from which an approximate index pays; see docs/search.md."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        state: The index.
        num_new: Images that were encoded, now or by an earlier build that was killed.
        num_kept: Images whose vectors were there.
        num_dropped: Images that were indexed and are gone, or were changed.
        num_bad: Images that cannot be used.
    """

    state: IndexState
    num_new: int
    num_kept: int
    num_dropped: int
    num_bad: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A distinct image of the dataset."""

    record: Record
    image: ImageSource
    captions: tuple[str, ...]
    file_size: int
    file_time_ns: int

    @property
    def key(self) -> bytes:
        """What decides whether a stored vector is that of this image."""
        return _key(self.image, self.file_size, self.file_time_ns)


def build_index(
    loaded: LoadedModel,
    source: DataSourceConfig,
    out: Path,
    *,
    found: FoundRecords | None = None,
    approximate: bool | None = None,
    local_batch_size: int = 64,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Index the images of a dataset; encode only those that are new or were changed.

    A build that is killed is continued by the same call, and until it has ended the old index
    stays as it is.

    Args:
        loaded: A model that embeds images.
        source: The dataset; of several records of one image, the captions are joined.
        out: The folder of the index.
        found: Its records, where they have been read, or some of them.
        approximate: Whether to add a faiss index; None does so from `APPROXIMATE_FROM` images on.
        local_batch_size: Images in one pass.
        num_workers: Processes that decode images; 0 decodes in this one.
        max_bad_share: Share of images that may be unusable.
        progress: Called with the images encoded and to encode.

    Raises:
        CapabilityError: The model embeds no images.
        ConfigError: The index was made by another model, or another process is building it.
        DataError: No image can be used, or too many cannot.
    """
    check_range("num_workers", num_workers, 0, MAX_WORKERS)
    check_range("local_batch_size", local_batch_size, 1, MAX_BATCH_SIZE)
    loaded.check_trained("embed")
    if loaded.device.type == "cpu":
        keep_freed_memory()
    make_folder(out)
    with folder_for_one(out), writing(f"index {out}", out, only_full=True):
        key = hash_model_folder(loaded.folder)
        state = read_state(out)
        if state is not None:
            check_model(out, state, loaded.folder, key)
        elif strays := [path.name for path in out.iterdir() if not OWN_NAMES.match(path.name)]:
            raise ConfigError(f"{out} holds {strays[0]} and no index: choose another folder")
        building = out / BUILDING / key[:16]
        (out / "skipped.jsonl").unlink(missing_ok=True)
        found = read_records(source) if found is None else found
        log = SkipLog(out, found.num_samples, max_bad_share, flag=VERB_FLAG)
        log.add_all(found.skipped)
        wanted = distinct_images(found.records)
        if not wanted:
            raise DataError(f"{source.path} holds no images to index")
        old = _OldVectors(out, state)
        parts = _Parts(building)
        todo = [w for w in wanted if w.key not in old.rows and w.key not in parts.rows]
        _encode(loaded, todo, parts, local_batch_size, num_workers, log, progress)
        kept = [w for w in wanted if w.key in old.rows or w.key in parts.rows]
        if not kept:
            raise DataError(f"no image of {source.path} can be used; they are listed in {log.path}")
        num_old = sum(w.key in old.rows for w in kept)
        images = [parts.image(w) if w.key in parts.rows else old.image(w) for w in kept]
        content = _content_key(images)
        if state is None or state.content_key != content or num_old < len(kept):
            state = _write(out, loaded, key, kept, images, content, old, parts, state, approximate)
        shutil.rmtree(out / BUILDING, ignore_errors=True)
        return BuildReport(
            state, len(kept) - num_old, num_old, len(old.rows) - num_old, log.num_bad
        )


def distinct_images(records: Sequence[Record]) -> list[_Wanted]:
    """Return the images of records in their order, each once, with all its captions."""
    captions: dict[ImageSource, list[str]] = {}
    first: dict[ImageSource, Record] = {}
    for record in records:
        for image in record.all_images():
            first.setdefault(image, record)
            said = captions.setdefault(image, [])
            if record.caption is not None and record.caption not in said:
                said.append(record.caption)
    facts: dict[str, tuple[int, int]] = {}
    wanted = []
    for image, record in first.items():
        if image.path not in facts:
            facts[image.path] = _facts(image.path)
        path = image.path if is_url(image.path) else str(Path(image.path).absolute())
        found = replace(image, path=path)
        wanted.append(_Wanted(record, found, tuple(captions[image]), *facts[image.path]))
    return wanted


def _facts(path: str) -> tuple[int, int]:
    """Return size and time of a file; (-1, -1) for a URL or a file that is not there."""
    if is_url(path):
        return -1, -1
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _key(image: ImageSource, file_size: int, file_time_ns: int) -> bytes:
    text = repr((image.path, image.offset, image.size, image.member, file_size, file_time_ns))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _content_key(images: Sequence[IndexedImage]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(repr(image.row()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class _OldVectors:
    """The vectors of the present index."""

    def __init__(self, out: Path, state: IndexState | None) -> None:
        self.rows: dict[bytes, int] = {}
        self._images: list[IndexedImage] = []
        self._vectors: list[Vectors] = []
        if state is None:
            return
        folder = out / state.generation
        self._images = list(read_images(folder / IMAGES))
        self._vectors = map_vectors(folder / VECTORS, state.width)
        self._starts = np.cumsum([0, *(len(part) for part in self._vectors)])
        self.rows = {
            _key(image.image, image.file_size, image.file_time_ns): row
            for row, image in enumerate(self._images)
        }

    def vector(self, key: bytes) -> Vectors:
        row = self.rows[key]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        found: Vectors = self._vectors[part][row - self._starts[part]]
        return found

    def image(self, wanted: _Wanted) -> IndexedImage:
        stored = self._images[self.rows[wanted.key]]
        return _indexed(wanted, stored.width_px, stored.height_px)


class _Parts:
    """Vectors that a build has made, saved part by part until the index is whole."""

    def __init__(self, folder: Path) -> None:
        for other in folder.parent.glob("*") if folder.parent.is_dir() else ():
            if other != folder:  # of another model
                shutil.rmtree(other, ignore_errors=True)
        make_folder(folder)
        self._folder = folder
        self.rows: dict[bytes, tuple[int, int]] = {}
        self._vectors: list[Vectors] = []
        self._sizes: list[list[tuple[int, int]]] = []
        for path in sorted(folder.glob("part_*.arrow")):
            with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
                table = reader.read_all()
            width = table.schema.field("vector").type.list_size
            flat = table.column("vector").combine_chunks().flatten()
            self._take(
                table.column("key").to_pylist(),
                flat.to_numpy(zero_copy_only=False).reshape(-1, width),
                list(zip(*(table.column(n).to_pylist() for n in ("width_px", "height_px")))),
            )

    def add(self, keys: list[bytes], vectors: Vectors, sizes: list[tuple[int, int]]) -> None:
        """Save a part under a name that it gets when it is whole."""
        table = pa.table(
            {
                "key": pa.array(keys, pa.binary()),
                "vector": vector_column(vectors),
                "width_px": [size[0] for size in sizes],
                "height_px": [size[1] for size in sizes],
            }
        )
        path = self._folder / f"part_{len(self._vectors):06d}.arrow"
        with (
            placed(path) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        self._take(keys, vectors, sizes)

    def _take(self, keys: list[bytes], vectors: Vectors, sizes: list[tuple[int, int]]) -> None:
        number = len(self._vectors)
        self._vectors.append(vectors)
        self._sizes.append(sizes)
        self.rows |= {key: (number, row) for row, key in enumerate(keys)}

    def vector(self, key: bytes) -> Vectors:
        part, row = self.rows[key]
        found: Vectors = self._vectors[part][row]
        return found

    def image(self, wanted: _Wanted) -> IndexedImage:
        part, row = self.rows[wanted.key]
        return _indexed(wanted, *self._sizes[part][row])


def _indexed(wanted: _Wanted, width_px: int, height_px: int) -> IndexedImage:
    record = wanted.record
    own_id = record.record_id if record.image_id is None else record.image_id
    return IndexedImage(
        own_id,
        wanted.image,
        wanted.captions,
        width_px,
        height_px,
        wanted.file_size,
        wanted.file_time_ns,
    )


class _SizedImageCollator:
    """Images with their original sizes: `image`, `size_px` (B, 2) and `index`."""

    needs_boxes = False

    def sample(
        self, record: Record, image: TransformedImage, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Return width and height of the original."""
        del record, rng
        return image.width, image.height

    def batch(self, samples: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Return the sizes."""
        return {"size_px": torch.tensor(samples)}


def _encode(
    loaded: LoadedModel,
    todo: Sequence[_Wanted],
    parts: _Parts,
    local_batch_size: int,
    num_workers: int,
    log: SkipLog,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Encode images, and save their vectors part by part."""
    if not todo:
        return
    records = [replace(w.record, image=w.image, images=()) for w in todo]
    loader = loaded.loader(
        records, _SizedImageCollator(), local_batch_size, log, num_workers=num_workers
    )
    keys: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    rows: list[Vectors] = []
    done = 0

    def save() -> None:
        if keys:
            parts.add(list(keys), np.concatenate(rows), list(sizes))
            for saved in (keys, sizes, rows):
                saved.clear()

    with evaluation_mode(loaded.model), torch.inference_mode(), loaded.autocast():
        for batch in loader:
            features = loaded.model.encode_image(batch["image"].to(loaded.device))
            rows.append(loaded.model.embed_image(features).cpu().numpy().astype(np.float16))
            keys += [todo[i].key for i in batch["index"].tolist()]
            sizes += [(w, h) for w, h in batch["size_px"].tolist()]
            done += len(batch["index"])
            if progress is not None:
                progress(done, len(todo))
            if len(keys) >= PART:
                save()
    save()


def _write(
    out: Path,
    loaded: LoadedModel,
    key: str,
    kept: Sequence[_Wanted],
    images: Sequence[IndexedImage],
    content: str,
    old: _OldVectors,
    parts: _Parts,
    before: IndexState | None,
    approximate: bool | None,
) -> IndexState:
    """Write a new generation, and make it the current one."""
    generation = next_generation(before)
    folder = out / generation
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
    folder.mkdir()

    def vectors() -> Iterator[Vectors]:
        for start in range(0, len(kept), ROWS_AT_ONCE):
            rows = [
                parts.vector(w.key) if w.key in parts.rows else old.vector(w.key)
                for w in kept[start : start + ROWS_AT_ONCE]
            ]
            yield np.stack(rows)

    width = len(parts.vector(kept[0].key) if kept[0].key in parts.rows else old.vector(kept[0].key))
    method, recall = "exact", None
    try:
        write_vectors(folder / VECTORS, width, vectors())
        write_images(
            folder / IMAGES,
            (images[start : start + ROWS_AT_ONCE] for start in range(0, len(images), ROWS_AT_ONCE)),
        )
        if approximate or (approximate is None and len(kept) >= APPROXIMATE_FROM):
            method, recall = build_approximate(map_vectors(folder / VECTORS, width), folder / FAISS)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # the parts stay, from which it is made again
        raise
    state = IndexState(
        model=str(loaded.folder),
        model_key=key,
        width=width,
        num_images=len(kept),
        generation=generation,
        content_key=content,
        method=method,
        recall_at_10=recall,
    )
    write_state(out, state)
    return state
