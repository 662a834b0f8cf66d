"""The forms in which predictions are submitted: what test servers and official scripts read.

A form knows what it calls a sample and which part of a prediction it holds; evaluations name the
forms that fit them. A package of your own adds one with `register_form`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triptych.core.errors import ConfigError, DataError, nearest
from triptych.core.reading import MAX_DATA_BYTES, read_text, reading
from triptych.core.registry import Registry

Rows = list[tuple[str, Any]]
"""What a sample is called, and what is predicted of it."""

HEAD_CHARS = 4096
"""Characters of a file that decide its form."""


@dataclass(frozen=True, slots=True)
class SubmissionForm:
    """One form of a file of predictions.

    Attributes:
        name: What users call it: `--format NAME`.
        reader: Who reads it, in words.
        key: What names a sample: "id", the record's own; "image_id"; or "number", its place in
            the file of the data, counted from 0.
        parts: The parts of a prediction that it may hold; a task's predictions have one of them.
        write: From the rows and the name of the file to its text.
        parse: From the text of a file to its rows; raises a ValueError that says where.
        recognise: Whether the beginning of a file looks like this form.
        check: Raises an error where the form cannot hold such ids, or the file such a name: asked
            before anything is predicted.
    """

    name: str
    reader: str
    key: Literal["id", "image_id", "number"]
    parts: tuple[str, ...]
    write: Callable[[Rows, str], str]
    parse: Callable[[str], Rows]
    recognise: Callable[[str], bool]
    check: Callable[[Sequence[str], str], None] = lambda keys, file_name: None

    def read(self, path: Path) -> Rows:
        """Return the rows of a file.

        Raises:
            DataError: It cannot be read, or is not of this form; the message says where.
        """
        text = read_text(path, max_bytes=MAX_DATA_BYTES)
        with reading(path):
            try:
                rows = self.parse(text)
            except ValueError as error:
                raise DataError(
                    f"{path}: not in the form {self.name!r} ({self.reader}): {error}"
                ) from error
        if not rows:
            raise DataError(f"{path}: holds no prediction")
        return rows


def _check_whole(keys: Sequence[str], file_name: str) -> None:
    """Refuse ids that are no whole numbers, which a server wants."""
    bad = next((key for key in keys if not _WHOLE.fullmatch(key)), None)
    if bad is not None:
        raise DataError(
            f"{file_name}: the id {bad!r} is no whole number, which this form needs: write the "
            "predictions in our own form, without --format"
        )


_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def _whole_or_text(key: str) -> int | str:
    return int(key) if _WHOLE.fullmatch(key) else key


def _json_list(id_name: str, value_name: str, *, whole: bool) -> dict[str, Any]:
    """Return how a list of objects with an id and a value is written, read and recognised."""

    def write(rows: Rows, file_name: str) -> str:
        if whole:
            _check_whole([key for key, _ in rows], file_name)
        listed = [{id_name: _whole_or_text(key), value_name: value} for key, value in rows]
        return json.dumps(listed, ensure_ascii=False)

    def parse(text: str) -> Rows:
        entries = _loads(text)
        if not isinstance(entries, list):
            raise ValueError(f"holds a {type(entries).__name__}, not a list of objects")
        return [_entry(entry, number) for number, entry in enumerate(entries)]

    def _entry(entry: Any, number: int) -> tuple[str, Any]:
        for name in (id_name, value_name):
            if not isinstance(entry, dict) or name not in entry:
                raise ValueError(f"entry [{number}] has no {name!r}")
        key = entry[id_name]
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise ValueError(f"entry [{number}]: {id_name} {key!r} is no id")
        return str(key), entry[value_name]

    def recognise(head: str) -> bool:
        return (
            head.lstrip().startswith("[") and f'"{id_name}"' in head and f'"{value_name}"' in head
        )

    checked = {"check": _check_whole} if whole else {}
    return {"write": write, "parse": parse, "recognise": recognise, **checked}


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("nests too deeply") from error


def _texts(form: dict[str, Any]) -> dict[str, Any]:
    """Let a form's values be texts alone."""
    inner = form["parse"]

    def parse(text: str) -> Rows:
        rows: Rows = inner(text)
        for number, (key, value) in enumerate(rows):
            if not isinstance(value, str):
                raise ValueError(f"entry [{number}], id {key}: {value!r} is no text")
        return rows

    return form | {"parse": parse}


def _boxes(form: dict[str, Any]) -> dict[str, Any]:
    """Write boxes as x, y, width, height, and read them as x0, y0, x1, y1."""
    write_list, parse_list = form["write"], form["parse"]

    def write(rows: Rows, file_name: str) -> str:
        boxes = [(key, [x0, y0, x1 - x0, y1 - y0]) for key, (x0, y0, x1, y1) in rows]
        return str(write_list(boxes, file_name))

    def parse(text: str) -> Rows:
        return [(key, _corners(key, box)) for key, box in parse_list(text)]

    return form | {"write": write, "parse": parse}


