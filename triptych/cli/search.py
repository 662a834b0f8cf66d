"""`triptych search`: find images of an index by words, by an image, or by both."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import parse

HELP = """Search an index by words, by an image ("more like this"), or by both together.

Examples:
  triptych search photos.index "a dog on a beach"
  triptych search photos.index "a dog on a beach" --rerank 64 --html found.html
  triptych search photos.index --image dog.jpg --top 5 --json
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What to look for.

    Attributes:
        index: What `triptych index` wrote.
        text: Words.
        image: An image to find more like.
        top: How many images to show.
        rerank: Candidates that ITM scores with the words; 0 disables it.
        exact: Compare with every vector, where the index has a faiss index too.
        model: The model folder, if it lies elsewhere than when the index was built.
        html: Also write a page with thumbnails to this file.
        json: Print one JSON object a line.
    """

    index: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="INDEX")]]
    text: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="TEXT")]] = None
    image: str | None = None
    top: int = 10
    rerank: int = 0
    exact: bool = False
    model: Path | None = None
    html: Path | None = None
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    """Print what was found."""
    options = parse(SearchOptions, arguments, verb="search", description=HELP)
    from triptych.index.search import open_index

    index = open_index(options.index, model=options.model)
    hits = index.search(
        options.text,
        image=options.image,
        top=options.top,
        rerank=options.rerank,
        exact=options.exact,
    )
    for place, hit in enumerate(hits, start=1):
        if options.json:
            print(json.dumps(hit.to_dict(), ensure_ascii=False))
            continue
        match = "" if hit.match is None else f"  match {hit.match:.4f}"
        print(f"{place:>3}  {hit.score:.4f}{match}  {hit.image.image}")
    if options.html is not None:
        from triptych.index.page import write_page

        asked = " and ".join(
            part for part in (options.text, options.image and f"like {options.image}") if part
        )
        write_page(options.html, asked, hits, index.state)
        print(f"wrote {options.html}", file=sys.stderr)
    return 0
