"""Flickr30k and Flickr8k as published: five captions an image, one a line of a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_caption
from triptych.data.lines import read_lines
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split, choose_layout, peek
from triptych.data.spec import Expected, Format, Layout

HEADER = "image_name|"
TOKEN_LINE = re.compile(r"(?P<image>[^\t#]+\.jpg)#(?P<number>\d+)\t(?P<caption>.*)")
# One line of the published table lacks its second |.
CSV_LINE = re.compile(r"(?P<image>[^|]+\.jpg)\|\s*(?P<number>\d+)\s*(?:\||\s)(?P<caption>.*)")


def is_flickr30k(first: str) -> bool:
    """Return whether a first line is of `results_20130124.token` or of `results.csv`."""
    return first.startswith(HEADER) or TOKEN_LINE.fullmatch(first) is not None


def read_flickr30k(source: DataSourceConfig) -> Iterator[Record | Skipped]:
    """Read `results_20130124.token` (also Flickr8k's), or `results.csv` with `|` between cells.

    The files have no splits; those of the papers are in Karpathy's `dataset_flickr30k.json`.

    Raises:
        DataError: The file cannot be read, none of its first lines is a caption, or no image is
            where it was looked for.
    """
    if source.split is not None:
        raise DataError(
            f"{source.path}: split = {source.split!r} is asked for, but these files have no "
            "splits: read Karpathy's dataset_flickr30k.json, which holds the same captions"
        )
    check_split(source.split, (), source.path)
    first, lines = peek(_lines(source.path))
    names = [line["image"].strip() for _, line in first if isinstance(line, re.Match)]
    if not names:
        raise DataError(
            f"{source.path}: none of its first lines is like '1000092795.jpg#0', a tab and a "
            "caption, or like '1000092795.jpg| 0| caption'"
        )
    locate = choose_layout(source.root, LAYOUTS, names, "images")
    for where, line in lines:
        if isinstance(line, Skipped):
            yield line
            continue
        name = line["image"].strip()
        try:
            caption = parse_caption(line["caption"])
        except EntryError as error:
            yield Skipped(error.kind, where, str(error))
            continue
        image = ImageSource(str(source.root / locate(name)))
        own_id = f"{name}#{line['number']}"
        yield Record(record_id=own_id, image=image, image_id=name, caption=caption)


def _lines(path: str) -> Iterator[tuple[str, re.Match[str] | Skipped]]:
    """Yield where each line stands, and its parts or why it has none."""
    for number, line in read_lines(Path(path)):
        where = f"{path}:{number}"
        if isinstance(line, Skipped):
            yield where, line
        elif not (number == 1 and line.startswith(HEADER)):
            parts = TOKEN_LINE.fullmatch(line) or CSV_LINE.fullmatch(line)
            message = "is not an image, a number and a caption"
            yield where, parts or Skipped(SkipKind.BAD_RECORD, where, message)


LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: f"flickr30k-images/{name}",
    lambda name: f"flickr30k_images/{name}",
    lambda name: f"images/{name}",
    lambda name: f"Flicker8k_Dataset/{name}",
)

FORMAT = Format(
    name="flickr30k",
    title="Flickr30k (Young et al. 2014) and Flickr8k as published, without splits",
    fields=("image", "caption"),
    read=read_flickr30k,
    tells="lines of an image's name, a number and a caption",
    of_line=is_flickr30k,
    suffixes=(".token", ".csv", ".txt"),
    layouts=(
        Layout(
            "Flickr30k, all captions",
            "flickr30k",
            "https://shannon.cs.illinois.edu/DenotationGraph/",
            (
                Expected("results_20130124.token", "158,915 captions", other=("results.csv",)),
                Expected(
                    "flickr30k-images/*.jpg",
                    "images",
                    31_783,
                    other=("flickr30k_images/*.jpg", "images/*.jpg", "*.jpg"),
                ),
            ),
            ("flickr30k/results_20130124.token", "flickr30k/results.csv"),
        ),
    ),
)
