"""CIFAR, MNIST, STL-10, SVHN, PatchCamelyon and FER2013, in their own layouts and broken."""

import gzip
import struct
import sys

import numpy as np
import pytest

from tests.data.mat_files import write_mat
from triptych.core.errors import CapabilityError, DataError
from triptych.data.formats import FORMATS
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.readers.set_names import CIFAR10
from triptych.data.source import DataSourceConfig

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def images(count, height, width, channels=3):
    return RNG.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def read(path, split=None, **options):
    return read_records(DataSourceConfig(path=str(path), split=split, **options))


def same(found, pixels, labels):
    assert [record.label for record in found.records] == labels
    for record, image in zip(found.records, pixels, strict=True):
        grey = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
        np.testing.assert_array_equal(decode_image(record.image), grey)


def write_cifar10(root, per_file=2):
    root.mkdir()
    pixels = images(6 * per_file, 32, 32)
    labels = [number % 10 for number in range(6 * per_file)]
    (root / "batches.meta.txt").write_text("airplane\n")
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        rows = range(number * per_file, (number + 1) * per_file)
        data = b"".join(bytes([labels[i]]) + pixels[i].transpose(2, 0, 1).tobytes() for i in rows)
        (root / name).write_bytes(data)
    return pixels, labels


def test_cifar10(tmp_path):
    pixels, labels = write_cifar10(tmp_path / "c")
    names = [CIFAR10[label] for label in labels]
    same(read(tmp_path / "c", "train"), pixels[:10], names[:10])
    same(read(tmp_path / "c", "test"), pixels[10:], names[10:])
    both = read(tmp_path / "c")
    assert len(both.records) == 12 and both.parts == ("train", "test")
    assert len({record.record_id for record in both.records}) == 12
    again = read(tmp_path / "c", "test", index="always")
    same(read(tmp_path / "c", "test", index="always"), pixels[10:], names[10:])
    assert list(again.records) == list(read(tmp_path / "c", "test", index="never").records)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "data_batch_3.bin").unlink(), r"data_batch_3\.bin: there is no such"),
        (lambda root: (root / "data_batch_3.bin").write_bytes(b""), "0 bytes.*cut short"),
        (lambda root: (root / "data_batch_3.bin").write_bytes(bytes(3073 + 9)), "3,082 bytes"),
    ],
)
def test_cifar10_that_is_incomplete_or_cut_short(tmp_path, harm, message):
    write_cifar10(tmp_path / "c")
    harm(tmp_path / "c")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "c", "train")
    read(tmp_path / "c", "test")


def test_a_label_out_of_range_is_one_bad_record(tmp_path):
    pixels, _ = write_cifar10(tmp_path / "c")
    path = tmp_path / "c/test_batch.bin"
    path.write_bytes(bytes([10]) + path.read_bytes()[1:])
    found = read(tmp_path / "c", "test")
    assert len(found.records) == 1
    assert [entry.kind.value for entry in found.skipped] == ["bad_label"]
    assert "label 10 is not from 0 to 9" in found.skipped[0].message
    np.testing.assert_array_equal(decode_image(found.records[0].image), pixels[11])


def test_cifar100_takes_the_fine_labels(tmp_path):
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    pixels = images(3, 32, 32)
    (root / "fine_label_names.txt").write_text("\n".join(f"fine_{i}" for i in range(100)) + "\n\n")
    rows = [bytes([7, 90 + i]) + pixels[i].transpose(2, 0, 1).tobytes() for i in range(3)]
    (root / "train.bin").write_bytes(b"".join(rows))
    same(read(root, "train"), pixels, ["fine 90", "fine 91", "fine 92"])
    with pytest.raises(DataError, match=r"test\.bin: there is no such file"):
        read(root, "test")
    (root / "fine_label_names.txt").write_text("one\n")
    with pytest.raises(DataError, match="1 class names, 100 are needed"):
        read(root, "train")


@pytest.mark.parametrize("names", [["batches.meta", "test_batch"], ["meta", "train", "test"]])
def test_the_python_version_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x02c__builtin__\neval\n")
    with pytest.raises(DataError, match=r"pickles.*cifar-10-binary\.tar\.gz"):
        read(tmp_path, "test")


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_mnist(root, suffix="", sign="-"):
    root.mkdir(exist_ok=True)
    pixels, labels = images(4, 28, 28, 1), np.array([5, 0, 4, 9], dtype=np.uint8)
    for part in ("train", "t10k"):
        for name, array in ((f"images{sign}idx3", pixels[..., 0]), (f"labels{sign}idx1", labels)):
            data = idx(array)
            path = root / f"{part}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return pixels, [str(label) for label in labels]


