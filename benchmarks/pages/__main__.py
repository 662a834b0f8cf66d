"""Write docs/results.md, docs/efficiency.md with its figures, docs/studies.md, docs/peers.md, the
tables of README, docs/scale.md and docs/how-to/search.md, and what the report of a shortened demo
compares itself with.

Reads `benchmarks/results`, and measures nothing.

    python -m benchmarks.pages
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.pages import (
    efficiency_page,
    peers_page,
    results_page,
    scale_page,
    serving,
    studies_page,
)
from benchmarks.pages.gather import RESULTS, ROOT

PAGES: dict[str, Callable[[Path, str], str]] = {
    "docs/results.md": results_page.results_page,
    "docs/efficiency.md": efficiency_page.efficiency_page,
    **{
        f"docs/images/{name}": partial(efficiency_page.drawing, name)
        for name in efficiency_page.DRAWINGS
    },
    "README.md": results_page.readme,
    "docs/scale.md": scale_page.scale_page,
    "docs/studies.md": studies_page.studies_page,
    "docs/peers.md": peers_page.peers_page,
    "triptych/demo/whole_demo.json": results_page.whole_demo,
    "docs/how-to/search.md": serving.search_page,
}
"""By path: what returns the new text, given the folder of results and the old text."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every page, or none if one of them cannot be written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds the pages")
    options = parser.parse_args(arguments)
    texts = {}
    for name, build in PAGES.items():
        path = options.root / name
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        texts[path] = build(options.results, old)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
