import io

import pytest
from rich.console import Console

from triptych.report.data import ScoreRow
from triptych.report.terminal import print_scores


def printed(rows):
    stream = io.StringIO()
    print_scores(rows, Console(file=stream, width=160))
    return [line.strip("│ \n") for line in stream.getvalue().splitlines()]


def test_each_row_shows_value_interval_chance_blind_and_target():
    row = ScoreRow(
        task="VQA", metric="[bold]accuracy", split="test",
        value=0.7814, low=0.75, high=0.81, chance=0.0002, blind=0.46, target=0.7,
    )  # fmt: skip
    line = next(line for line in printed([row]) if line.startswith("VQA"))
    cells = [cell.strip() for cell in line.split("│")]
    assert cells == [
        "VQA", "[bold]accuracy", "test", "0.781", "0.750 to 0.810", "0.0002", "0.460",
        "0.700 met",
    ]  # fmt: skip


def test_a_missed_target_is_said_and_absent_numbers_are_dashes():
    common = {"split": "test", "value": 0.4, "low": 0.3, "high": 0.5}
    rows = [
        ScoreRow(task="A", metric="missed", target=0.5, **common),
        ScoreRow(task="A", metric="none", **common),
    ]
    lines = printed(rows)
    missed = next(line for line in lines if "missed" in line and line.startswith("A"))
    assert missed.endswith("0.500 not met")
    none = next(line for line in lines if "none" in line)
    assert [cell.strip() for cell in none.split("│")][-3:] == ["–", "–", "–"]
    assert none.startswith("none"), "the task stands on its first row alone"


METRICS = {  # the names that the demo shows
    "retrieval": ("i2t_r1", "i2t_r1_itm", "t2i_r1", "t2i_r1_itm"),
    "caption": ("caption_objects", "bleu_4", "rouge_l", "cider"),
    "vqa": ("vqa", "vqa/color", "vqa/count", "vqa/relation", "vqa/shape", "vqa/yes_no"),
    "grounding": ("grounding", "grounding_iou"),
}


def demo_rows():
    numbers = {"value": 0.7814, "low": 0.75, "high": 0.81, "chance": 0.0002, "blind": 0.46}
    return [
        ScoreRow(
            task=task,
            metric=metric,
            split=split,
            target=0.7 if split == "test" else None,
            **numbers,
        )
        for split in ("test", "compositional")
        for task, metrics in METRICS.items()
        for metric in metrics
    ]


def lines_at(width, rows):
    stream = io.StringIO()
    print_scores(rows, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_a_pipe_of_80_columns_breaks_no_name_and_no_number():
    rows = demo_rows()
    lines = lines_at(80, rows)
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines]
    for row in rows:
        bar = ["0.700", "met"] if row.target else ["–"]
        told = [row.metric, row.split, "0.781", "0.750", "to", "0.810", "0.0002", "0.460", *bar]
        assert told in cells
    heads = ["metric", "split", "score", "95", "%", "interval", "chance", "blind", "target"]
    assert cells[:2] == [["Scores"], heads]
    assert [cell[0] for cell in cells[2:] if len(cell) == 1] == [*METRICS] * 2
    assert len(lines) == 2 + len(rows) + 2 * len(METRICS)  # a line a row


@pytest.mark.parametrize(
    ("width", "lost"),
    [(70, ["interval"]), (56, ["interval", "chance"]), (40, ["interval", "chance", "blind"])],
)
def test_a_narrow_terminal_loses_columns_and_no_name(width, lost):
    rows = demo_rows()
    lines = lines_at(width, rows)
    assert max(map(len, lines)) <= width
    names = [line.split()[0] for line in lines]
    assert all(row.metric in names for row in rows)
    assert [head for head in ("interval", "chance", "blind") if head not in lines[1]] == lost