@pytest.mark.parametrize(("suffix", "sign"), [("", "-"), (".gz", "-"), ("", ".")])
def test_mnist(tmp_path, suffix, sign):
    pixels, labels = write_mnist(tmp_path / "m", suffix, sign)
    same(read(tmp_path / "m", "test"), pixels, labels)
    assert len(read(tmp_path / "m").records) == 8


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda d: d[:-1], "states 4 x 28 x 28 values.*and has 3,151"),
        ("train-images-idx3-ubyte", lambda d: d[:3], "begins with"),
        ("train-images-idx3-ubyte", lambda d: d[:10], "begins with"),
        ("train-images-idx3-ubyte", lambda d: b"\0\0\x08\x01" + d[4:], "0x00000801, not 0x000008"),
        ("train-images-idx3-ubyte", lambda d: b"\x1f\x8b" + d[2:], "is no idx file"),
        ("train-labels-idx1-ubyte", lambda d: idx(np.zeros(3, dtype=np.uint8)), "3 labels"),
        ("train-labels-idx1-ubyte", None, "there is no such file"),
    ],
)
def test_mnist_that_is_broken(tmp_path, name, change, message):
    write_mnist(tmp_path / "m")
    path = tmp_path / "m" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        read(tmp_path / "m", "train")


@pytest.mark.parametrize("change", [lambda d: d[:-9], lambda d: b"xx" + d[2:], lambda d: b""])
def test_a_broken_gzip_file_leaves_nothing_behind(tmp_path, change):
    write_mnist(tmp_path / "m", ".gz")
    path = tmp_path / "m/t10k-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images"):
        read(tmp_path / "m", "test")
    write_mnist(tmp_path / "m", ".gz")
    assert len(read(tmp_path / "m", "test").records) == 4


def test_a_label_that_is_no_digit(tmp_path):
    write_mnist(tmp_path / "m")
    labels = np.array([5, 10, 4, 255], dtype=np.uint8)
    (tmp_path / "m/train-labels-idx1-ubyte").write_bytes(idx(labels))
    found = read(tmp_path / "m", "train")
    assert len(found.records) == 2 and len(found.skipped) == 2


def test_an_unknown_split_names_the_known(tmp_path):
    write_mnist(tmp_path / "m")
    with pytest.raises(DataError, match=r"no split 'tst'.*test.*\(it has: train, test\)"):
        read(tmp_path / "m", "tst")


def write_stl10(root):
    root.mkdir()
    pixels = images(3, 96, 96)
    for part in ("train", "test", "unlabeled"):
        data = pixels.transpose(0, 3, 2, 1).tobytes()  # channels, columns, rows
        (root / f"{part}_X.bin").write_bytes(data)
    (root / "train_y.bin").write_bytes(bytes([1, 10, 2]))
    (root / "test_y.bin").write_bytes(bytes([1, 11, 0]))
    return pixels


def test_stl10(tmp_path):
    pixels = write_stl10(tmp_path / "s")
    same(read(tmp_path / "s", "train"), pixels, ["airplane", "truck", "bird"])
    same(read(tmp_path / "s", "unlabeled"), pixels, [None] * 3)
    found = read(tmp_path / "s", "test")
    assert len(found.records) == 1 and len(found.skipped) == 2
    (tmp_path / "s/test_y.bin").write_bytes(bytes([1, 2]))
    with pytest.raises(DataError, match=r"2 labels, and .* 3 images"):
        read(tmp_path / "s", "test")
    (tmp_path / "s/train_y.bin").unlink()
    with pytest.raises(DataError, match=r"train_y\.bin: there is no such file"):
        read(tmp_path / "s", "train")


