"""`triptych data list`: the formats of datasets, and what of them lies in a folder."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import ConfigError, nearest
from triptych.data.formats import FORMATS
from triptych.data.spec import Expected, Format, Layout

HELP = """List the formats of datasets that are read, the files that each expects, and where they are published.

With --data, say what of them lies in a folder, and what is missing where; exits with 1 if a format
is named and none of its datasets is complete. A dataset lies in the folder itself, or in one in it.

Examples:
  triptych data list
  triptych data list refcoco
  triptych data list coco --data /datasets
"""  # noqa: E501 - the first paragraph is one line of help


@dataclass(frozen=True, kw_only=True, slots=True)
class ListOptions:
    """What to list.

    Attributes:
        name: A format, as `reader` takes it; all if absent.
        data: A folder of datasets, or of one: say what is there and what is missing.
        json: Print JSON, one object a line.
        markdown: Print the list as the section of a page.
    """

    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    data: Path | None = None
    json: bool = False
    markdown: bool = False


def run(arguments: Sequence[str]) -> int:
    """Print the list; 1 where a format is named and none of its datasets is complete."""
    options = parse(ListOptions, arguments, verb="data list", description=HELP)
    formats = _chosen(options.name)
    if options.markdown and options.data is not None:
        raise ConfigError("--markdown prints what is expected, without --data")
    if options.data is not None and not options.data.is_dir():
        raise ConfigError(f"--data {options.data}: there is no such folder")
    rows = [format_row(known, options.data) for known in formats]
    if options.json:
        for row in rows:
            print(json_module.dumps(row, ensure_ascii=False))
    elif options.markdown:
        print("\n".join(line for known in formats for line in markdown_lines(known)))
    elif options.data is None:
        print("\n\n".join("\n".join(format_lines(known)) for known in formats))
    else:
        print("\n".join(_found_lines(rows, is_one=options.name is not None)))
    named = options.name is not None and options.data is not None
    states = [layout["state"] for layout in rows[0]["layouts"]] if named else []
    return int(bool(states) and "complete" not in states)


def _chosen(name: str | None) -> list[Format]:
    if name is None:
        return list(FORMATS.entries().values())
    if name not in FORMATS:
        known = FORMATS.names()
        raise ConfigError(
            f"unknown format {name!r}{nearest(name, known)} (known: {', '.join(known)})"
        )
    return [FORMATS.get(name)]


def format_row(known: Format, root: Path | None) -> dict[str, Any]:
    """Return a format as plain values for JSON, with what of it lies under `root`."""
    layouts = [_layout_row(layout) for layout in known.layouts]
    if root is not None:
        for row, report in zip(layouts, known.find(root), strict=True):
            row |= {"state": report.state, "in": str(report.folder)}
            row |= {"missing": report.missing, "remarks": list(report.remarks)}
    return {
        "name": known.name,
        "title": known.title,
        "fields": list(known.fields),
        "splits": known.parts,
        "recognised_by": known.tells,
        "layouts": layouts,
    }


def _layout_row(layout: Layout) -> dict[str, Any]:
    return {
        "dataset": layout.dataset,
        "folder": layout.folder,
        "source": layout.source,
        "files": [
            {
                "path": files.path,
                "other": list(files.other),
                "what": files.what,
                "count": files.count,
                "optional": files.optional,
            }
            for files in layout.files
        ],
        "examples": list(layout.examples),
    }


def format_lines(known: Format) -> Iterator[str]:
    """Yield a format as lines of text: what it gives, and each dataset with its files."""
    yield f"{known.name}: {known.title}"
    splits = f"; splits: {known.parts}" if known.parts else ""
    yield f"  gives {', '.join(known.fields)}{splits}"
    for layout in known.layouts:
        yield f"  {layout.dataset}{': ' if layout.source else ''}{layout.source}"
        paths = [f"{layout.folder}/{files.path}" for files in layout.files]
        width = max(map(len, paths))
        for path, files in zip(paths, layout.files, strict=True):
            yield f"    {path:<{width}}  {described(files)}"
        yield from (f"    triptych data check {example}" for example in layout.examples)


def markdown_lines(known: Format) -> Iterator[str]:
    """Yield a format as a section of a page, its datasets as tables of files."""
    yield f"## {known.name}\n\n{known.title}. Gives {', '.join(known.fields)}."
    if known.parts:
        yield f"Splits: {known.parts}."
    yield f"It is recognised by {known.tells}.\n"
    for layout in known.layouts:
        name = f"[{layout.dataset}]({layout.source})" if layout.source else layout.dataset
        yield f"{name}:\n\n| file | what it holds |\n|---|---|"
        for files in layout.files:
            yield f"| `{layout.folder}/{files.path}` | {described(files, '`')} |"
        yield "\n```sh"
        yield from (f"triptych data check {example}" for example in layout.examples)
        yield "```\n"


def described(files: Expected, quote: str = "") -> str:
    """Return what files hold, how many there are, and where else they may lie.

    Args:
        files: The files.
        quote: Stands around each path.
    """
    count = f"{files.count:,} " if files.count else ""
    paths = ", ".join(f"{quote}{path}{quote}" for path in files.other)
    other = f"; or {paths}" if paths else ""
    return f"{count}{files.what}{' (optional)' if files.optional else ''}{other}"


def _found_lines(rows: list[dict[str, Any]], *, is_one: bool) -> Iterator[str]:
    absent = []
    for row in rows:
        for layout in row["layouts"]:
            if not is_one and (layout["state"] == "absent" or not layout["source"]):
                absent += [layout["dataset"]] if layout["source"] else []
                continue
            yield f"{row['name']}: {layout['dataset']}: {layout['state']} in {layout['in']}"
            yield from (f"  {line}" for line in (*layout["missing"], *layout["remarks"]))
    if absent:
        yield f"not there: {'; '.join(dict.fromkeys(absent))}"
