"""Write the table of tasks into README.md and docs/reference/tasks.md, from the code.

python -m benchmarks.pages.matrix
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages.markdown import fill_blocks
from triptych.cli.tasks import matrix_markdown, overview_markdown
from triptych.tasks.matrix import task_matrix

ROOT = Path(__file__).parents[2]


def pages() -> dict[Path, str]:
    """Return the files with the table as it is now."""
    cells = task_matrix()
    tables = {
        ROOT / "README.md": overview_markdown(cells),
        ROOT / "docs" / "reference" / "tasks.md": matrix_markdown(cells),
    }
    return {
        path: fill_blocks(path.read_text(encoding="utf-8"), {"tasks": table})
        for path, table in tables.items()
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
