"""Write docs/results.md, docs/efficiency.md with its figures, and the table of README.

Reads `benchmarks/results`, and measures nothing.

    python -m benchmarks.pages
"""

from __future__ import annotations

import argparse

from benchmarks.pages import efficiency_page, readme_table, results_page


def main() -> None:
    """Write every page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    results_page.main([])
    efficiency_page.main([])
    readme_table.main()


if __name__ == "__main__":
    main()
