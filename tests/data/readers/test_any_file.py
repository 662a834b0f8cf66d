"""Whatever stands in a file, its reader gives records, skips or a DataError, and nothing else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.core.errors import DataError
from triptych.data.formats import FORMATS
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig

WORDS = st.sampled_from(
    (
        *("images", "annotations", "regions", "qas", "sentences", "questions", "videos", "types"),
        *("id", "image_id", "imageId", "file_name", "filename", "open_images_id", "url", "split"),
        *("caption", "phrase", "question", "answer", "raw", "ann_id", "domain", "captions"),
        *("image_urls", "video_id", "x", "y", "width", "height", "region_id", "qa_id", "a.jpg"),
    )
)
SCALARS = st.sampled_from(
    (None, True, 0, 7, -1, 10**30, 1e308, "", "a.jpg", "\ud800", "\0", "x" * 300, "http://a/b", "7")
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=25,
)
# Of the shapes that the formats have, filled with anything.
SHAPES = st.one_of(
    VALUES,
    st.lists(st.fixed_dictionaries({"id": SCALARS, "regions": VALUES}), max_size=3),
    st.lists(st.fixed_dictionaries({"id": SCALARS, "qas": VALUES}), max_size=3),
    st.dictionaries(WORDS, st.fixed_dictionaries({"question": VALUES, "imageId": SCALARS})),
    st.lists(st.fixed_dictionaries({"ann_id": SCALARS, "sentences": VALUES}), max_size=3),
    st.fixed_dictionaries(
        {
            "images": st.lists(
                st.fixed_dictionaries(
                    {"open_images_id": SCALARS, "id": SCALARS, "file_name": SCALARS}
                ),
                max_size=3,
            ),
            "annotations": VALUES,
        }
    ),
    st.fixed_dictionaries({"image_urls": VALUES, "captions": VALUES}),
)


def read(path, reader):
    try:
        found = read_records(DataSourceConfig(path=str(path), reader=reader, index="never"))
    except DataError:
        return
    assert all(isinstance(record, Record) for record in found.records)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SHAPES, st.booleans())
def test_any_json(tmp_path, value, is_cut):
    (tmp_path / "a.jpg").touch()
    text = json.dumps(value)
    (tmp_path / "data.json").write_text(text[: len(text) // 2] if is_cut else text)
    for known in FORMATS.entries().values():
        if known.read_json is not None or known.of_member is not None:
            read(tmp_path / "data.json", known.name)
    read(tmp_path / "data.json", "auto")


LINES = st.sampled_from(
    (
        b"a.jpg#0\ta cat",
        b"image_name| comment_number| comment",
        b"a.jpg| 0| a",
        b"a.jpg| 0 a",
        b"\t",
    )
) | st.binary(max_size=30)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(LINES, max_size=6),
    reader=st.sampled_from(("flickr30k", "url_list", "sbu", "auto")),
)
@pytest.mark.parametrize("name", ["a.token", "a.tsv", "SBU_captioned_photo_dataset_urls.txt"])
def test_any_lines(tmp_path, lines, reader, name):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "SBU_captioned_photo_dataset_captions.txt").write_bytes(b"a\n" * len(lines))
    (tmp_path / name).write_bytes(b"\n".join(lines))
    read(tmp_path / name, reader)
