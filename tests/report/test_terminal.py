import io

from rich.console import Console

from triptych.report.data import ScoreRow
from triptych.report.terminal import print_scores


def printed(rows):
    stream = io.StringIO()
    print_scores(rows, Console(file=stream, width=160))
    return [line.strip("│ \n") for line in stream.getvalue().splitlines()]


def test_each_row_shows_value_interval_chance_blind_and_bar():
    row = ScoreRow(
        task="VQA", metric="[bold]accuracy", split="test",
        value=0.7814, low=0.75, high=0.81, chance=0.0002, blind=0.46, bar=0.7,
    )  # fmt: skip
    line = next(line for line in printed([row]) if line.startswith("VQA"))
    cells = [cell.strip() for cell in line.split("│")]
    assert cells == [
        "VQA", "[bold]accuracy", "test", "0.781", "0.750 to 0.810", "0.0002", "0.460",
        "0.700 reached",
    ]  # fmt: skip


def test_a_missed_bar_is_said_and_absent_numbers_are_dashes():
    common = {"split": "test", "value": 0.4, "low": 0.3, "high": 0.5}
    rows = [
        ScoreRow(task="A", metric="missed", bar=0.5, **common),
        ScoreRow(task="A", metric="none", **common),
    ]
    lines = printed(rows)
    missed = next(line for line in lines if "missed" in line and line.startswith("A"))
    assert missed.endswith("0.500 missed")
    none = next(line for line in lines if "none" in line)
    assert [cell.strip() for cell in none.split("│")][-3:] == ["–", "–", "–"]
    assert none.startswith("none"), "the task stands on its first row alone"
