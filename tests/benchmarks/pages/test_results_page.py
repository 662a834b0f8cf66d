"""docs/results.md holds the stored figures, all that have a bar and all that are asked for."""

import json

import pytest

from benchmarks.pages.flava import FLAVA
from benchmarks.pages.results_page import BENCHMARKS, results_page


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda b: b.name)
def test_no_asked_figure_is_left_out(benchmark):
    asked = {key for key in benchmark.asked if not key.startswith("compositional_")}
    assert set(benchmark.what) == asked


def test_other_machines_and_commits_stand_at_their_figures(tmp_path):
    machine = {"CPU": "one", "torch": "2.13"}
    figure = {"value": 1.0, "command": "do", "bar": ">= 0.5", "reached": True}
    figures = {key: dict(figure) for key in FLAVA.asked}
    figures["probe_shape"] |= {"reached": False, "commit": "b" * 40}
    figures["masking_speedup"] |= {"machine": {"CPU": "two", "torch": "2.13", "bf16": "amx_bf16"}}
    result = {"machine": machine, "commit": "a" * 40, "figures": figures}
    (tmp_path / "flava.json").write_text(json.dumps(result))
    text = results_page(tmp_path)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert ">= 0.5: **not met**" in lines[FLAVA.what["probe_shape"]]
    assert f"| {'b' * 9} A |" in lines[FLAVA.what["probe_shape"]]
    assert f"| {'a' * 9} B |" in lines[FLAVA.what["masking_speedup"]]
    assert "- B: two, bf16: amx_bf16; torch 2.13" in text
    assert text.count("Not measured yet.") == len(BENCHMARKS) - 1


def test_the_longer_demo_has_a_table(tmp_path):
    figures = {"demo_minutes": {"value": 9.0, "command": "triptych demo --scale small"}}
    figures |= {"vqa": {"value": 0.8, "low": 0.7, "high": 0.9}, "compositional_vqa": {"value": 0.6}}
    machine = {"CPU": "one", "torch": "2.13"}
    small = {"machine": machine, "commit": "a" * 40, "figures": figures, "note": "on one core."}
    (tmp_path / "demo_small.json").write_text(json.dumps(small))
    text = results_page(tmp_path)
    assert f"`triptych demo --scale small`, {'a' * 9} A: on one core." in text
    assert "| VQA accuracy | 0.8 (0.7 to 0.9) | 0.6 |" in text
