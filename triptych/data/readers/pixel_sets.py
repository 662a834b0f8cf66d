"""Image classification sets that store pixels: CIFAR, MNIST, STL-10, SVHN, FER2013, PatchCamelyon.

Each folder is read as it is published. What is compressed is unpacked into the cache folder once.
The order of bytes in a file comes from the page that publishes it, named at each reader.
"""

from __future__ import annotations

import csv
import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.core.errors import DataError
from triptych.core.extras import import_extra
from triptych.core.reading import check_regular, open_regular, read_bytes, read_text, reading
from triptych.data.lines import MAX_LINE, bounded_lines
from triptych.data.matlab import load_mat
from triptych.data.pixels import pixel_layout, unpacked
from triptych.data.readers.class_sets import (
    AGAIN,
    Entries,
    Found,
    class_format,
    needed,
    read_parts,
)
from triptych.data.readers.set_names import CIFAR10, FACES, STL10, TISSUE
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.spec import Expected, Format, Layout


@dataclass(frozen=True, slots=True)
class Block:
    """Images of one file, one behind the other.

    Attributes:
        path: The file that holds the pixels.
        name: What a record's id begins with, and messages call it.
        start: Byte of the first image's first pixel.
        stride: Bytes from one image to the next.
        shape: Order, channels, height and width, as `pixels.pixel_layout` takes them.
        labels: The class of each image, as a number; None where there are none.
    """

    path: Path
    name: str
    start: int
    stride: int
    shape: tuple[str, int, int, int]
    labels: Sequence[int] | None
    count: int

    def records(self, names: Sequence[str]) -> Found:
        """Yield a record for each image; an image whose label has no name is skipped."""
        order, channels, height, width = self.shape
        layout = pixel_layout(order, channels, height, width)
        for number in range(self.count):
            own_id = f"{self.name}[{number}]"
            label = None if self.labels is None else int(self.labels[number])
            if label is not None and not 0 <= label < len(names):
                message = f"label {label} is not from 0 to {len(names) - 1}"
                yield Skipped(SkipKind.BAD_LABEL, own_id, message)
                continue
            image = ImageSource(
                str(self.path),
                self.start + number * self.stride,
                channels * height * width,
                own_id,
                layout,
            )
            yield Record(
                record_id=own_id,
                image=image,
                image_id=own_id,
                label=None if label is None else names[label],
            )


def _rows(path: Path, size: int) -> int:
    """Return how many rows of `size` bytes a file has.

    Raises:
        DataError: It is empty, or its size is no multiple of a row's.
    """
    num_bytes = path.stat().st_size
    if num_bytes == 0 or num_bytes % size:
        raise DataError(
            f"{path}: has {num_bytes:,} bytes, which are no rows of {size:,}: it is cut short or "
            f"another file. {AGAIN}"
        )
    return num_bytes // size


def _column(path: Path, stride: int, offset: int) -> NDArray[np.uint8]:
    """Return one byte of each row of a file, without the rest in memory."""
    return np.array(np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, stride)[:, offset])


def _names(path: Path, count: int) -> tuple[str, ...]:
    """Return the class names of a file, one a line."""
    lines = read_text(path).split("\n")
    names = tuple(line.strip().replace("_", " ") for line in lines if line.strip())
    if len(names) != count:
        raise DataError(f"{path}: has {len(names)} class names, {count} are needed. {AGAIN}")
    return names


