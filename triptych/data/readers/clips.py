"""Captions of clips and questions about them: MSRVTT, MSVD and VATEX, as they are published."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.core.reading import open_text, read_json, reading
from triptych.data.entries import EntryError, parse_answers, parse_caption, parse_text
from triptych.data.lines import bounded_lines, read_lines
from triptych.data.records import Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, Parts, RecordList, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout

Entries = Iterator[Record | Skipped | Parts]

FOLDERS = ("", "videos/", "video/", "TrainValVideo/", "TestVideo/", "YouTubeClips/")
SUFFIXES = (".mp4", ".avi", ".webm", ".mkv")
LAYOUTS: tuple[Callable[[str], str], ...] = tuple(
    f"{folder}{{}}{suffix}".format for suffix in SUFFIXES for folder in FOLDERS
)
"""Where a clip may lie; that of the first clips that are found holds for all."""


def _paths(source: DataSourceConfig, names: Sequence[str]) -> dict[str, str]:
    """Return the path of each clip.

    Raises:
        DataError: None of the first is where it was looked for.
    """
    layout = choose_layout(source.root, LAYOUTS, names, "clips")
    return {name: str(source.root / layout(name)) for name in names}


def _captioned(
    record_id: str, image_id: str, path: str, caption: Any, where: str
) -> Record | Skipped:
    try:
        text = parse_caption(caption)
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    return Record(record_id=record_id, image_id=image_id, video=path, caption=text)


def is_msrvtt(data: Any) -> bool:
    """Return whether JSON content lists videos, and sentences by video id."""
    return isinstance(data, dict) and all(
        isinstance(data.get(name), list) for name in ("videos", "sentences")
    )


def read_msrvtt(data: Any, source: DataSourceConfig) -> RecordList:
    """Read one record for each sentence; those of a clip share `image_id`.

    The file's splits are `train`, `validate` and `test`; `val` is taken for `validate`. A clip
    `video7` is `video7.mp4` in `image_root`, or its `videos`, `video` or `TrainValVideo` folder.

    Args:
        data: The file's content.
        source: Where the clips are, and the split.

    Raises:
        DataError: No such split, no clip where it was looked for, or another format.
    """
    if not is_msrvtt(data):
        raise DataError(f"{source.path}: not an MSRVTT file: needs 'videos' and 'sentences'")
    found = RecordList()
    parts: dict[str, str | None] = {}
    for index, video in enumerate(data["videos"]):
        if isinstance(video, dict) and isinstance(video.get("video_id"), str):
            parts[video["video_id"]] = video.get("split")
        else:
            where = f"{source.path}: videos[{index}]"
            found.skipped.append(Skipped(SkipKind.MISSING_FIELD, where, "has no 'video_id'"))
    splits = {str(part) for part in parts.values() if part is not None}
    wanted = source.split
    if wanted == "val" and "val" not in splits and "validate" in splits:
        wanted = "validate"
    found.parts = check_split(wanted, splits, source.path)
    chosen = [name for name, part in parts.items() if wanted in (None, part)]
    found.add(_sentences(data, _paths(source, chosen), parts, source.path))
    return found


def _sentences(
    data: Any, paths: Mapping[str, str], known: Mapping[str, Any], where: str
) -> Iterator[Record | Skipped]:
    """Yield the sentences on clips with a path; other clips that are known are passed over."""
    for index, sentence in enumerate(data["sentences"]):
        video_id = sentence.get("video_id") if isinstance(sentence, dict) else None
        here = f"{where}: sentences[{index}]"
        if isinstance(video_id, str) and video_id in paths:
            own_id = str(sentence.get("sen_id", index))
            yield _captioned(own_id, video_id, paths[video_id], sentence.get("caption"), here)
        elif not (isinstance(video_id, str) and video_id in known):
            message = f"video_id {video_id!r} is not among 'videos'"
            yield Skipped(SkipKind.BAD_RECORD, here, message)


ONE_K_A_COLUMNS = "key,vid_key,video_id,sentence"
SENTENCES_FILE = "MSRVTT_data.json"


def read_msrvtt_1k_a(source: DataSourceConfig) -> Entries:
    """Read the 1K-A split for retrieval (Yu et al. 2018).

    `MSRVTT_JSFUSION_test.csv` holds 1,000 clips with one sentence each; `MSRVTT_train.9k.csv` and
    `MSRVTT_train.7k.csv` list clips, whose sentences are in `MSRVTT_data.json` beside them, or in
    the file that `annotations` names.

    Raises:
        DataError: No clip where it was looked for, no sentences, or other columns.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    with reading(path), open_text(path, errors="replace", newline="") as file:
        rows = list(csv.DictReader(bounded_lines(file)))
    if not rows or "video_id" not in rows[0]:
        raise DataError(f"{path}: needs a column 'video_id' (columns: {ONE_K_A_COLUMNS})")
    paths = _paths(source, [row["video_id"] for row in rows if row["video_id"]])
    if "sentence" not in rows[0]:
        beside = Path(source.annotations or path.with_name(SENTENCES_FILE))
        content = read_json(beside)
        if not is_msrvtt(content):
            raise DataError(f"{beside}: not an MSRVTT file: needs 'videos' and 'sentences'")
        known = {str(v.get("video_id")): v for v in content["videos"] if isinstance(v, dict)}
        yield from _sentences(content, paths, known, str(beside))
        return
    for number, row in enumerate(rows, start=2):
        here, name = f"{path}:{number}", row["video_id"]
        if not name:
            yield Skipped(SkipKind.MISSING_FIELD, here, "has no video_id")
        else:
            own_id = row.get("key") or str(number)
            yield _captioned(own_id, name, paths[name], row["sentence"] or "", here)


