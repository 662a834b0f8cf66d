"""An index on disk: vectors in an Arrow file, what they belong to in a parquet table.

```
INDEX/
  README.md          which model made it, and how the files are read without Triptych
  index.json         format, model, number of images, and the folder that holds them
  g000001/           written whole before index.json names it
    vectors.arrow    one column, `vector`: (N, E) float16, uncompressed, so that it can be mapped
    images.parquet   row n belongs to vector n
    vectors.faiss    an approximate index, for many images
  skipped.jsonl      images that could not be used
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from triptych.core.errors import ConfigError, DataError
from triptych.core.files import write_atomic, write_json
from triptych.core.reading import check_regular, read_json_object
from triptych.data.records import ImageSource

Vectors = NDArray[np.float16]

FORMAT = 1
INDEX_FILE = "index.json"
README = "README.md"
VECTORS = "vectors.arrow"
IMAGES = "images.parquet"
FAISS = "vectors.faiss"
ROWS_AT_ONCE = 65_536

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("member", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("file_size", pa.int64()),
        ("file_time_ns", pa.int64()),
    ]
)
"""Of `images.parquet`. An image is a file (`path`), or a part of a tar shard or table: see
`ImageSource`. `file_size` and `file_time_ns` are those of the file at `path` when it was read."""


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """One row of `images.parquet`.

    Attributes:
        id: Of the record, or of the image where the dataset names it.
        image: Where its bytes lie.
        captions: Those of the dataset.
        width_px: Of the original image.
        height_px: Of the original image.
        file_size: Bytes of the file that holds it; -1 where nothing was asked, as behind a URL.
        file_time_ns: When that file was changed last.
    """

    id: str
    image: ImageSource
    captions: tuple[str, ...]
    width_px: int
    height_px: int
    file_size: int
    file_time_ns: int

    def row(self) -> dict[str, Any]:
        """Return the values by column."""
        return {
            "id": self.id,
            "path": self.image.path,
            "offset": self.image.offset,
            "size": self.image.size,
            "member": self.image.member,
            "captions": list(self.captions),
            "width_px": self.width_px,
            "height_px": self.height_px,
            "file_size": self.file_size,
            "file_time_ns": self.file_time_ns,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> IndexedImage:
        """Return the image of a row."""
        image = ImageSource(row["path"], row["offset"], row["size"], row["member"])
        return cls(
            row["id"],
            image,
            tuple(row["captions"]),
            row["width_px"],
            row["height_px"],
            row["file_size"],
            row["file_time_ns"],
        )


@dataclass(frozen=True, slots=True)
class IndexState:
    """What `index.json` says.

    Attributes:
        model: Path of the model folder, as it was given.
        model_key: Hash of the files of that folder.
        width: E of the vectors.
        num_images: N.
        generation: Name of the folder that holds them.
        content_key: Hash of all rows of `images.parquet`.
        method: "exact", or the description of the faiss index.
        recall_at_10: Of the faiss index against exact search; None for exact search.
    """

    model: str
    model_key: str
    width: int
    num_images: int
    generation: str
    content_key: str
    method: str = "exact"
    recall_at_10: float | None = None


def read_state(folder: Path) -> IndexState | None:
    """Return what an index says of itself; None where there is none.

    Raises:
        DataError: It is damaged, or of a later format.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    try:
        stored = read_json_object(path)
    except DataError as error:
        raise DataError(f"{error}: build the index again") from error
    if stored.get("format") != FORMAT:
        found = stored.get("format")
        raise DataError(f"{path} is of format {found!r}, and this version reads format {FORMAT}")
    fields = {name: stored.get(name) for name in IndexState.__dataclass_fields__}
    lacking = [name for name, value in fields.items() if value is None and name != "recall_at_10"]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}: build the index again")
    return IndexState(**fields)  # type: ignore[arg-type]


def write_state(folder: Path, state: IndexState) -> None:
    """Make a generation the current one, in one step, and remove the others."""
    write_atomic(folder / README, _readme(state))
    fields = {name: getattr(state, name) for name in IndexState.__dataclass_fields__}
    write_json(folder / INDEX_FILE, {"format": FORMAT, **fields})
    for old in folder.glob("g[0-9]*"):
        if old.name != state.generation:
            shutil.rmtree(old, ignore_errors=True)


def next_generation(state: IndexState | None) -> str:
    """Return the name of the folder after the current one."""
    return f"g{1 if state is None else int(state.generation[1:]) + 1:06d}"


def vector_column(vectors: Vectors) -> pa.FixedSizeListArray:
    """Return vectors (n, E) as a column of n lists."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def write_vectors(path: Path, width: int, parts: Iterable[Vectors]) -> int:
    """Write vectors (n, E) float16, part by part; return how many."""
    kind = pa.list_(pa.float16(), width)
    number = 0
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("vector", kind)])) as writer,
    ):
        for part in parts:
            writer.write_batch(pa.record_batch([vector_column(part)], names=["vector"]))
            number += len(part)
    return number


def map_vectors(path: Path, width: int) -> list[Vectors]:
    """Return the vectors as arrays (n, E) float16 on the mapped file; nothing is copied.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        check_regular(path)
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        found = [
            batch.column(0).flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
            for batch in batches
            if len(batch)
        ]
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise DataError(f"{path} cannot be read ({error}): build the index again") from error
    return found


def write_images(path: Path, images: Iterable[Sequence[IndexedImage]]) -> None:
    """Write rows, part by part."""
    with pq.ParquetWriter(str(path), SCHEMA) as writer:
        for part in images:
            writer.write_table(pa.Table.from_pylist([image.row() for image in part], SCHEMA))


def read_images(path: Path) -> Iterator[IndexedImage]:
    """Yield all rows in order.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        check_regular(path)
        with pq.ParquetFile(str(path)) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield IndexedImage.of(row)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}): build the index again") from error


def check_model(folder: Path, state: IndexState, model: Path, key: str) -> None:
    """Raise a ConfigError where a model is not the one that made an index."""
    if state.model_key != key:
        raise ConfigError(
            f"{folder} was built with the model {state.model}, and {model} is another one (or was "
            f"trained on since): search it with that model, or build a new index for this one with "
            "another --out"
        )


def _readme(state: IndexState) -> str:
    if state.recall_at_10 is None:
        search = "Search is exact: a matrix product with all vectors."
    else:
        search = (
            f"`{FAISS}` is a faiss index ({state.method}); it finds {state.recall_at_10:.1%} of "
            "the exact first 10."
        )
    return f"""# Index of {state.num_images:,} images

Made by `triptych index` with the model `{state.model}` (key {state.model_key}).
Search it with `triptych search`, or from Python with `triptych.open_index`. {search}

- `{state.generation}/{VECTORS}`: Arrow IPC; the column `vector` has {state.num_images:,} x
  {state.width} float16, of length 1.
- `{state.generation}/{IMAGES}`: row n belongs to vector n: `id`, `path` (with `offset`, `size` and
  `member` for an image in a tar shard or a table), `captions`, `width_px`, `height_px`, and size
  and time of the file when it was read.

```python
import pyarrow as pa, pyarrow.parquet as pq

vectors = pa.ipc.open_file(pa.memory_map("{state.generation}/{VECTORS}")).read_all()
images = pq.read_table("{state.generation}/{IMAGES}")
```
"""