def read_cifar(source: DataSourceConfig) -> Entries:
    """Read CIFAR-10 or CIFAR-100, the binary version (Krizhevsky, cs.toronto.edu/~kriz/cifar.html).

    A row is a label, or in CIFAR-100 a coarse and a fine one, and 3,072 bytes: 32 x 32 red, then
    green, then blue. CIFAR-100's labels are the fine ones.

    Raises:
        DataError: The part does not exist, a file is missing or cut short, or the files are those
            of the python version.
    """
    root = Path(source.path)
    if any((root / name).is_file() for name in ("batches.meta", "meta")):
        raise DataError(
            f"{root}: is CIFAR's python version, whose files are pickles: they could run code and "
            "are not read. Download the binary version from the same page "
            "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
        )
    is_10 = (root / "batches.meta.txt").exists() or (root / "data_batch_1.bin").exists()
    if is_10:
        files = {
            "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
            "test": ["test_batch.bin"],
        }
        names: Sequence[str] = CIFAR10
    else:
        files = {"train": ["train.bin"], "test": ["test.bin"]}
        names = _names(needed(root, "fine_label_names.txt"), 100)
    num_labels = 1 if is_10 else 2
    stride = num_labels + 3072

    def read(part: str) -> Found:
        for path in [needed(root, name) for name in files[part]]:
            count = _rows(path, stride)
            labels = _column(path, stride, num_labels - 1)
            shape = ("planes", 3, 32, 32)
            block = Block(path, path.stem, num_labels, stride, shape, labels.tolist(), count)
            yield from block.records(names)

    return read_parts(source, ("train", "test"), read)


IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801  # unsigned bytes in three dimensions, in one
MNIST_PARTS = {"train": "train", "test": "t10k"}


def read_mnist(source: DataSourceConfig) -> Entries:
    """Read MNIST's idx files, compressed or not (LeCun, yann.lecun.com/exdb/mnist).

    Labels are the digits as they are written, "0" to "9".

    Raises:
        DataError: The part does not exist, or a file is missing, cut short or of another kind.
    """
    root = Path(source.path)

    def read(part: str) -> Found:
        images = _unzipped(needed(root, *_idx_names(MNIST_PARTS[part], "images", 3)))
        labels = _unzipped(needed(root, *_idx_names(MNIST_PARTS[part], "labels", 1)))
        count, height, width = _idx_header(images, IDX_IMAGES, 3)
        (num_labels,) = _idx_header(labels, IDX_LABELS, 1)
        if num_labels != count:
            raise DataError(f"{images}: has {count:,} images, and {labels} {num_labels:,} labels")
        with reading(labels):
            numbers = np.frombuffer(read_bytes(labels), dtype=np.uint8, offset=8).tolist()
        shape = ("pixels", 1, height, width)
        block = Block(images, part, 16, height * width, shape, numbers, count)
        yield from block.records([str(digit) for digit in range(10)])

    return read_parts(source, ("train", "test"), read)


def _idx_names(part: str, what: str, dimensions: int) -> list[str]:
    plain = [f"{part}-{what}{sign}idx{dimensions}-ubyte" for sign in "-."]
    return [*plain, *(f"{name}.gz" for name in plain)]


def _idx_header(path: Path, magic: int, dimensions: int) -> tuple[int, ...]:
    """Return the sizes that an idx file states, once they fit its length."""
    with reading(path), open_regular(path) as file:
        header = file.read(4 + 4 * dimensions)
    found = int.from_bytes(header[:4], "big")
    if found != magic or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path}: is no idx file of bytes in {dimensions} dimensions: it begins with "
            f"{found:#010x}, not {magic:#010x}. {AGAIN}"
        )
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    expected = len(header) + int(np.prod(sizes, dtype=np.int64))
    num_bytes = path.stat().st_size
    if num_bytes != expected:
        raise DataError(
            f"{path}: states {' x '.join(map(str, sizes))} values and so {expected:,} bytes, and "
            f"has {num_bytes:,}. {AGAIN}"
        )
    return sizes


def _unzipped(path: Path) -> Path:
    """Return a file itself, or what it holds as a file where it is a `.gz`."""
    if path.suffix != ".gz":
        return path

    def read() -> Iterator[bytes]:
        try:
            with open_regular(path) as whole, gzip.open(whole, "rb") as file:
                while piece := file.read(2**22):
                    yield piece
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: is no whole gzip file: {error}. {AGAIN}") from error

    return unpacked(path, "gz", read)


STL_PARTS = ("train", "test", "unlabeled")


