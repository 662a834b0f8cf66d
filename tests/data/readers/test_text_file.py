"""Text corpora: one text a line."""

import pytest

from triptych.core.errors import DataError
from triptych.data.readers.plain import read_text_file
from triptych.data.skips import SkipKind
from triptych.data.source import DataSourceConfig, RecordList


def test_lines_are_texts_and_their_numbers_ids(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeffone \r\n\r\n".encode() + b"caf\xe9\n" + b"zwei drei\n\n\n")
    found = RecordList.of(read_text_file(DataSourceConfig(path=str(path))))
    assert [(r.record_id, r.text) for r in found.records] == [("1", "one"), ("4", "zwei drei")]
    (skipped,) = found.skipped
    assert (skipped.kind, skipped.where) == (SkipKind.NOT_UTF8, f"{path}:3")
    assert "0xe9" in skipped.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt: there is no such file"):
        RecordList.of(read_text_file(DataSourceConfig(path=str(tmp_path / "absent.txt"))))
