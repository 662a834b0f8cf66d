"""A text corpus: one text a line."""

from __future__ import annotations

from pathlib import Path

from triptych.data.lines import read_lines
from triptych.data.records import Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split


def read_text_file(source: DataSourceConfig) -> RecordList:
    """Read each line that is not blank as one text; its line number is its id.

    Raises:
        DataError: The file cannot be read.
    """
    check_split(source.split, (), source.path)
    found = RecordList()
    for number, line in read_lines(Path(source.path)):
        if isinstance(line, Skipped):
            found.skipped.append(line)
        else:
            found.records.append(Record(record_id=str(number), text=line.strip()))
    return found