def read_stl10(source: DataSourceConfig) -> Entries:
    """Read STL-10's binary files (Coates, cs.stanford.edu/~acoates/stl10).

    96 x 96 pixels, channel by channel, and column by column in each; labels from 1.

    Raises:
        DataError: The part does not exist, or a file is missing or cut short.
    """
    root = Path(source.path)
    present = [part for part in STL_PARTS if (root / f"{part}_X.bin").exists()]

    def read(part: str) -> Found:
        images = needed(root, f"{part}_X.bin")
        count = _rows(images, 3 * 96 * 96)
        labels = None
        if part != "unlabeled":
            path = needed(root, f"{part}_y.bin")
            with reading(path):
                numbers = np.frombuffer(read_bytes(path), dtype=np.uint8)
            if len(numbers) != count:
                raise DataError(
                    f"{path}: has {len(numbers):,} labels, and {images} {count:,} images"
                )
            labels = (numbers.astype(int) - 1).tolist()
        shape = ("columns", 3, 96, 96)
        block = Block(images, part, 0, 3 * 96 * 96, shape, labels, count)
        yield from block.records(STL10)

    return read_parts(source, present if present and not source.split else STL_PARTS, read)


SVHN_PARTS = ("train", "test", "extra")


def read_svhn(source: DataSourceConfig) -> Entries:
    """Read SVHN's cropped digits, `train_32x32.mat` (Netzer, ufldl.stanford.edu/housenumbers).

    X is (32, 32, 3, N), y (N, 1) with 10 for the digit 0. The file is compressed as a whole:
    reading it takes its unpacked size in memory once (train 225 MB, extra 1.6 GB).

    Raises:
        DataError: The part does not exist, or a file is missing, broken or of another shape.
    """
    root = Path(source.path)
    present = [part for part in SVHN_PARTS if (root / f"{part}_32x32.mat").exists()]

    def read(part: str) -> Found:
        path = needed(root, f"{part}_32x32.mat")
        content = load_mat(path)
        x, y = (np.asarray(content.get(name, ())) for name in "Xy")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[2] != 3:
            found = ", ".join(f"{k} {getattr(v, 'shape', '')}" for k, v in content.items())
            raise DataError(
                f"{path}: expected X (32, 32, 3, N) of bytes and y (N, 1), found {found}"
            )
        height, width, _, count = x.shape
        if y.size != count:
            raise DataError(f"{path}: has {count:,} images and {y.size:,} labels. {AGAIN}")
        labels = [0 if label == 10 else int(label) for label in y.ravel().tolist()]
        target = unpacked(path, "X", lambda: iter([x.tobytes(order="F")]))
        shape = ("columns", 3, height, width)
        block = Block(target, part, 0, 3 * height * width, shape, labels, count)
        yield from block.records([str(digit) for digit in range(10)])

    return read_parts(source, present if present and not source.split else SVHN_PARTS, read)


PCAM_PARTS = ("train", "valid", "test")


def read_pcam(source: DataSourceConfig) -> Entries:
    """Read PatchCamelyon's HDF5 files (Veeling, github.com/basveeling/pcam), `.h5` or `.h5.gz`.

    Raises:
        CapabilityError: The package h5py is not installed.
        DataError: The part does not exist, or a file is missing, broken or of another shape.
    """
    root = Path(source.path)
    stem = "camelyonpatch_level_2_split_"
    present = [part for part in PCAM_PARTS if list(root.glob(f"{stem}{part}_x.h5*"))]

    def read(part: str) -> Found:
        pair = [
            _unzipped(needed(root, f"{stem}{part}_{which}.h5", f"{stem}{part}_{which}.h5.gz"))
            for which in "xy"
        ]
        target, (count, height, width) = _unpacked_hdf5(pair[0])
        labels = _hdf5_labels(pair[1])
        if len(labels) != count:
            raise DataError(
                f"{pair[1]}: has {len(labels):,} labels, and {pair[0]} {count:,} images"
            )
        shape = ("pixels", 3, height, width)
        block = Block(target, part, 0, 3 * height * width, shape, labels, count)
        yield from block.records(TISSUE)

    return read_parts(source, present if present and not source.split else PCAM_PARTS, read)


