"""GQA (Hudson and Manning 2019): questions by id, with one answer; read one question at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_answers, parse_text
from triptych.data.lines import iterate_json
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split, choose_layout, peek
from triptych.data.spec import Expected, Format, Layout

PARTS = "*_all_questions_*.json"
"""The files of the folder `train_all_questions`."""


def is_gqa(key: str | int, value: Any) -> bool:
    """Return whether the first member of a file is a question with the id of its image."""
    return (
        isinstance(key, str) and isinstance(value, dict) and {"question", "imageId"} <= set(value)
    )


def is_gqa_folder(path: str) -> bool:
    """Return whether a path is a folder of the parts of one set of questions."""
    return Path(path).is_dir() and any(Path(path).glob(PARTS))


def question_files(path: str) -> list[str]:
    """Return the file, or those of a folder."""
    return sorted(map(str, Path(path).glob(PARTS))) if Path(path).is_dir() else [path]


def read_gqa(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read `train_balanced_questions.json` and the like, or the folder `train_all_questions`.

    The question type is GQA's structural one (`verify`, `query`, `choose`, `logical`, `compare`),
    the answer type its semantic one (`object`, `attribute`, `category`, `relation`, `global`). The
    questions of the test and challenge sets have no answers.

    Raises:
        DataError: A file is damaged or of another kind, or no image is where it was looked for.
    """
    check_split(source.split, (), source.path)
    locate: Callable[[Any], str] | None = None
    files = question_files(source.path)
    for file in files:
        first, questions = peek(iterate_json(Path(file)))
        images = [value["imageId"] for key, value in first if is_gqa(key, value)]
        if not images:
            raise DataError(
                f"{file}: none of its first {len(first)} members is a question of GQA's: needs "
                "question ids to objects with 'question' and 'imageId'"
            )
        if locate is None:
            locate = choose_layout(source.root, LAYOUTS, images, "images")
        for key, value in questions:
            where = f"{file}: {key}"
            try:
                yield _record(key, value, source.root, locate)
            except EntryError as error:
                yield Skipped(error.kind, where, str(error))


def _record(key: str | int, value: Any, root: Path, locate: Callable[[Any], str]) -> Record:
    if not isinstance(value, dict):
        raise EntryError(SkipKind.BAD_RECORD, "is not an object")
    image_id = parse_text("imageId", value.get("imageId"))
    types = value.get("types") if isinstance(value.get("types"), dict) else {}
    return Record(
        record_id=str(key),
        image=ImageSource(str(root / locate(image_id))),
        image_id=image_id,
        question=parse_text("question", value.get("question")),
        answers=parse_answers(value.get("answer")),
        question_type=_word(types, "structural"),
        answer_type=_word(types, "semantic"),
    )


def _word(types: Any, name: str) -> str | None:
    value = types.get(name)
    return value if isinstance(value, str) and value else None


LAYOUTS: tuple[Callable[[Any], str], ...] = (
    lambda image_id: f"images/{image_id}.jpg",
    lambda image_id: f"{image_id}.jpg",
    lambda image_id: f"../images/{image_id}.jpg",
)

FORMAT = Format(
    name="gqa",
    title="GQA (Hudson and Manning 2019): compositional questions with one answer",
    fields=("image", "question", "answers", "question_type", "answer_type"),
    read=read_gqa,
    tells="question ids with 'question' and 'imageId'",
    of_path=is_gqa_folder,
    of_member=is_gqa,
    files=question_files,
    layouts=(
        Layout(
            "GQA",
            "gqa",
            "https://cs.stanford.edu/people/dorarad/gqa/download.html",
            (
                Expected("train_balanced_questions.json", "943,000 questions"),
                Expected("val_balanced_questions.json", "132,062 questions"),
                Expected("testdev_balanced_questions.json", "12,578 questions"),
                Expected(
                    "train_all_questions/train_all_questions_*.json",
                    "parts of 14 million questions",
                    10,
                    optional=True,
                ),
                Expected("images/*.jpg", "images", 148_854),
            ),
            ("gqa/testdev_balanced_questions.json", "gqa/train_all_questions"),
        ),
    ),
)
