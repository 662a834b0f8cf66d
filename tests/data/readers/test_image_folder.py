"""Folders of class folders."""

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.plain import is_image_folder, read_image_folder
from triptych.data.source import DataSourceConfig, RecordList

FILES = ["cat/2.jpg", "cat/1.PNG", "dog/deep/3.webp", "dog/notes.txt", "dog/.hidden.jpg", "top.jpg"]


def build(root, files=FILES):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_the_folder_names_the_class(tmp_path):
    assert is_image_folder(build(tmp_path))
    records = RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path)))).records
    assert [(r.record_id, r.label) for r in records] == [
        ("cat/1.PNG", "cat"),
        ("cat/2.jpg", "cat"),
        ("dog/deep/3.webp", "dog"),
        ("top.jpg", None),
    ]
    assert records[0].image.path == str(tmp_path / "cat/1.PNG")


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".tif", ".jfif", ".jp2", ".TGA"])
def test_every_format_that_pillow_decodes_counts(tmp_path, suffix):
    build(tmp_path, [f"cat/1{suffix}", "cat/2.pdf", "cat/3.mpg", "cat/4.h5", "cat/5.json"])
    records = RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path)))).records
    assert [record.record_id for record in records] == [f"cat/1{suffix}"]


def test_splits_are_folders_above_the_classes(tmp_path):
    build(tmp_path, ["train/cat/1.jpg", "val/dog/2.jpg"])
    assert is_image_folder(tmp_path)
    records = RecordList.of(
        read_image_folder(DataSourceConfig(path=str(tmp_path), split="val"))
    ).records
    assert [(r.record_id, r.label) for r in records] == [("dog/2.jpg", "dog")]
    with pytest.raises(DataError, match="no split 'tran'; did you mean 'train'"):
        RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path), split="tran")))


def test_images_without_classes_have_no_label(tmp_path):
    assert is_image_folder(build(tmp_path, ["2.jpg", "1.png", ".hidden.jpg", "empty/notes.txt"]))
    records = RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path)))).records
    assert [(r.record_id, r.label) for r in records] == [("1.png", None), ("2.jpg", None)]


def test_a_folder_without_images_says_what_was_expected(tmp_path):
    assert not is_image_folder(build(tmp_path, ["cat/notes.txt"]))
    with pytest.raises(DataError, match=r"expected .*<class>/<image>\.jpg or .*\.jpg, found cat"):
        RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path))))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        RecordList.of(read_image_folder(DataSourceConfig(path=str(tmp_path / "absent"))))
