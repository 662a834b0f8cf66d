"""docs/results.md holds the stored figures, all that have a bar and all that are asked for."""

import json

import pytest

from benchmarks.pages import results_page
from benchmarks.pages.flava import FLAVA
from benchmarks.pages.foundation import FOUNDATION
from benchmarks.pages.gather import RESULTS
from benchmarks.pages.mplug import MPLUG
from benchmarks.pages.results_page import PAGE, WHAT, format_value
from benchmarks.pages.vlmo import VLMO

BENCHMARKS = (FOUNDATION, MPLUG, VLMO, FLAVA)


def test_the_page_holds_the_committed_figures():
    assert PAGE.read_text(encoding="utf-8") == results_page.page(RESULTS)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
def test_no_asked_figure_is_left_out(benchmark):
    asked = {key for key in benchmark.asked if not key.startswith("compositional_")}
    assert set(WHAT[benchmark.name]) == asked


def test_values_have_three_digits_intervals_and_reasons():
    assert format_value({"value": 4.766e-06}) == "4.77e-06"
    assert format_value({"value": 3908}) == "3,908"
    assert format_value({"value": "yes"}) == "yes"
    assert format_value({"value": 0.437, "low": 0.2431, "high": 0.63}) == "0.437 (0.243 to 0.63)"
    assert format_value({"value": None, "not_measured": "no bf16"}) == "(no bf16)"


def test_other_machines_and_commits_stand_at_their_figures(tmp_path):
    machine = {"CPU": "one", "torch": "2.13"}
    figure = {"value": 1.0, "command": "do", "bar": ">= 0.5", "reached": True}
    figures = {key: dict(figure) for key in FLAVA.asked}
    figures["probe_shape"] |= {"reached": False, "commit": "b" * 40}
    figures["masking_speedup"] |= {"machine": {"CPU": "two", "torch": "2.13", "bf16": "amx_bf16"}}
    result = {"machine": machine, "commit": "a" * 40, "figures": figures}
    (tmp_path / "flava.json").write_text(json.dumps(result))
    out = tmp_path / "results.md"
    results_page.main(["--results", str(tmp_path), "--out", str(out)])
    text = out.read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert ">= 0.5: **not met**" in lines[WHAT["flava"]["probe_shape"]]
    assert f"| {'b' * 9} A |" in lines[WHAT["flava"]["probe_shape"]]
    assert f"| {'a' * 9} B |" in lines[WHAT["flava"]["masking_speedup"]]
    assert "- B: two, bf16: amx_bf16; torch 2.13" in text
    assert text.count("Not measured yet.") == 3


def test_the_longer_demo_has_a_table(tmp_path):
    figures = {"demo_minutes": {"value": 9.0, "command": "triptych demo --scale small"}}
    figures |= {"vqa": {"value": 0.8, "low": 0.7, "high": 0.9}, "compositional_vqa": {"value": 0.6}}
    machine = {"CPU": "one", "torch": "2.13"}
    small = {"machine": machine, "commit": "a" * 40, "figures": figures, "note": "on one core."}
    (tmp_path / "demo_small.json").write_text(json.dumps(small))
    text = results_page.page(tmp_path)
    assert f"`triptych demo --scale small`, {'a' * 9} A: on one core." in text
    assert "| VQA accuracy | 0.8 (0.7 to 0.9) | 0.6 |" in text
