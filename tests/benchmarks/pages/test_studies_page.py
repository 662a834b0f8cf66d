"""docs/studies.md: every study with its paper, ours and a verdict, or as not run."""

import json

import pytest

from benchmarks.lab import studies
from benchmarks.pages.gather import STUDIES, study_figures, told_apart
from benchmarks.pages.studies_page import studies_page
from triptych.core.config import to_dict
from triptych.core.errors import DataError
from triptych.lab.definition import load_study

STORED = sorted(path.stem for path in STUDIES.glob("*.json"))


def summary(mean, half=0.0):
    return {"values": [mean] * 3, "mean": mean, "low": mean - half, "high": mean + half}


def stored(tells, seeds=3):
    """Return a result of vlmo.multiway."""
    mean = 0.1 if tells else 0.01
    pair = {"first": "multiway", "second": "standard", "score": "recall_mean", "main": True}
    pair |= {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "tells": tells}
    paper = {"says": "80.13 against 78.81", "source": "table 5", "predicts": "higher"}
    cost = {"steps": 150, "flops_per_sample": summary(2.5e8), "processor_seconds_per_step": None}
    row = {"about": "own FFNs", "scores": {"recall_mean": summary(0.5, 0.1)}, "cost": cost}
    output = {
        "variants": {"multiway": row, "standard": row | {"scores": {"recall_mean": None}}},
        "comparisons": [pair | {"paper": paper, "verdict": "agrees" if tells else "cannot tell"}],
        "notes": [],
        "failed": {"standard seed 0": "out of memory"},
        "seeds": seeds,
        "protocol": "Scale tiny.",
    }
    machine = {"CPU": "one", "torch": "2.13"}
    return {"machine": machine, "commit": "a" * 40, "command": "triptych compare", "output": output}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "studies").mkdir()
    return tmp_path


def test_a_study_stands_beside_its_paper_and_the_others_are_not_run(folder):
    (folder / "studies" / "vlmo.multiway.json").write_text(json.dumps(stored(tells=True)))
    text = studies_page(folder)
    assert "1 of 13 studies were run; the main comparison of 1 tells its sides apart." in text
    main = "multiway - standard, recall_mean"
    overview = f"| {main} | +0.1 (0.05 to 0.15) | yes | agrees |"
    assert overview in text
    paper = "higher: 80.13 against 78.81 (table 5)"
    assert f"| {main} | {paper} | +0.1 (0.05 to 0.15) | yes | agrees |" in text
    assert "| multiway | own FFNs | 0.5 (0.4 to 0.6) | 150 | 2.50e+08 |  |" in text
    assert "| standard | own FFNs | failed |" in text
    assert "- Failed: standard seed 0: out of memory." in text
    assert text.count("\nNot run. What it would test:\n") == 12


@pytest.mark.parametrize(("tells", "seeds", "names"), [
    (True, 3, ["vlmo.multiway"]), (False, 3, []), (True, 2, []),
])  # fmt: skip
def test_a_study_counts_with_three_seeds_and_without_zero(folder, tells, seeds, names):
    (folder / "studies" / "vlmo.multiway.json").write_text(json.dumps(stored(tells, seeds)))
    assert told_apart(folder) == names


def test_a_gain_is_the_main_difference_of_its_study(folder, monkeypatch):
    monkeypatch.setattr("benchmarks.pages.gather.STUDIES", folder / "studies")
    with pytest.raises(DataError, match=r"vlmo.multiway.json does not exist"):
        study_figures({"multiway_gain": "vlmo.multiway"})
    (folder / "studies" / "vlmo.multiway.json").write_text(json.dumps(stored(tells=True)))
    found = study_figures({"multiway_gain": "vlmo.multiway"})["multiway_gain"]
    assert (found["value"], found["low"], found["command"]) == (0.1, 0.05, "triptych compare")
    assert found["protocol"] == "multiway minus standard, recall_mean: Scale tiny."


@pytest.mark.parametrize("name", STORED)
def test_a_stored_study_is_of_the_definition_as_it_stands(name):
    found = json.loads((STUDIES / f"{name}.json").read_text())["output"]
    study = to_dict(load_study(name))
    for part in ("base", "variants", "scores", "worlds", "stages", "budget"):
        assert found["definition"][part] == study[part], part
    compared = [(c["first"], c["second"], c["score"]) for c in found["comparisons"]]
    assert compared == [(c["first"], c["second"], c["score"]) for c in study["comparisons"]]
    for number, (stored_pair, pair) in enumerate(
        zip(found["comparisons"], study["comparisons"], strict=True)
    ):
        assert (stored_pair["main"], stored_pair["paper"]) == (number == 0, pair["paper"])


def test_the_table_for_the_papers_has_means_and_intervals():
    rows = studies.table(stored(tells=True)["output"])
    assert rows["multiway"] == {"recall_mean": [0.5, 0.4, 0.6], "flops_per_sample": 2.5e8}
    assert rows["standard"] == {"flops_per_sample": 2.5e8}
