"""Sources of FLAVA's PMD with annotation files of their own: narratives, WIT, RedCaps, YFCC100M.

The images are not part of these files: they are downloaded from the addresses in them. Each reader
says under which names it looks for them. Singh et al. 2022, section 4.1 and appendix, says what is
taken of each source.
"""

from __future__ import annotations

import csv
import gzip
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, unquote_plus

from triptych.core.errors import DataError
from triptych.core.reading import open_regular, read_json, reading
from triptych.data.cache import log
from triptych.data.english import is_english, num_words
from triptych.data.entries import EntryError, parse_caption
from triptych.data.lines import bounded_lines
from triptych.data.readers.class_sets import Entries
from triptych.data.readers.manifests import iterate_objects
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, Skipped
from triptych.data.source import DataSourceConfig, check_split, choose_layout
from triptych.data.spec import Expected, Format, Layout
from triptych.data.texts import split_sentences

Names = Sequence[Callable[[Any], str]]
NUM_LOOKED_FOR = 1024


def _find_layout(root: Path, layouts: Names, items: Iterable[Any]) -> Callable[[Any], str]:
    """Return the first layout under which one of the first items has a file.

    More are looked for than in other sets: not every address of a web page still has an image.
    """
    first = list(islice(items, NUM_LOOKED_FOR))
    for layout in layouts:
        paths = (layout(item) for item in first)
        if any(path and (root / path).is_file() for path in paths):
            return layout
    return choose_layout(root, layouts, first, "images")


def is_narrative(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is a localized narrative."""
    return {"dataset_id", "image_id", "annotator_id", "caption"} <= entry.keys()


def _padded(entry: Mapping[str, Any], prefix: str = "") -> str:
    own = str(entry.get("image_id", ""))
    return f"{prefix}{int(own):012d}.jpg" if own.isdecimal() else ""


NARRATIVE_IMAGES: Names = (
    lambda entry: f"{entry.get('image_id', '')}.jpg",
    _padded,
    lambda entry: _padded(entry, f"{str(entry.get('dataset_id', '')).removeprefix('mscoco_')}/"),
    lambda entry: f"{str(entry.get('dataset_id', '')).rpartition('_')[2]}/{entry['image_id']}.jpg",
    lambda entry: f"images/{entry.get('image_id', '')}.jpg",
)


def read_narratives(source: DataSourceConfig) -> Entries:
    """Read Localized Narratives (Pont-Tuset et al. 2020), JSON Lines, a caption for each sentence.

    A narrative describes an image in several sentences, and PMD's captions are short (1.9 million
    pairs of 14 words of 0.85 million narratives of 40), so each sentence is one here. Images are
    `IMAGE_ID.jpg` (Open Images, Flickr30k, ADE20K) or COCO's names, in `image_root`, in a folder of
    the part (`train2017`), or in `images`.

    Raises:
        DataError: The file cannot be read, or no image is found.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    entries = (e[2] for e in iterate_objects(path) if not isinstance(e, Skipped))
    layout = _find_layout(source.root, NARRATIVE_IMAGES, (e for e in entries if is_narrative(e)))
    for entry in iterate_objects(path):
        if isinstance(entry, Skipped):
            yield entry
            continue
        number, where, fields = entry
        if not is_narrative(fields):
            message = "has not all of dataset_id, image_id, annotator_id and caption"
            yield Skipped(SkipKind.MISSING_FIELD, where, message)
            continue
        try:
            caption = parse_caption(fields.get("caption"))
        except EntryError as error:
            yield Skipped(error.kind, where, str(error))
            continue
        image = ImageSource(str(source.root / layout(fields)))
        for index, sentence in enumerate(split_sentences(caption)):
            yield Record(
                record_id=f"{number}#{index}",
                image=image,
                image_id=str(fields["image_id"]),
                caption=sentence,
            )


WIT_HEADER = ("language", "page_url", "image_url")
WIT_CAPTIONS = (
    *("caption_reference_description", "caption_attribution_description"),
    "caption_alt_text_description",
)
_WIT_PREFIX = re.compile(r"English:\s*")


def is_wit(path: str) -> bool:
    """Return whether a file is named as WIT's compressed tables are."""
    return re.fullmatch(r"wit_v1\..*\.tsv\.gz", Path(path).name) is not None