def test_svhn(tmp_path):
    root = tmp_path / "s"
    root.mkdir()
    pixels = images(3, 32, 32)
    x, y = pixels.transpose(1, 2, 3, 0), np.array([[10], [1], [9]], dtype=np.uint8)
    write_mat(root / "train_32x32.mat", {"X": x, "y": y})
    same(read(root, "train"), pixels, ["0", "1", "9"])
    same(read(root), pixels, ["0", "1", "9"])
    with pytest.raises(DataError, match=r"test_32x32\.mat: there is no such file"):
        read(root, "test")
    write_mat(root / "test_32x32.mat", {"X": x, "y": y[:2]})
    with pytest.raises(DataError, match="3 images and 2 labels"):
        read(root, "test")
    write_mat(root / "test_32x32.mat", {"x": x})
    with pytest.raises(DataError, match="expected X"):
        read(root, "test")
    (root / "test_32x32.mat").write_bytes((root / "train_32x32.mat").read_bytes()[:900])
    with pytest.raises(DataError, match="broken or cut short"):
        read(root, "test")


def write_pcam(root, zipped):
    import h5py

    root.mkdir()
    pixels = images(3, 96, 96)
    for name, array in (("x", pixels), ("y", np.array([0, 1, 0]).reshape(3, 1, 1, 1))):
        path = root / f"camelyonpatch_level_2_split_valid_{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset(name, data=array, compression="gzip" if name == "x" else None)
        if zipped:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return pixels


@pytest.mark.parametrize("zipped", [False, True])
def test_pcam(tmp_path, zipped):
    pytest.importorskip("h5py", reason="of the extra `hdf5`")
    pixels = write_pcam(tmp_path / "p", zipped)
    tumor = "lymph node with tumor tissue"
    same(read(tmp_path / "p", "valid"), pixels, ["lymph node", tumor, "lymph node"])
    if not zipped:
        path = tmp_path / "p/camelyonpatch_level_2_split_valid_x.h5"
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(DataError, match="no whole HDF5 file"):
            read(tmp_path / "p", "valid")


def test_pcam_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for which in "xy":
        (tmp_path / f"camelyonpatch_level_2_split_test_{which}.h5").write_bytes(b"x")
    with pytest.raises(CapabilityError, match=r"triptych\[hdf5\]"):
        read(tmp_path, "test")


def write_fer(path, header="emotion,pixels,Usage"):
    pixels = images(3, 48, 48, 1)
    rows = [" ".join(map(str, image.ravel())) for image in pixels]
    uses = ("Training", "PublicTest", "PrivateTest")
    order = [name.strip() for name in header.split(",")]
    cells = [{"emotion": str(i), "pixels": f'"{rows[i]}"', "Usage": uses[i]} for i in range(3)]
    lines = [header, *(",".join(row[name] for name in order) for row in cells)]
    path.write_text("\n".join(lines) + "\n")
    return pixels


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, Usage, pixels"])
def test_fer2013(tmp_path, header):
    (tmp_path / "f").mkdir()
    path = tmp_path / "f/fer2013.csv"
    pixels = write_fer(path, header)
    for number, (split, name) in enumerate(
        [("train", "angry"), ("val", "disgusted"), ("test", "afraid")]
    ):
        same(read(path, split), pixels[number : number + 1], [name])
    same(read(tmp_path / "f"), pixels, ["angry", "disgusted", "afraid"])


def test_fer2013_that_is_broken(tmp_path):
    path = tmp_path / "fer2013.csv"
    write_fer(path)
    with path.open("a") as file:
        rows = ("7,1 2 3,Training", "xx", '1,"1 ""2",Training', "3,1 2 300,Training",
                "0,1 2 3,Training")  # fmt: skip
        file.write("\n".join(rows))
    found = read(path, "train")
    assert [entry.kind.value for entry in found.skipped] == [
        "bad_label",
        "bad_record",
        "bad_record",
    ]
    assert [entry.where for entry in found.skipped] == [f"{path}:{n}" for n in (5, 6, 7)]
    assert len(found.records) == 3
    for record in found.records[1:]:
        with pytest.raises(DataError, match=r"row [89]"):
            decode_image(record.image)
    path.write_text("emotion,pixels\n0,1\n")
    with pytest.raises(DataError, match="expected the columns emotion,pixels,Usage"):
        read(path, reader="fer2013")


def test_the_list_of_formats_says_what_is_missing(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin/data_batch_2.bin").unlink()
    report, other = FORMATS.get("cifar").find(tmp_path)
    assert other.state == "absent"
    missing = report.missing
    assert report.state == "incomplete"
    assert len(missing) == 1 and "4 of 5" in missing[0]