def _corners(key: str, box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ValueError(f"the box of {key}, {box!r}, is not [x, y, width, height]")
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _write_nlvr2(rows: Rows, file_name: str) -> str:
    del file_name
    return "".join(f"{key},{str(label).capitalize()}\n" for key, label in rows)


def _parse_nlvr2(text: str) -> Rows:
    rows: Rows = []
    for number, line in _lines(text):
        cells = line.strip().split(",")
        truth = cells[1].strip().lower() if len(cells) == 2 else ""
        if truth not in ("true", "false"):
            raise ValueError(f"line {number}: {line[:60]!r} is not IDENTIFIER,True or ,False")
        rows.append((cells[0].strip(), truth))
    return rows


def _table(header: tuple[str, str], delimiter: str) -> dict[str, Any]:
    """Return how a table of an id and a value with one line of names is written and read."""

    def write(rows: Rows, file_name: str) -> str:
        del file_name
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        return file.getvalue()

    def parse(text: str) -> Rows:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        rows: Rows = []
        try:
            for cells in reader:
                where = f"line {reader.line_num}"
                if not rows and reader.line_num == 1:
                    if [cell.strip() for cell in cells] != list(header):
                        raise ValueError(f"line 1 is not {delimiter.join(header)!r}")
                elif any(cell.strip() for cell in cells):
                    if len(cells) != 2 or not all(cell.strip() for cell in cells):
                        raise ValueError(f"{where}: {cells!r} is not an {header[0]} and a value")
                    rows.append((cells[0].strip(), cells[1].strip()))
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
        return rows

    def recognise(head: str) -> bool:
        first = head.split("\n", 1)[0].rstrip("\r")
        return [cell.strip() for cell in first.split(delimiter)] == list(header)

    return {"write": write, "parse": parse, "recognise": recognise}


TRUTH = ("0", "1")
TWO_WAY = ("entailment", "not_entailment")
THREE_WAY = ("contradiction", "entailment", "neutral")
GLUE_FILES: Mapping[str, tuple[str, ...]] = {
    "CoLA.tsv": TRUTH,
    "SST-2.tsv": TRUTH,
    "MRPC.tsv": TRUTH,
    "QQP.tsv": TRUTH,
    "STS-B.tsv": (),
    "MNLI-m.tsv": THREE_WAY,
    "MNLI-mm.tsv": THREE_WAY,
    "QNLI.tsv": TWO_WAY,
    "RTE.tsv": TWO_WAY,
    "WNLI.tsv": TRUTH,
    "AX.tsv": THREE_WAY,
}
"""What GLUE's server calls the files, and the labels of each; none for a number from 0 to 5."""

_GLUE = _table(("index", "prediction"), "\t")


def _check_glue(keys: Sequence[str], file_name: str) -> None:
    if file_name not in GLUE_FILES:
        raise ConfigError(
            f"GLUE's server tells the tasks by the names of the files, and {file_name!r} is none "
            f"of them: write to one of {', '.join(GLUE_FILES)}"
        )
    _check_whole(keys, file_name)


def _write_glue(rows: Rows, file_name: str) -> str:
    """Write a file of GLUE's server, which tells the tasks by the names of the files.

    Raises:
        ConfigError: The name is none of the server's.
        DataError: A label is none of the task's.
    """
    _check_glue([key for key, _ in rows], file_name)
    labels = GLUE_FILES[file_name]
    written: Rows = []
    for key, value in rows:
        if not labels:
            value = f"{min(max(_number(value, file_name), 0.0), 5.0):.3f}"
        elif str(value) not in labels:
            known = " and ".join(labels)
            raise DataError(
                f"{file_name} holds {known}, and the model predicts {value!r}: was it fine-tuned "
                "on another of GLUE's tasks?"
            )
        written.append((key, value))
    return str(_GLUE["write"](sorted(written, key=lambda row: int(row[0])), file_name))


def _number(value: Any, file_name: str) -> float:
    if not _is_finite(value):
        raise DataError(f"{file_name} holds numbers from 0 to 5, and the model predicts {value!r}")
    return float(value)


def _write_memes(rows: Rows, file_name: str) -> str:
    """Write `id,proba,label` lines: the probability of hate, and whether it is above one half."""
    _check_whole([key for key, _ in rows], file_name)
    lines = [f"{key},{float(value)!r},{int(value > 0.5)}\n" for key, value in rows]
    return "id,proba,label\n" + "".join(lines)


def _parse_memes(text: str) -> Rows:
    rows: Rows = []
    for number, line in _lines(text)[1:]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 3 or cells[2] not in TRUTH or not _is_share(cells[1]):
            raise ValueError(f"line {number}: {line[:60]!r} is not id,proba,label")
        rows.append((cells[0], {"positive": float(cells[1]), "label": cells[2]}))
    return rows


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _write_trec(rows: Rows, file_name: str) -> str:
    """Write `QUERY Q0 CANDIDATE RANK SCORE TAG` lines, the best candidate first."""
    _check_spaces([key for key, _ in rows], file_name)
    tag = re.sub(r"\s", "_", Path(file_name).stem) or "triptych"
    return "".join(
        f"{key} Q0 {candidate} {rank} {score!r} {tag}\n"
        for key, ranked in rows
        for rank, (candidate, score) in enumerate(ranked, 1)
    )


def _check_spaces(keys: Sequence[str], file_name: str) -> None:
    bad = next((key for key in keys if re.search(r"\s", key)), None)
    if bad is not None:
        raise DataError(
            f"{file_name}: the id {bad!r} holds a space, which this form cannot: write the "
            "predictions in our own form, without --format"
        )


def _parse_trec(text: str) -> Rows:
    """Return the candidates of each query in the order of their ranks."""
    found: dict[str, list[tuple[int, str, float]]] = {}
    for number, line in _lines(text):
        cells = line.split()
        try:
            query, _, candidate, rank, score, _ = cells
            found.setdefault(query, []).append((int(rank), candidate, float(score)))
        except ValueError:
            message = f"line {number}: {line[:60]!r} is not QUERY Q0 CANDIDATE RANK SCORE TAG"
            raise ValueError(message) from None
    rows: Rows = []
    for query, listed in found.items():
        if len({candidate for _, candidate, _ in listed}) < len(listed):
            raise ValueError(f"a candidate of query {query!r} comes twice")
        rows.append((query, [[c, s] for _, c, s in sorted(listed, key=lambda entry: entry[0])]))
    return rows


def _lines(text: str) -> list[tuple[int, str]]:
    """Return (number from 1, line) of the lines that are not blank."""
    return [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _first_line(head: str) -> str:
    return next((line for line in head.splitlines() if line.strip()), "")


FORMS: Registry[SubmissionForm] = Registry("format")
"""By name."""


def register_form(form: SubmissionForm) -> None:
    """Make a form known.

    Raises:
        ConfigError: Its name is taken.
    """
    FORMS.register(form.name)(form)


OWN = "jsonl"
"""The name of our own form, which `workflows/predictions.py` writes."""


def find_form(name: str, allowed: Sequence[str], task: str) -> SubmissionForm:
    """Return a form that an evaluation may be written in.

    Raises:
        ConfigError: The evaluation has no such form; the message lists those that it has.
    """
    if name not in allowed:
        listed = [f"{form} ({FORMS.get(form).reader})" for form in allowed]
        others = ", ".join([f"{OWN} (our own)", *listed])
        raise ConfigError(
            f"format {name!r} is none of those of {task}{nearest(name, allowed)}: {others}"
        )
    return FORMS.get(name)


def recognise_form(text: str) -> SubmissionForm | None:
    """Return the form of a file by its beginning; None where it is of none that is known."""
    head = text[:HEAD_CHARS]
    return next((form for form in FORMS.entries().values() if form.recognise(head)), None)


for _form in (
    SubmissionForm(
        "vqa",
        "EvalAI's server of VQAv2 and the official script",
        "id",
        ("text",),
        **_texts(_json_list("question_id", "answer", whole=True)),
    ),
    SubmissionForm(
        "coco",
        "COCO's and NoCaps' servers and the official script",
        "image_id",
        ("text",),
        **_texts(_json_list("image_id", "caption", whole=True)),
    ),
    SubmissionForm(
        "refcoco",
        "scripts that compare boxes; there is no server",
        "id",
        ("box_xyxy",),
        **_boxes(_json_list("sent_id", "pred_box", whole=False)),
    ),
    SubmissionForm(
        "nlvr2",
        "the official script",
        "id",
        ("label",),
        _write_nlvr2,
        _parse_nlvr2,
        lambda head: (
            re.fullmatch(r"[^,\s]+-[^,]+,(?i:true|false)\s*", _first_line(head)) is not None
        ),
    ),
    SubmissionForm(
        "snli_ve",
        "the table of MultiNLI's servers; SNLI-VE has none of its own",
        "id",
        ("label",),
        **_table(("pairID", "gold_label"), ","),
    ),
    SubmissionForm(
        "glue",
        "GLUE's server",
        "number",
        ("label", "value"),
        _write_glue,
        _GLUE["parse"],
        _GLUE["recognise"],
        _check_glue,
    ),
    SubmissionForm(
        "hateful_memes",
        "DrivenData's server of the Hateful Memes Challenge",
        "id",
        ("positive",),
        _write_memes,
        _parse_memes,
        lambda head: _first_line(head).replace(" ", "") == "id,proba,label",
        _check_whole,
    ),
    SubmissionForm(
        "csv",
        "a table of ids and labels",
        "id",
        ("label", "value"),
        **_table(("id", "label"), ","),
    ),
    SubmissionForm(
        "trec",
        "trec_eval, a run of ranked ids",
        "id",
        ("reranked", "ranked"),
        _write_trec,
        _parse_trec,
        lambda head: re.fullmatch(r"\S+ Q0 \S+ \d+ \S+ \S+", _first_line(head)) is not None,
        _check_spaces,
    ),
):
    register_form(_form)
