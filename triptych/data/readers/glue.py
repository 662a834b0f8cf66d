"""GLUE (Wang et al. 2019): the tab-separated files of eight tasks on texts alone.

The first line of a file identifies its task. CoLA's files have no header. Nothing is quoted: a
quotation mark is a character like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_text
from triptych.data.lines import read_lines
from triptych.data.records import Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split
from triptych.data.spec import Expected, Format, Layout

TRUTH = ("0", "1")
RTE_LABELS = ("entailment", "not_entailment")
MNLI_LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, slots=True)
class GlueTask:
    """How the files of one task look.

    Attributes:
        name: Of the task.
        texts: Column of the text, or of both texts.
        label: Column of the label.
        labels: What the label may be; empty for a number from 0 to 5.
        header: Further columns that identify the task.
        record_id: Column of an id; "" where there is none.
    """

    name: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    header: tuple[str, ...] = ()
    record_id: str = "index"

    def fits(self, columns: list[str]) -> bool:
        """Return whether a header is of this task, with labels or without."""
        needed = {*self.texts, *self.header}
        if self.label not in columns:
            needed |= {self.record_id}
        return needed <= set(columns)


COLA = GlueTask("CoLA", ("sentence",), "label", TRUTH, record_id="")
COLA_COLUMNS = ["source", "label", "mark", "sentence"]
TASKS = (  # in this order: the columns of RTE are among MNLI's and STS-B's
    GlueTask("MNLI", ("sentence1", "sentence2"), "gold_label", MNLI_LABELS, ("promptID", "genre")),
    GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), ("genre", "filename")),
    GlueTask("RTE", ("sentence1", "sentence2"), "label", RTE_LABELS),
    GlueTask("QNLI", ("question", "sentence"), "label", RTE_LABELS),
    GlueTask("QQP", ("question1", "question2"), "is_duplicate", TRUTH, record_id="id"),
    GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", TRUTH, ("#1 ID",)),
    GlueTask("SST-2", ("sentence",), "label", TRUTH),
)


def is_glue(first: str) -> bool:
    """Return whether a first line is that of a GLUE task."""
    return _task_of(first.split("\t")) is not None


def read_glue(source: DataSourceConfig) -> RecordList:
    """Read a file of CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI or RTE.

    A single sentence is the record's `text`; two are `premise` and `hypothesis` (of QNLI, the
    question and the sentence). Labels are the words or the digits of the file; STS-B's is a float.
    Test files, and lines without a label, give records without one.

    Raises:
        DataError: The file cannot be read, or its first line is of no GLUE task.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    found = RecordList()
    lines = list(read_lines(path))
    first = next((line for _, line in lines if isinstance(line, str)), "")
    known = _task_of(first.split("\t"))
    if known is None:
        names = ", ".join(task.name for task in (COLA, *TASKS))
        raise DataError(f"{path}:1: the first line {first[:80]!r} is of none of {names}")
    task, columns, has_header = known
    for number, line in lines[has_header:]:
        if isinstance(line, Skipped):
            found.skipped.append(line)
        else:
            where = f"{path}:{number}"
            found.add(_records(task, columns, line.split("\t"), number, where))
    return found


def _task_of(first: list[str]) -> tuple[GlueTask, list[str], bool] | None:
    """Return the task of a first line, its columns, and whether the line is a header."""
    if len(first) == 4 and first[1] in TRUTH and first[2] in ("", "*"):
        return COLA, COLA_COLUMNS, False
    columns = [name.strip() for name in first]
    for task in TASKS:
        if task.fits(columns):
            return task, columns, True
    return None


def _records(
    task: GlueTask, columns: list[str], cells: list[str], number: int, where: str
) -> Iterator[Record | Skipped]:
    """Yield the one record of a line."""
    if len(cells) != len(columns):
        message = f"has {len(cells)} cells, a line of {task.name} has {len(columns)}"
        yield Skipped(SkipKind.BAD_RECORD, where, message)
        return
    row = dict(zip(columns, cells, strict=True))
    try:
        texts = [parse_text(name, row[name]) for name in task.texts]
        label = _label(task, row.get(task.label, ""))
    except EntryError as error:
        yield Skipped(error.kind, where, str(error))
        return
    record_id = row.get(task.record_id, "") or str(number)
    if len(texts) == 1:
        yield Record(record_id=record_id, text=texts[0], label=label)
    else:
        yield Record(record_id=record_id, premise=texts[0], hypothesis=texts[1], label=label)


def _label(task: GlueTask, cell: str) -> str | float | None:
    value = cell.strip()
    if not value:
        return None
    if task.labels:
        if value not in task.labels:
            known = ", ".join(task.labels)
            raise EntryError(SkipKind.BAD_LABEL, f"{task.label} {value!r} is none of {known}")
        return value
    try:
        score = float(value)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 5:
        raise EntryError(SkipKind.BAD_LABEL, f"{task.label} {value!r} is no number from 0 to 5")
    return score


FORMAT = Format(
    name="glue",
    title="GLUE (Wang et al. 2019): CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE",
    fields=("text", "premise", "hypothesis", "label"),
    read=read_glue,
    tells="the first line of a task's table",
    of_line=is_glue,
    suffixes=(".tsv",),
    layouts=tuple(
        Layout(
            f"GLUE {task}",
            f"glue/{task}",
            "https://gluebenchmark.com/tasks",
            (
                Expected("train.tsv", "for training"),
                *(Expected(f"dev{part}.tsv", "for validation") for part in parts),
                *(Expected(f"test{part}.tsv", "without labels", optional=True) for part in parts),
            ),
            (f"glue/{task}/dev{parts[0]}.tsv",),
        )
        for task, parts in (
            *((t, ("",)) for t in ("CoLA", "SST-2", "MRPC", "QQP", "STS-B", "QNLI", "RTE")),
            ("MNLI", ("_matched", "_mismatched")),
        )
    ),
)