def _wikimedia(steps: int) -> Callable[[str], str]:
    """Return the layout that keeps the last `steps` parts of an address."""
    return lambda url: "/".join(unquote(re.split(r"[?#]", url)[0]).split("/")[-steps:])


WIT_IMAGES: Names = (_wikimedia(1), _wikimedia(3), _wikimedia(5))


def read_wit(source: DataSourceConfig) -> Entries:
    """Read WIT's English rows (Srinivasan et al. 2021), `.tsv` or `.tsv.gz`.

    The caption is the one below the image in the page; where there is none, the one on the image's
    own page, if the table says that it passed the check of its language; else the alternative
    text. Rows without any are not counted: most of the table is in other languages. Images are the
    last part of the address (`Name.jpg`), `a/ab/Name.jpg`, or `wikipedia/commons/a/ab/Name.jpg`.

    Raises:
        DataError: The file cannot be read, is no WIT, or no image is found.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    rows = (row for _, row in _wit_rows(path) if not isinstance(row, Skipped))
    urls = (row["image_url"] for row in rows if _wit_caption(row))
    layout = _find_layout(source.root, WIT_IMAGES, urls)
    for number, row in _wit_rows(path):
        if isinstance(row, Skipped):
            yield row
            continue
        caption = _wit_caption(row)
        if caption and layout(row["image_url"]):
            yield Record(
                record_id=str(number),
                image=ImageSource(str(source.root / layout(row["image_url"]))),
                image_id=row["image_url"],
                caption=caption,
            )


def _wit_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | Skipped]]:
    """Yield line numbers and the English rows of a table."""
    header: list[str] = []
    table = csv.reader((line for _, line in _table_lines(path)), delimiter="\t")
    while True:
        number = table.line_num + 1  # where the row begins: a cell in quotation marks may go on
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield number, Skipped(SkipKind.BAD_RECORD, f"{path}:{number}", f"is no row: {error}")
            continue
        if cells is None:
            return
        if not header:
            header = cells
            if not set(WIT_HEADER) <= set(header):
                raise DataError(f"{path}:1: expected WIT's columns {', '.join(WIT_HEADER)} ...")
        elif len(cells) != len(header):
            message = f"has {len(cells)} cells, the first line {len(header)}"
            yield number, Skipped(SkipKind.BAD_RECORD, f"{path}:{number}", message)
        elif cells[header.index("language")] == "en":
            yield number, dict(zip(header, cells, strict=True))


def _table_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a table, compressed or not; bytes that are no UTF-8 become U+FFFD."""
    with reading(path), open_regular(path) as stored:
        file = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
        for number, line in enumerate(bounded_lines(cast("IO[bytes]", file)), 1):
            yield number, line.decode("utf-8", "replace").replace("\r\n", "\n")


def _wit_caption(row: Mapping[str, str]) -> str | None:
    for name in WIT_CAPTIONS:
        text = " ".join(row.get(name, "").split())
        if name == "caption_attribution_description":
            if row.get("attribution_passes_lang_id", "").lower() != "true":
                continue
            text = _WIT_PREFIX.sub("", text, count=1)
        if text:
            return text
    return None


def is_redcaps(content: Any) -> bool:
    """Return whether JSON content is a file of RedCaps' annotations."""
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and bool(entries) and _has_subreddit(entries[0])


def _has_subreddit(entry: Any) -> bool:
    return isinstance(entry, dict) and {"image_id", "subreddit", "caption"} <= entry.keys()


REDCAPS_FILE = re.compile(r"\w+_20\d\d\.json")
REDCAPS_IMAGES: Names = (
    lambda entry: f"{entry.get('subreddit', '')}/{entry.get('image_id', '')}.jpg",
    lambda entry: f"images/{entry.get('subreddit', '')}/{entry.get('image_id', '')}.jpg",
    lambda entry: f"../images/{entry.get('subreddit', '')}/{entry.get('image_id', '')}.jpg",
)


def is_redcaps_folder(path: str) -> bool:
    """Return whether a folder holds files of RedCaps' annotations."""
    folder = Path(path)
    if not folder.is_dir():
        return False
    first = next((p for p in sorted(folder.glob("*_20??.json")) if _is_redcaps_file(p)), None)
    return first is not None