def _is_qa(data: Any) -> bool:
    first = data[0] if isinstance(data, list) and data else None
    return (
        isinstance(first, dict)
        and {"question", "answer"} <= first.keys()
        and isinstance(first.get("video_id"), int)
    )


def is_msrvtt_qa(data: Any) -> bool:
    """Return whether JSON content is a list of questions about clips with their categories."""
    return _is_qa(data) and "category_id" in data[0]


def is_msvd_qa(data: Any) -> bool:
    """Return whether JSON content is a list of questions about clips without categories."""
    return _is_qa(data) and "category_id" not in data[0]


def read_msrvtt_qa(data: Any, source: DataSourceConfig) -> Entries:
    """Read MSRVTT-QA (Xu et al. 2017): question 5 on `video_id` 7 is about `video7.mp4`.

    Raises:
        DataError: No clip where it was looked for, or another format.
    """
    return _questions(data, source, lambda number: f"video{number}")


def read_msvd_qa(data: Any, source: DataSourceConfig) -> Entries:
    """Read MSVD-QA (Xu et al. 2017): `youtube_mapping.txt` names the clip of a `video_id`.

    Without the mapping, clips are looked for as `vid7.avi` or `.mp4`.

    Raises:
        DataError: No clip where it was looked for, or another format.
    """
    named = {alias: name for name, alias in _mapping(source).items()}
    return _questions(data, source, lambda number: named.get(f"vid{number}", f"vid{number}"))


def _questions(data: Any, source: DataSourceConfig, name_of: Callable[[Any], str]) -> Entries:
    if not _is_qa(data):
        raise DataError(
            f"{source.path}: not a list of questions with 'question', 'answer' and 'video_id'"
        )
    check_split(source.split, (), source.path)
    numbers = [e["video_id"] for e in data if isinstance(e, dict) and "video_id" in e]
    paths = _paths(source, list(dict.fromkeys(map(name_of, numbers))))
    for index, entry in enumerate(data):
        where = f"{source.path}: [{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), int):
            yield Skipped(SkipKind.BAD_RECORD, where, "needs a number 'video_id'")
            continue
        name = name_of(entry["video_id"])
        try:
            question = parse_text("question", entry.get("question"))
            yield Record(
                record_id=str(entry.get("id", index)),
                image_id=name,
                video=paths[name],
                question=question,
                answers=parse_answers(entry.get("answer")),
                question_type=str(entry.get("question_type") or question.split()[0].lower()),
            )
        except EntryError as error:
            yield Skipped(error.kind, where, str(error))


MAPPING_FILE = "youtube_mapping.txt"
MSVD_PARTS = {"train": (1, 1200), "val": (1201, 1300), "test": (1301, 1970)}
"""First and last clip of each split by the mapping's numbers (Venugopalan et al. 2015)."""

_MSVD_LINE = re.compile(r"(\S{11}_\d+_\d+)\s+(.*)")


