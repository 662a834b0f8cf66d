"""Flickr30k and Flickr8k, as published."""

import pytest

from triptych.core.errors import DataError
from triptych.data.manifest import read_records
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig

TOKENS = b"""1000092795.jpg#0\tTwo young guys with shaggy hair look at their hands .
1000092795.jpg#1\tTwo young , White males are outside near many bushes .
10002456.jpg#0\tSeveral men in hard hats are operating a giant pulley system .
10002456.jpg#1\t
10002456.jpg 2 A line that is none
10002456.jpg#3\tCaf\xe9
"""
# The second last is published like this, without its second |.
TABLE = """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys with shaggy hair | look at their hands .
2199200615.jpg| 3| A dog runs .
2199200615.jpg| 4   A dog runs across the grass .
no picture| 4
"""


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images", "images", "."])
def test_the_token_file(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "10002456.jpg").touch()
    (tmp_path / "results_20130124.token").write_bytes(TOKENS)
    found = read_records(DataSourceConfig(path=str(tmp_path / "results_20130124.token")))
    assert [(r.record_id, r.image_id) for r in found.records] == [
        ("1000092795.jpg#0", "1000092795.jpg"),
        ("1000092795.jpg#1", "1000092795.jpg"),
        ("10002456.jpg#0", "10002456.jpg"),
    ]
    assert found.records[2].caption.startswith("Several men in hard hats")
    assert found.records[2].image.path == str(tmp_path / folder / "10002456.jpg")
    assert [(s.where.rsplit(":")[-1], s.kind) for s in found.skipped] == [
        ("4", SkipKind.EMPTY_CAPTION),
        ("5", SkipKind.BAD_RECORD),
        ("6", SkipKind.NOT_UTF8),
    ]


def test_the_table(tmp_path):
    (tmp_path / "2199200615.jpg").touch()
    (tmp_path / "results.csv").write_text(TABLE)
    found = read_records(DataSourceConfig(path=str(tmp_path / "results.csv")))
    assert [(r.record_id, r.caption) for r in found.records] == [
        ("1000092795.jpg#0", "Two young guys with shaggy hair | look at their hands ."),
        ("2199200615.jpg#3", "A dog runs ."),
        ("2199200615.jpg#4", "A dog runs across the grass ."),
    ]
    assert [s.where.rsplit(":")[-1] for s in found.skipped] == ["5"]


def test_flickr8k_has_the_same_format(tmp_path):
    (tmp_path / "Flicker8k_Dataset").mkdir()
    (tmp_path / "Flicker8k_Dataset/10002456.jpg").touch()
    (tmp_path / "Flickr8k.token.txt").write_bytes(TOKENS)
    found = read_records(DataSourceConfig(path=str(tmp_path / "Flickr8k.token.txt")))
    assert len(found.records) == 3


def test_what_is_wrong_as_a_whole(tmp_path):
    path = tmp_path / "results_20130124.token"
    path.write_bytes(TOKENS)
    with pytest.raises(DataError, match=r"tried: .*flickr30k-images/1000092795\.jpg"):
        read_records(DataSourceConfig(path=str(path)))
    with pytest.raises(DataError, match=r"no splits: read Karpathy's"):
        read_records(DataSourceConfig(path=str(path), split="test"))
    path.write_text("a\nb\n")
    with pytest.raises(DataError, match="none of its first lines is like"):
        read_records(DataSourceConfig(path=str(path), reader="flickr30k"))
