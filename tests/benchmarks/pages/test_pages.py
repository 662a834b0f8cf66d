"""`python -m benchmarks.pages`: the committed pages are what it writes, all of them or none."""

import shutil

import pytest

from benchmarks.pages.__main__ import PAGES, main
from benchmarks.pages.gather import RESULTS, ROOT
from benchmarks.pages.markdown import fill_blocks, format_value
from triptych.core.errors import DataError


@pytest.fixture
def root(tmp_path):
    """A folder with the pages that have text of their own."""
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    for name in ("README.md", "docs/efficiency.md", "docs/scale.md", "docs/how-to/search.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_committed_pages_hold_the_committed_results(root):
    main(["--root", str(root)])
    assert {"README.md", "docs/results.md", "docs/efficiency.md", "docs/scale.md"} < PAGES.keys()
    for name in PAGES:
        assert (root / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_a_page_that_cannot_be_written_keeps_the_others_as_they_are(root):
    results = root / "results"
    shutil.copytree(RESULTS, results)
    text = (results / "foundation.json").read_text()
    (results / "foundation.json").write_text(text.replace('"commit": "', '"commit": "changed'))
    (results / "mplug.json").write_text("{")
    with pytest.raises(DataError, match=r"mplug.json"):
        main(["--root", str(root), "--results", str(results)])
    assert (root / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert not (root / "docs" / "results.md").exists()


def test_blocks_are_filled_between_their_markers_alone():
    page = "a\n<!-- one -->\nSTALE\n<!-- /one -->\nsaid \\1\n"
    assert fill_blocks(page, {"one": "x \\1"}) == page.replace("STALE", "x \\1")
    for wrong, count in ((page.replace("<!-- one -->", ""), 0), (page * 2, 2)):
        with pytest.raises(DataError, match=f"{count} blocks for 'one', not one"):
            fill_blocks(wrong, {"one": "x"})


def test_values_have_three_digits_intervals_and_reasons():
    assert format_value({"value": 4.766e-06}) == "4.77e-06"
    assert format_value({"value": 3908}) == "3,908"
    assert format_value({"value": "yes"}) == "yes"
    assert format_value({"value": 0.437, "low": 0.2431, "high": 0.63}) == "0.437 (0.243 to 0.63)"
    assert format_value({"value": None, "not_measured": "no bf16"}) == "(no bf16)"