def _unpacked_hdf5(path: Path) -> tuple[Path, tuple[int, int, int]]:
    """Return the file with the bytes of the dataset `x`, and its count, height and width."""
    h5py = import_extra("h5py", "hdf5", "reading HDF5 files")
    try:
        check_regular(path)
        with h5py.File(path, "r") as file:
            x = file["x"]
            if x.ndim != 4 or x.shape[3] != 3 or x.dtype != np.uint8:
                raise DataError(f"{path}: expected x (N, 96, 96, 3) of bytes, found {x.shape}")
            rows = max(1, 2**24 // max(int(np.prod(x.shape[1:])), 1))
            starts = range(0, x.shape[0], rows)
            read = lambda: (x[start : start + rows].tobytes() for start in starts)  # noqa: E731
            return unpacked(path, "x", read), (x.shape[0], x.shape[1], x.shape[2])
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: is no whole HDF5 file with 'x': {error}. {AGAIN}") from error


def _hdf5_labels(path: Path) -> list[int]:
    h5py = import_extra("h5py", "hdf5", "reading HDF5 files")
    try:
        check_regular(path)
        with h5py.File(path, "r") as file:
            return [int(label) for label in np.asarray(file["y"]).ravel().tolist()]
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: is no whole HDF5 file with 'y': {error}. {AGAIN}") from error


FER_FILES = ("fer2013.csv", "icml_face_data.csv")
FER_COLUMNS = {"emotion", "pixels", "Usage"}
FER_PARTS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}


def read_fer2013(source: DataSourceConfig) -> Entries:
    """Read FER2013's table `emotion,pixels,Usage` (Kaggle), a face of 48 x 48 grey values a row.

    The parts train, val and test are the rows of the uses Training, PublicTest and PrivateTest.

    Raises:
        DataError: The file is missing or has other columns, or the part does not exist.
    """
    path = Path(source.path)
    path = needed(path, *FER_FILES) if path.is_dir() else path
    uses = {use: part for part, use in FER_PARTS.items()}
    return read_parts(
        source, tuple(FER_PARTS), lambda part: (e for p, e in _faces(path, uses) if p == part)
    )


def _faces(path: Path, uses: dict[str, str]) -> Iterator[tuple[str | None, Record | Skipped]]:
    """Yield the part and the record of each row; what is no row belongs to every part."""
    try:
        with reading(path), open_regular(path) as file:
            header = [
                cell.strip() for cell in file.readline(MAX_LINE).decode("utf-8-sig").split(",")
            ]
            if set(header) != FER_COLUMNS:
                raise DataError(
                    f"{path}: expected the columns emotion,pixels,Usage, found {header}"
                )
            for number, line in enumerate(bounded_lines(file), 2):
                yield _face(path, header, file.tell() - len(line), line, number, uses)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text: {error}. {AGAIN}") from error


def _face(
    path: Path, header: list[str], start: int, line: bytes, number: int, uses: dict[str, str]
) -> tuple[str | None, Record | Skipped]:
    where = f"{path}:{number}"
    try:  # Latin-1: each byte is a character, so that places in the line stay
        cells = next(csv.reader([line.decode("latin-1")]), [])
    except csv.Error:
        cells = []
    row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
    part = uses.get(row.get("Usage", ""))
    pixels = row.get("pixels", "").encode("latin-1")
    if len(cells) != len(header) or part is None or not pixels or pixels not in line:
        return "train", Skipped(SkipKind.BAD_RECORD, where, f"is no row of {', '.join(header)}")
    if row["emotion"] not in map(str, range(len(FACES))):
        message = f"emotion {row['emotion']!r} is not from 0 to {len(FACES) - 1}"
        return part, Skipped(SkipKind.BAD_LABEL, where, message)
    image = ImageSource(
        str(path),
        start + line.index(pixels),
        len(pixels),
        f"row {number}",
        pixel_layout("decimal", 1, 48, 48),
    )
    own_id = str(number)
    label = FACES[int(row["emotion"])]
    return part, Record(record_id=own_id, image=image, image_id=own_id, label=label)