def _mapping(source: DataSourceConfig) -> dict[str, str]:
    """Return clips to their numbers, `-4wsuPCjDBc_5_15` to `vid1`; empty without the file."""
    path = Path(source.annotations or Path(source.path).with_name(MAPPING_FILE))
    if source.annotations is None and not path.is_file():
        return {}
    pairs = (line.split() for _, line in read_lines(path) if isinstance(line, str))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def read_msvd(source: DataSourceConfig) -> Entries:
    """Read `AllVideoDescriptions.txt`: a line is a clip's name and a sentence.

    The lines at its head that begin with `#` are passed over. For a split, `youtube_mapping.txt`
    tells the number of each clip.

    Raises:
        DataError: No clip where it was looked for, or a split is asked for without the mapping.
    """
    path = Path(source.path)
    lines: list[tuple[str, str, str] | Skipped] = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if isinstance(line, Skipped):
            lines.append(line)
            continue
        told = _MSVD_LINE.fullmatch(line.strip())
        if told is not None:
            lines.append((where, told[1], told[2]))
        elif line.strip() and not line.startswith("#"):
            message = "needs the name of a clip and a sentence"
            lines.append(Skipped(SkipKind.BAD_RECORD, where, message))
    names = dict.fromkeys(entry[1] for entry in lines if not isinstance(entry, Skipped))
    chosen = _in_split(source, list(names))
    paths = _paths(source, chosen)
    for index, entry in enumerate(lines):
        if isinstance(entry, Skipped):
            yield entry
        elif entry[1] in paths:
            where, name, sentence = entry
            yield _captioned(f"{name}#{index}", name, paths[name], sentence, where)
    yield Parts(() if source.split is not None else tuple(MSVD_PARTS))


def _in_split(source: DataSourceConfig, names: list[str]) -> list[str]:
    if source.split is None:
        return names
    check_split(source.split, MSVD_PARTS, source.path)
    numbers = _mapping(source)
    if not numbers:
        raise DataError(
            f"{source.path}: split {source.split!r} needs {MAPPING_FILE} beside it, or named by "
            "annotations: it numbers the clips, and the splits are ranges of numbers"
        )
    first, last = MSVD_PARTS[source.split]
    known = {f"vid{number}" for number in range(first, last + 1)}
    return [name for name in names if numbers.get(name) in known]


def is_vatex(data: Any) -> bool:
    """Return whether JSON content is a list of clips by `videoID`."""
    return isinstance(data, list) and bool(data) and _has_id(data[0])


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("videoID"), str)


def read_vatex(data: Any, source: DataSourceConfig) -> Entries:
    """Read `vatex_training_v1.0.json`: the English captions of each clip (Wang et al. 2019).

    A clip of the private test set, which has no caption, is a record without one.

    Raises:
        DataError: No clip where it was looked for, or another format.
    """
    if not is_vatex(data):
        raise DataError(f"{source.path}: not a VATEX file: a list of clips with a 'videoID'")
    check_split(source.split, (), source.path)
    paths = _paths(source, [entry["videoID"] for entry in data if _has_id(entry)])
    for index, entry in enumerate(data):
        where = f"{source.path}: [{index}]"
        if not _has_id(entry):
            yield Skipped(SkipKind.MISSING_FIELD, where, "has no 'videoID'")
            continue
        name = entry["videoID"]
        if "enCap" not in entry:
            yield Record(record_id=name, image_id=name, video=paths[name])
            continue
        captions = entry["enCap"]
        if not isinstance(captions, list) or not captions:
            yield Skipped(SkipKind.EMPTY_CAPTION, where, "'enCap' is no list of captions")
            continue
        for number, caption in enumerate(captions):
            here = f"{where}.enCap[{number}]"
            yield _captioned(f"{name}#{number}", name, paths[name], caption, here)


def _clips(folder: str, name: str, suffix: str, count: int | None) -> Expected:
    """Return the clips of a dataset as its layout expects them."""
    other = tuple(f"{part}{name}{kind}" for part in FOLDERS for kind in SUFFIXES)
    return Expected(f"{folder}{name}{suffix}", "clips", count, other=other)


MSRVTT_URL = "https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-"
MSRVTT_URL += "description-dataset-for-bridging-video-and-language/"
QA_URL = "https://github.com/xudejing/video-question-answering"
MSVD_URL = "https://www.cs.utexas.edu/~ml/clamp/videoDescription/"

