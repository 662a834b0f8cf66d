"""NoCaps, in its official layout."""

import json

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig


def image(number, domain=None, **more):
    name = f"{number:016x}"
    about = {"domain": domain} if domain else {}
    return {
        "license": 0,
        "open_images_id": name,
        "file_name": f"{name}.jpg",
        "id": number,
        "coco_url": f"https://s3.amazonaws.com/nocaps/val/{name}.jpg",
        "width": 732,
        "height": 1024,
        "date_captured": "2018-11-06 11:04:33",
        **about,
        **more,
    }


def write(folder, images, annotations=None, where="validation"):
    (folder / where).mkdir(exist_ok=True)
    for entry in images[:1]:
        (folder / where / entry["file_name"]).touch()
    data = {"licenses": [], "info": {"description": "nocaps"}, "images": images}
    if annotations is not None:
        data["annotations"] = annotations
    path = folder / "nocaps_val_4500_captions.json"
    path.write_text(json.dumps(data))
    return DataSourceConfig(path=str(path))


@pytest.mark.parametrize("where", ["validation", "val", "images", "."])
def test_captions_have_their_images_domain(tmp_path, where):
    images = [image(0, "near-domain"), image(1, "out-domain")]
    annotations = [{"image_id": i % 2, "id": i, "caption": f"caption {i}"} for i in range(4)]
    found = read_records(write(tmp_path, images, annotations, where))
    assert [(r.record_id, r.image_id, r.domain) for r in found.records] == [
        ("0", "0", "near-domain"),
        ("1", "1", "out-domain"),
        ("2", "0", "near-domain"),
        ("3", "1", "out-domain"),
    ]
    assert found.records[2].caption == "caption 2"
    assert found.records[2].image.path == str(tmp_path / where / f"{0:016x}.jpg")


def test_the_test_set_gives_images_alone(tmp_path):
    found = read_records(write(tmp_path, [image(0), image(1)], where="test"))
    assert [(r.record_id, r.caption, r.domain) for r in found.records] == [
        ("0", None, None),
        ("1", None, None),
    ]


def test_bad_entries_are_skipped(tmp_path):
    images = [image(0, "in-domain"), image(1, "far-domain"), image(2, file_name=3), "x"]
    annotations = [
        {"image_id": 0, "id": 0, "caption": ""},
        {"image_id": 0, "id": 1, "caption": "good"},
        {"image_id": 1, "id": 2, "caption": "of an image with a wrong domain"},
        {"image_id": 10**30, "id": 3, "caption": "x"},
        [],
    ]
    found = read_records(write(tmp_path, images, annotations))
    assert [r.caption for r in found.records] == ["good"]
    assert [(s.where.split(": ")[1], s.kind) for s in found.skipped] == [
        ("images[1]", SkipKind.BAD_RECORD),
        ("images[2]", SkipKind.MISSING_FIELD),
        ("images[3]", SkipKind.BAD_RECORD),
        ("annotations[0]", SkipKind.EMPTY_CAPTION),
        ("annotations[2]", SkipKind.BAD_RECORD),
        ("annotations[3]", SkipKind.BAD_RECORD),
        ("annotations[4]", SkipKind.BAD_RECORD),
    ]


def test_images_in_no_known_folder_name_what_was_tried(tmp_path):
    source = write(tmp_path, [image(0, "in-domain")], [], "elsewhere")
    with pytest.raises(DataError, match=r"tried: .*validation/0000.*images/0000"):
        read_records(source)