FORMATS: tuple[Format, ...] = (
    class_format(
        "cifar",
        "CIFAR-10 (and CIFAR-100), binary version",
        read_cifar,
        [
            *([f"data_batch_{number}.bin"] for number in range(1, 6)),
            ["test_batch.bin"],
            ["fine_label_names.txt"],
            ["batches.meta", "test_batch"],
            ["meta", "train", "test"],
        ],
        tells="CIFAR's binary files",
        parts="train, test",
        layout=(
            "cifar-10-batches-bin",
            "https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
            (
                Expected("data_batch_*.bin", "training images of CIFAR-10", 5),
                Expected("test_batch.bin", "test images"),
            ),
            ("cifar-10-batches-bin --split test",),
        ),
        more_layouts=(
            Layout(
                "CIFAR-100, binary version",
                "cifar-100-binary",
                "https://www.cs.toronto.edu/~kriz/cifar.html",
                (
                    Expected("train.bin", "training images"),
                    Expected("test.bin", "test images"),
                    Expected("fine_label_names.txt", "class names"),
                ),
                ("cifar-100-binary --split test",),
            ),
        ),
    ),
    class_format(
        "mnist",
        "MNIST, idx files",
        read_mnist,
        [[name] for part in MNIST_PARTS.values() for name in _idx_names(part, "images", 3)],
        tells="MNIST's idx files",
        parts="train, test",
        layout=(
            "MNIST/raw",
            "http://yann.lecun.com/exdb/mnist",
            tuple(
                Expected(
                    f"{part}-{what}-idx{n}-ubyte.gz", what, other=(f"{part}-{what}-idx{n}-ubyte",)
                )
                for part in MNIST_PARTS.values()
                for what, n in (("images", 3), ("labels", 1))
            ),
            ("MNIST/raw --split test",),
        ),
    ),
    class_format(
        "stl10",
        "STL-10, binary files",
        read_stl10,
        [[f"{part}_X.bin"] for part in STL_PARTS],
        tells="STL-10's binary files",
        parts="train, test, unlabeled",
        layout=(
            "stl10_binary",
            "https://cs.stanford.edu/~acoates/stl10",
            (
                Expected("train_X.bin", "training images"),
                Expected("train_y.bin", "their labels"),
                Expected("test_X.bin", "test images"),
                Expected("test_y.bin", "their labels"),
                Expected("unlabeled_X.bin", "images without labels", optional=True),
            ),
            ("stl10_binary --split test",),
        ),
    ),
    class_format(
        "svhn",
        "SVHN, cropped digits",
        read_svhn,
        [[f"{part}_32x32.mat"] for part in SVHN_PARTS],
        tells="SVHN's cropped digits as .mat",
        parts="train, test, extra",
        layout=(
            "SVHN",
            "http://ufldl.stanford.edu/housenumbers (format 2)",
            (
                Expected("train_32x32.mat", "training images and labels"),
                Expected("test_32x32.mat", "test images and labels"),
                Expected("extra_32x32.mat", "easier training images", optional=True),
            ),
            ("SVHN --split test",),
        ),
    ),
    class_format(
        "pcam",
        "PatchCamelyon",
        read_pcam,
        [
            [f"camelyonpatch_level_2_split_{part}_x.h5{zipped}"]
            for part in PCAM_PARTS
            for zipped in ("", ".gz")
        ],
        tells="PatchCamelyon's HDF5 files",
        parts="train, valid, test",
        layout=(
            "pcam",
            "https://github.com/basveeling/pcam (needs the package h5py)",
            tuple(
                Expected(
                    f"camelyonpatch_level_2_split_{part}_{which}.h5.gz",
                    what,
                    other=(f"camelyonpatch_level_2_split_{part}_{which}.h5",),
                )
                for part in PCAM_PARTS
                for which, what in (("x", "images"), ("y", "labels"))
            ),
            ("pcam --split test",),
        ),
    ),
    replace(
        class_format(
            "fer2013",
            "FER2013",
            read_fer2013,
            [[name] for name in FER_FILES],
            tells="FER2013's table",
            parts="train, val, test (the uses Training, PublicTest, PrivateTest)",
            layout=(
                "fer2013",
                "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
                (
                    Expected(
                        "fer2013.csv", "faces with emotion and use", other=("icml_face_data.csv",)
                    ),
                ),
                ("fer2013/fer2013.csv --split test",),
            ),
        ),
        of_line=lambda line: {cell.strip() for cell in line.split(",")} == FER_COLUMNS,
        suffixes=(".csv",),
    ),
)