def _is_redcaps_file(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            is_named = REDCAPS_FILE.fullmatch(path.name) is not None
            return is_named and b'"subreddit"' in file.read(4096)
    except OSError:
        return False


def read_redcaps(source: DataSourceConfig) -> Entries:
    """Read RedCaps' annotations (Desai et al. 2021), a file or a folder of `cats_2019.json`.

    Images are `SUBREDDIT/IMAGE_ID.jpg` in `image_root`, in `images`, or in `../images`.

    Raises:
        DataError: A file cannot be read or has no annotations, or no image is found.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    is_folder = path.is_dir()
    root = Path(source.image_root) if source.image_root else (path if is_folder else path.parent)
    files = sorted(p for p in path.glob("*.json") if _is_redcaps_file(p)) if is_folder else [path]
    layout: Callable[[Any], str] | None = None
    for file in files:
        content = read_json(file)
        entries = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{file}: holds no list 'annotations'")
        usable = [entry for entry in entries if _has_subreddit(entry)]
        if layout is None and usable:
            layout = _find_layout(root, REDCAPS_IMAGES, usable)
        for number, entry in enumerate(entries):
            where = f"{file}: annotations[{number}]"
            if layout is None or not _has_subreddit(entry):
                message = "has not all of 'image_id', 'subreddit' and 'caption'"
                yield Skipped(SkipKind.MISSING_FIELD, where, message)
                continue
            try:
                caption = parse_caption(entry["caption"])
            except EntryError as error:
                yield Skipped(error.kind, where, str(error))
                continue
            own_id = str(entry["image_id"])
            image = ImageSource(str(root / layout(entry)))
            yield Record(record_id=own_id, image=image, image_id=own_id, caption=caption)


YFCC_COLUMNS = {23: 0, 25: 2}  # columns of the two published versions, and how far all are shifted
MIN_WORDS = 3  # "more than two words"
YFCC_IMAGES: Names = (
    lambda row: f"{row['id']}.jpg",
    lambda row: f"{row['hash'][:3]}/{row['hash'][3:6]}/{row['hash']}.jpg" if row["hash"] else "",
    lambda row: f"data/images/{row['hash'][:3]}/{row['hash'][3:6]}/{row['hash']}.jpg"
    if row["hash"] else "",
    lambda row: f"images/{row['id']}.jpg",
)  # fmt: skip


def is_yfcc(path: str) -> bool:
    """Return whether a file is named as YFCC100M's tables are."""
    return re.fullmatch(r"yfcc100m_dataset(-\d+)?(\.txt|\.tsv)?", Path(path).name) is not None


def read_yfcc(source: DataSourceConfig) -> Entries:
    """Read the photos of YFCC100M (Thomee et al. 2016) with FLAVA's filter.

    "We filter by discarding non-English captions and only keeping captions that contain more than
    two words", of the description; if that does not pass, of the title (Singh et al. 2022). What
    is English `english.is_english` decides. Photos without such a caption, and videos, are not
    counted. Images are `PHOTO_ID.jpg`, or named by their hash as in the set's own copy.

    Raises:
        DataError: The file cannot be read, has other columns, or no image is found.
    """
    check_split(source.split, (), source.path)
    path = Path(source.path)
    rows = (row for _, row in _photos(path) if not isinstance(row, Skipped))
    layout = _find_layout(source.root, YFCC_IMAGES, (row for row in rows if _yfcc_caption(row)))
    num_photos = num_kept = 0
    for number, row in _photos(path):
        if isinstance(row, Skipped):
            yield row
            continue
        num_photos += 1
        caption = _yfcc_caption(row)
        if caption is not None:
            num_kept += 1
            image = ImageSource(str(source.root / layout(row)))
            own_id = row["id"] or str(number)
            yield Record(record_id=own_id, image=image, image_id=own_id, caption=caption)
    log.info("%s: %d of %d photos pass FLAVA's filter", path, num_kept, num_photos)


def _photos(path: Path) -> Iterator[tuple[int, dict[str, str] | Skipped]]:
    """Yield line numbers and the photos of a table."""
    for number, line in _table_lines(path):
        cells = line.rstrip("\n").split("\t")
        if len(cells) not in YFCC_COLUMNS:
            message = f"has {len(cells)} cells, YFCC100M has 23 or 25"
            if number == 1:
                raise DataError(f"{path}:1: {message}")
            yield number, Skipped(SkipKind.BAD_RECORD, f"{path}:{number}", message)
            continue
        shift = YFCC_COLUMNS[len(cells)]
        if cells[-1].strip() == "0":  # 1 is a video
            yield (
                number,
                {
                    "id": cells[min(shift, 1)],
                    "hash": cells[2] if shift else "",
                    "title": cells[6 + shift],
                    "description": cells[7 + shift],
                },
            )


def _yfcc_caption(row: Mapping[str, str]) -> str | None:
    return flava_caption(row["description"], row["title"])


def flava_caption(description: str, title: str) -> str | None:
    """Return the first of both that is an English text of more than two words, or None.

    Args:
        description: As in the table: with `+` for a space, `%41` and `&amp;`.
        title: In the same form.
    """
    for coded in (description, title):
        text = re.sub(r"<[^<>]*>", " ", html.unescape(unquote_plus(coded)))
        text = " ".join(text.split())
        if num_words(text) >= MIN_WORDS and is_english(text):
            return text
    return None


def _pmd(
    dataset: str, folder: str, at: str, files: tuple[tuple[str, str], ...], example: str
) -> tuple[Layout, ...]:
    expected = tuple(Expected(path, what) for path, what in files)
    return (Layout(dataset, folder, at, expected, (example,)),)


PAIR = ("image", "caption")
FORMATS: tuple[Format, ...] = (
    Format(
        name="localized_narratives",
        title="Localized Narratives, a caption for each sentence",
        fields=PAIR,
        read=read_narratives,
        tells="dataset_id, image_id, annotator_id and caption",
        of_object=is_narrative,
        layouts=_pmd(
            "Localized Narratives",
            "localized_narratives",
            "https://google.github.io/localized-narratives",
            (
                ("*localized_narratives*.jsonl", "narratives of images"),
                ("*/*.jpg", "the images of Open Images, COCO, Flickr30k or ADE20K"),
            ),
            "localized_narratives/coco_val_localized_narratives.jsonl --image-root val2017",
        ),
    ),
    Format(
        name="wit",
        title="WIT, its English rows",
        fields=PAIR,
        read=read_wit,
        tells="a table with language, page_url and image_url",
        of_path=is_wit,
        of_line=lambda line: tuple(line.split("\t")[:3]) == WIT_HEADER,
        suffixes=(".tsv",),
        layouts=_pmd(
            "WIT (Wikipedia-based Image Text)",
            "wit",
            "https://github.com/google-research-datasets/wit",
            (("wit_v1.*.tsv.gz", "rows of pages and images"), ("images/*", "the images")),
            "wit/wit_v1.train.all-00000-of-00010.tsv.gz --image-root wit/images",
        ),
    ),
    Format(
        name="redcaps",
        title="RedCaps",
        fields=PAIR,
        read=read_redcaps,
        tells="'annotations' with image_id, subreddit and caption",
        of_path=is_redcaps_folder,
        of_json=is_redcaps,
        layouts=_pmd(
            "RedCaps",
            "redcaps",
            "https://redcaps.xyz",
            (
                ("annotations/*_20*.json", "captions of a subreddit and a year"),
                ("images/*/*.jpg", "the images, in a folder of their subreddit"),
            ),
            "redcaps/annotations",
        ),
    ),
    Format(
        name="yfcc100m",
        title="YFCC100M with FLAVA's filter",
        fields=PAIR,
        read=read_yfcc,
        tells="YFCC100M's table of 23 or 25 columns",
        of_path=is_yfcc,
        layouts=_pmd(
            "YFCC100M",
            "yfcc100m",
            "https://multimediacommons.wordpress.com/yfcc100m-core-dataset",
            (("yfcc100m_dataset*", "photos and videos"), ("images/*", "the images")),
            "yfcc100m/yfcc100m_dataset --image-root yfcc100m/images",
        ),
    ),
)
