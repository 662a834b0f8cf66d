"""VQAv2: a questions file, and an annotations file that the test parts do not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import read_json
from triptych.data.entries import EntryError, parse_answers, parse_text
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout


def is_vqav2(data: Any) -> bool:
    """Return whether JSON content is a questions file."""
    questions = data.get("questions") if isinstance(data, dict) else None
    if not isinstance(questions, list) or not questions or not isinstance(questions[0], dict):
        return False
    return "question" in questions[0] and "image_id" in questions[0]


def read_vqav2(data: Any, source: DataSourceConfig) -> RecordList:
    """Read the questions with their ten answers.

    Images are looked for in `image_root` and `image_root/<data_subtype>`, under
    `COCO_<data_subtype>_000000000042.jpg` and `000000000042.jpg`. Where `annotations` is not
    given, the official name beside the questions is looked for; a questions file of a test part
    (`data_subtype` begins with `test`) may have none, and its records have no answers then.

    Raises:
        DataError: No image or annotations file where it was looked for, or another format.
    """
    if not is_vqav2(data):
        raise DataError(
            f"{source.path}: not a VQAv2 questions file: needs 'questions' whose entries have "
            "'question', 'image_id' and 'question_id'"
        )
    check_split(source.split, (), source.path)
    subtype = str(data.get("data_subtype", ""))
    answers = _load_annotations(source, subtype)
    found = RecordList()
    usable = []
    for index, question in enumerate(data["questions"]):
        where = f"{source.path}: questions[{index}]"
        if isinstance(question, dict) and _is_whole(question.get("image_id")):
            usable.append((where, question))
        else:
            message = "has no whole number as 'image_id'"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, message))
    ids = [int(question["image_id"]) for _, question in usable]
    layout = choose_layout(source.root, _layouts(subtype), ids, "images")
    for (where, question), image_id in zip(usable, ids):
        image = ImageSource(str(source.root / layout(image_id)))
        found.add([_record(question, where, image, answers)])
    return found


def _record(
    question: Mapping[str, Any],
    where: str,
    image: ImageSource,
    annotations: Mapping[str, Mapping[str, Any]] | None,
) -> Record | Skipped:
    own_id = question.get("question_id")
    if not isinstance(own_id, (int, str)):
        return Skipped(SkipKind.MISSING_FIELD, where, "has no 'question_id'")
    annotation: Mapping[str, Any] = {}
    if annotations is not None:
        if str(own_id) not in annotations:
            message = f"question_id {own_id} is not in the annotations file"
            return Skipped(SkipKind.BAD_ANSWERS, where, message)
        annotation = annotations[str(own_id)]
    try:
        text = parse_text("question", question.get("question"))
        answers = parse_answers(annotation.get("answers"))
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    if annotations is not None and not answers:
        return Skipped(SkipKind.BAD_ANSWERS, where, f"question_id {own_id} has no answers")
    kind, answer_type = annotation.get("question_type"), annotation.get("answer_type")
    return Record(
        record_id=str(own_id),
        image=image,
        image_id=str(question["image_id"]),
        question=text,
        answers=answers,
        question_type=kind if isinstance(kind, str) else None,
        answer_type=answer_type if isinstance(answer_type, str) else None,
    )


def _load_annotations(
    source: DataSourceConfig, subtype: str
) -> dict[str, Mapping[str, Any]] | None:
    """Return annotations by question id; None for a test part without any."""
    path = _annotations_path(source, subtype)
    if path is None:
        return None
    data = read_json(path)
    annotations = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(annotations, list):
        raise DataError(f"{path}: not a VQAv2 annotations file: needs 'annotations'")
    return {
        str(entry["question_id"]): entry
        for entry in annotations
        if isinstance(entry, dict) and "question_id" in entry
    }


def _annotations_path(source: DataSourceConfig, subtype: str) -> Path | None:
    if source.annotations is not None:
        return Path(source.annotations)
    path = Path(source.path)
    tried = annotation_paths(path)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    if subtype.startswith("test"):
        return None
    raise DataError(
        f"{path}: has no annotations file; tried: {', '.join(map(str, tried)) or 'no name'}. "
        "Set annotations to its path"
    )


def annotation_paths(questions: Path) -> list[Path]:
    """Return where the annotations of a questions file may lie, the official name first."""
    names = (
        questions.name.replace("OpenEnded_", "").replace("questions", "annotations"),
        questions.name.replace("questions", "annotations"),
    )
    return [questions.with_name(n) for n in dict.fromkeys(names) if n != questions.name]


def _layouts(subtype: str) -> list[Callable[[int], str]]:
    """Return where an image may lie; `test-dev2015` uses the images of `test2015`."""
    part = subtype.replace("-dev", "")
    names: list[Callable[[int], str]] = [
        lambda image_id: f"COCO_{part}_{image_id:012d}.jpg",
        lambda image_id: f"{part}/COCO_{part}_{image_id:012d}.jpg",
        lambda image_id: f"images/COCO_{part}_{image_id:012d}.jpg",
        lambda image_id: f"{image_id:012d}.jpg",
        lambda image_id: f"{part}/{image_id:012d}.jpg",
        lambda image_id: f"../coco/{part}/COCO_{part}_{image_id:012d}.jpg",
    ]
    return names


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


VQA_2 = "v2_OpenEnded_mscoco_{}_questions.json"
FORMAT = Format(
    name="vqav2",
    title="VQAv2 (Goyal et al. 2017): questions with ten answers",
    fields=("image", "question", "answers", "question_type", "answer_type"),
    read_json=read_vqav2,
    tells="'questions' with an 'image_id'",
    of_json=is_vqav2,
    beside=lambda path: annotation_paths(path) if path.suffix.lower() == ".json" else [],
    layouts=(
        Layout(
            "VQAv2",
            "vqav2",
            "https://visualqa.org/download.html",
            (
                Expected(VQA_2.format("train2014"), "443,757 questions for training"),
                Expected("v2_mscoco_train2014_annotations.json", "their answers"),
                Expected(VQA_2.format("val2014"), "214,354 questions for validation"),
                Expected("v2_mscoco_val2014_annotations.json", "their answers"),
                Expected(VQA_2.format("test-dev2015"), "questions without answers", optional=True),
                Expected(VQA_2.format("test2015"), "questions without answers", optional=True),
                *(
                    Expected(
                        f"{part}/COCO_{part}_*.jpg",
                        "COCO's images",
                        count,
                        optional=part == "test2015",
                        other=(f"../coco/{part}/COCO_{part}_*.jpg",),
                    )
                    for part, count in (
                        ("train2014", 82_783),
                        ("val2014", 40_504),
                        ("test2015", 81_434),
                    )
                ),
            ),
            (f"vqav2/{VQA_2.format('val2014')}",),
        ),
    ),
)
