"""`triptych suite` and `triptych reproduce`: tables, files and messages."""

import json

import pytest

from triptych.cli import suite as suite_module
from triptych.cli.main import main
from triptych.core.outputs import MetricValue
from triptych.papers.benchmarks import SUITES
from triptych.workflows.scoring import Outcome
from triptych.workflows.suite import SuiteResult, compute_averages


def outcome(name, **values):
    found = tuple(
        MetricValue(name=n, value=v, low=v - 0.1, high=v + 0.1, num_items=9, protocol="by hand")
        for n, v in values.items()
    )
    return Outcome(benchmark=name, status="scored", values={"dev": found}, seconds=1.5)


@pytest.fixture
def result():
    outcomes = {
        "glue_cola": outcome("glue_cola", matthews=0.5),
        "glue_mrpc": outcome("glue_mrpc", accuracy=0.8, f1=0.9),
        "glue_rte": Outcome(benchmark="glue_rte", status="missing", reasons=("ROOT/glue/RTE",)),
    }
    suite = SUITES["glue"]
    return SuiteResult(suite, outcomes, compute_averages(suite, outcomes))


def test_the_table_shows_scores_averages_and_what_is_missing(result, capsys):
    suite_module.print_suite(result)
    shown = capsys.readouterr().out
    assert "0.500" in shown and "0.900" in shown
    assert "average, GLUE: 0.675 (mean of 2 of 8, not the paper's average)" in shown
    assert "missing: ROOT/glue/RTE" in shown
    assert "2 of 3 benchmarks scored" in shown


def test_the_report_lists_what_is_not_scored(result, tmp_path):
    options = suite_module.SuiteOptions(suite="glue", data=tmp_path)
    suite_module._write_report(result, options, tmp_path / "report.html", "triptych suite glue")
    page = (tmp_path / "report.html").read_text()
    assert "Not scored" in page
    assert "ROOT/glue/RTE" in page
    assert "triptych suite glue" in page


def test_messages_say_what_to_name(tmp_path, capsys):
    assert main(["suite", "flva", "m", "--data", str(tmp_path)]) == 2
    assert "did you mean 'flava'" in capsys.readouterr().err
    assert main(["suite", "glue", "--data", str(tmp_path)]) == 2
    assert "name a MODEL folder" in capsys.readouterr().err
    assert main(["suite", "glue", "m", "--data", str(tmp_path / "no")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["reproduce", "mplug.table99"]) == 2
    assert "no table 'mplug.table99'" in capsys.readouterr().err
    assert main(["reproduce", "mplug.table2", "--scenes", "--data", str(tmp_path)]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_without_a_table_all_are_listed(capsys):
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 29
    assert lines[0].startswith("mplug.table1 ")


def test_a_table_of_settings_is_printed_and_written(tmp_path, capsys):
    assert main(["reproduce", "flava.table3", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "train.global_batch_size" in shown and "8,192" in shown
    stored = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["ours"] for row in stored["rows"]] == [0.001, 0.1, 10000.0, 8192.0]


def test_json_has_the_reasons(tmp_path, capsys):
    arguments = ["reproduce", "mplug.table5", "--json", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["paper"] == 84.58
    assert any("nlvr2" in reason for reason in rows[0]["reasons"])
