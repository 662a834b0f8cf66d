"""MSRVTT: clips with about twenty sentences each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_caption
from triptych.data.records import Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, RecordList, check_split, choose_layout


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
    layout = choose_layout(source.root, LAYOUTS, chosen, "clips")
    paths = {name: str(source.root / layout(name)) for name in chosen}
    for index, sentence in enumerate(data["sentences"]):
        video_id = sentence.get("video_id") if isinstance(sentence, dict) else None
        if isinstance(video_id, str) and video_id in parts and video_id not in paths:
            continue
        where = f"{source.path}: sentences[{index}]"
        found.add([_record(sentence, index, where, paths)])
    return found


def _record(sentence: Any, index: int, where: str, paths: Mapping[str, str]) -> Record | Skipped:
    video_id = sentence.get("video_id") if isinstance(sentence, dict) else None
    if not isinstance(video_id, str) or video_id not in paths:
        message = f"video_id {video_id!r} is not among 'videos'"
        return Skipped(SkipKind.BAD_RECORD, where, message)
    try:
        caption = parse_caption(sentence.get("caption"))
    except EntryError as error:
        return Skipped(error.kind, where, str(error))
    return Record(
        record_id=str(sentence.get("sen_id", index)),
        image_id=video_id,
        caption=caption,
        video=paths[video_id],
    )


LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: f"{name}.mp4",
    lambda name: f"videos/{name}.mp4",
    lambda name: f"video/{name}.mp4",
    lambda name: f"TrainValVideo/{name}.mp4",
)
