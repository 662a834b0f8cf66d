"""Documents for language pre-training: CCNews and BookCorpus, as pieces of a model's length.

A document of a text file ends at an empty line or with the file, and its lines are read as one text
(a book of BookCorpus has a sentence a line). A line of JSON Lines is a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from triptych.core.errors import DataError
from triptych.data.entries import EntryError, parse_text
from triptych.data.lines import read_lines
from triptych.data.readers.class_sets import Entries, Found
from triptych.data.readers.manifests import iterate_objects
from triptych.data.readers.plain import is_image_folder
from triptych.data.records import Record
from triptych.data.skips import Skipped
from triptych.data.source import DataSourceConfig, check_split
from triptych.data.spec import Expected, Format, Layout
from triptych.data.texts import CountTokens, pack_sentences, split_sentences, token_counter

DEFAULT_TOKENS = 512  # FLAVA's text length
BODY_FIELDS = ("maintext", "text", "plain_text")
SUFFIXES = (".txt", ".jsonl", ".ndjson")


def is_document(entry: Mapping[str, Any]) -> bool:
    """Return whether a line's object is a news article as news-please and CC-News have it."""
    return "maintext" in entry or "plain_text" in entry


def is_document_folder(path: str) -> bool:
    """Return whether a folder holds text files and no images, up to a folder in it."""
    folder = Path(path)
    if not folder.is_dir() or is_image_folder(folder):
        return False
    found = (next(folder.glob(pattern), None) for pattern in ("*.txt", "*/*.txt"))
    return any(path is not None for path in found)


def read_documents(source: DataSourceConfig) -> Entries:
    """Read text files and JSON Lines, one or all below a folder, as pieces of documents.

    The ids are `FILE:DOCUMENT#PIECE`, from 0. Pieces are at most `max_text_tokens` long, 512 where
    that is None, and together they have every word of the documents.

    Raises:
        DataError: A file cannot be read, or the folder holds none.
    """
    check_split(source.split, (), source.path)
    root = Path(source.path)
    paths = [root]
    if root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(f"{root}: holds no file that ends in {', '.join(SUFFIXES)}")
    tokens = source.max_text_tokens or DEFAULT_TOKENS
    count = token_counter(source.tokenizer)
    for path in paths:
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        if path.suffix.lower() == ".txt":
            yield from _text_file(path, name, tokens, count)
        else:
            yield from _json_lines(path, name, tokens, count)


def _json_lines(path: Path, name: str, tokens: int, count: CountTokens) -> Found:
    for entry in iterate_objects(path):
        if isinstance(entry, Skipped):
            yield entry
            continue
        number, where, fields = entry
        field = next((known for known in BODY_FIELDS if fields.get(known)), BODY_FIELDS[0])
        try:
            text = parse_text(field, fields.get(field))
        except EntryError as error:
            yield Skipped(error.kind, where, str(error))
            continue
        yield from _pieces(split_sentences(text), f"{name}:{number}", tokens, count)


def _text_file(path: Path, name: str, tokens: int, count: CountTokens) -> Found:
    """Yield the pieces of a file's documents; of a file of any size, one piece is in memory."""
    lines = _Lines(path)
    number = 0
    while not lines.is_at_end:
        yield from _pieces(lines.sentences(), f"{name}:{number}", tokens, count)
        number += 1
        yield from lines.take_skipped()


def _pieces(sentences: Iterator[str], own_id: str, tokens: int, count: CountTokens) -> Found:
    for number, piece in enumerate(pack_sentences(sentences, tokens, count)):
        yield Record(record_id=f"{own_id}#{number}", text=piece)


class _Lines:
    """The lines of a text file, document by document."""

    def __init__(self, path: Path) -> None:
        self._path, self._skipped = path, list[Skipped]()
        self._lines = self._read()
        self.is_at_end = False

    def sentences(self) -> Iterator[str]:
        """Yield the sentences of the next document; nothing where only empty lines follow."""
        is_begun = False
        for line in self._lines:
            if line.strip():
                is_begun = True
                yield from split_sentences(line)
            elif is_begun:
                return
        self.is_at_end = True

    def take_skipped(self) -> list[Skipped]:
        """Return the lines of the last document that are no text."""
        taken, self._skipped = self._skipped, []
        return taken

    def _read(self) -> Iterator[str]:
        for _, line in read_lines(self._path, keep_blank=True):
            if isinstance(line, Skipped):
                self._skipped.append(line)
            else:
                yield line


def _layout(dataset: str, folder: str, at: str, files: Expected, example: str) -> Layout:
    return Layout(dataset, folder, at, (files,), (example,))


FORMAT = Format(
    name="documents",
    title="Documents, cut into pieces of a model's length",
    fields=("text",),
    read=read_documents,
    tells="text files",
    of_path=is_document_folder,
    of_object=is_document,
    layouts=(
        _layout(
            "CCNews",
            "ccnews",
            "https://huggingface.co/datasets/vblagoje/cc_news, or by news-please",
            Expected("*.jsonl", "an article a line", other=("*.txt", "*/*.txt", "*.parquet")),
            "ccnews/articles.jsonl",
        ),
        _layout(
            "BookCorpus",
            "bookcorpus",
            "https://yknzhu.wixsite.com/mbweb",
            Expected("*.txt", "a sentence a line", other=("*/*.txt", "*.parquet")),
            "bookcorpus/books_large_p1.txt --reader documents",
        ),
    ),
)