FORMATS = (
    Format(
        name="msrvtt",
        title="MSRVTT (Xu et al. 2016): captions of clips",
        fields=("video", "caption"),
        read_json=read_msrvtt,
        tells="'videos' and 'sentences'",
        of_json=is_msrvtt,
        parts="train, validate (or val), test",
        layouts=(
            Layout(
                "MSRVTT",
                "msrvtt",
                MSRVTT_URL,
                (
                    Expected("train_val_videodatainfo.json", "captions of 7,010 clips"),
                    Expected("test_videodatainfo.json", "captions of 2,990 clips"),
                    _clips("videos/", "video*", ".mp4", 10_000),
                ),
                ("msrvtt/test_videodatainfo.json --split test",),
            ),
        ),
    ),
    Format(
        name="msrvtt_1k_a",
        title="MSRVTT's 1K-A split for retrieval (Yu et al. 2018)",
        fields=("video", "caption"),
        read=read_msrvtt_1k_a,
        tells=f"the columns {ONE_K_A_COLUMNS}, or video_id alone",
        of_line=lambda line: line.strip() in (ONE_K_A_COLUMNS, "video_id"),
        suffixes=(".csv",),
        beside=lambda path: [path.with_name(SENTENCES_FILE)] * (path.suffix == ".csv"),
        layouts=(
            Layout(
                "MSRVTT, 1K-A",
                "msrvtt",
                "https://github.com/ArrowLuo/CLIP4Clip/releases/tag/v0.0",
                (
                    Expected("MSRVTT_JSFUSION_test.csv", "1,000 clips with a sentence each"),
                    Expected("MSRVTT_train.9k.csv", "9,000 clips for training", optional=True),
                    Expected(SENTENCES_FILE, "sentences of all clips", optional=True),
                    _clips("videos/", "video*", ".mp4", 10_000),
                ),
                ("msrvtt/MSRVTT_JSFUSION_test.csv",),
            ),
        ),
    ),
    Format(
        name="msrvtt_qa",
        title="MSRVTT-QA (Xu et al. 2017): questions about clips",
        fields=("video", "question", "answers", "question_type"),
        read_json=read_msrvtt_qa,
        tells="a list of questions with 'video_id' and 'category_id'",
        of_json=is_msrvtt_qa,
        layouts=(
            Layout(
                "MSRVTT-QA",
                "msrvtt",
                QA_URL,
                (
                    Expected("train_qa.json", "158,581 questions for training"),
                    Expected("val_qa.json", "12,278 questions for validation"),
                    Expected("test_qa.json", "72,821 questions for testing"),
                    _clips("videos/", "video*", ".mp4", 10_000),
                ),
                ("msrvtt/test_qa.json",),
            ),
        ),
    ),
    Format(
        name="msvd",
        title="MSVD (Chen and Dolan 2011): captions of clips",
        fields=("video", "caption"),
        read=read_msvd,
        tells="the name of a clip and a sentence a line, as AllVideoDescriptions.txt",
        of_line=lambda line: _MSVD_LINE.fullmatch(line.strip()) is not None,
        of_path=lambda path: Path(path).name == "AllVideoDescriptions.txt",
        files=lambda path: [path],
        suffixes=(".txt",),
        beside=lambda path: [path.with_name(MAPPING_FILE)] * (path.suffix == ".txt"),
        parts="train, val, test, by youtube_mapping.txt",
        layouts=(
            Layout(
                "MSVD",
                "msvd",
                MSVD_URL,
                (
                    Expected("AllVideoDescriptions.txt", "sentences on 1,970 clips"),
                    Expected(MAPPING_FILE, "their numbers, for the splits", optional=True),
                    _clips("YouTubeClips/", "*", ".avi", 1970),
                ),
                ("msvd/AllVideoDescriptions.txt --split test",),
            ),
        ),
    ),
    Format(
        name="msvd_qa",
        title="MSVD-QA (Xu et al. 2017): questions about clips",
        fields=("video", "question", "answers", "question_type"),
        read_json=read_msvd_qa,
        tells="a list of questions with 'video_id' and no 'category_id'",
        of_json=is_msvd_qa,
        beside=lambda path: [path.with_name(MAPPING_FILE)] * (path.suffix.lower() == ".json"),
        layouts=(
            Layout(
                "MSVD-QA",
                "msvd",
                QA_URL,
                (
                    Expected("train_qa.json", "30,933 questions for training"),
                    Expected("val_qa.json", "6,415 questions for validation"),
                    Expected("test_qa.json", "13,157 questions for testing"),
                    Expected(MAPPING_FILE, "the name of the clip of each number"),
                    _clips("YouTubeClips/", "*", ".avi", 1970),
                ),
                ("msvd/test_qa.json",),
            ),
        ),
    ),
    Format(
        name="vatex",
        title="VATEX (Wang et al. 2019): captions of clips",
        fields=("video", "caption"),
        read_json=read_vatex,
        tells="a list of clips with 'videoID'",
        of_json=is_vatex,
        layouts=(
            Layout(
                "VATEX",
                "vatex",
                "https://eric-xw.github.io/vatex-website/download.html",
                (
                    Expected("vatex_training_v1.0.json", "captions of 25,991 clips"),
                    Expected("vatex_validation_v1.0.json", "captions of 3,000 clips"),
                    Expected(
                        "vatex_public_test_english_v1.1.json",
                        "captions of 6,000 clips",
                        optional=True,
                    ),
                    _clips("videos/", "*", ".mp4", None),
                ),
                ("vatex/vatex_validation_v1.0.json",),
            ),
        ),
    ),
)
