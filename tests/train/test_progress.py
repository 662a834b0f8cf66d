"""Reports: plain lines now and then, a live display on a terminal, rates from a given clock."""

from io import StringIO

import pytest
from rich.console import Console

from triptych.train.progress import (
    LiveProgress,
    PlainProgress,
    SilentProgress,
    StepClock,
    StepReport,
    build_progress,
    format_duration,
)

from .toy import toy_trainer


class _Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _report(step: int) -> StepReport:
    return StepReport(
        step=step,
        max_steps=40,
        losses={"itc": 1.25, "total": 2.5},
        samples_per_s=123.46,
        data_wait_share=0.07,
        seconds_left=3905,
    )


def test_plain_lines_come_at_intervals_and_the_last_is_never_lost():
    clock, console = _Clock(), Console(file=StringIO(), width=40)
    progress = PlainProgress(console, every_s=10, clock=clock)
    for step in range(1, 8):
        progress.update(_report(step))
        clock.now += 4
    progress.message("saved [run]/step_7")
    progress.close()
    progress.close()
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        "1/40",
        "4/40",
        "7/40",
    ]
    assert lines[0] == (
        "step 1/40  itc 1.2500  total 2.5000  123.5 samples/s  data wait 7%  1 h 05 min left"
    )
    assert "saved [run]/step_7" in lines


def test_live_display_draws_the_numbers_and_keeps_messages():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    progress = LiveProgress(console, every_s=1e9)
    progress.update(_report(1))
    progress.update(_report(2))
    progress.message("checkpoint passed over")
    assert "step 2/40" not in console.file.getvalue()  # too soon to redraw
    progress.close()
    text = console.file.getvalue()
    assert "step 1/40" in text
    assert "step 2/40" in text
    assert "checkpoint passed over" in text
    assert "━" in text


@pytest.mark.parametrize(
    ("mode", "terminal", "expected"),
    [
        ("auto", True, LiveProgress),
        ("auto", False, PlainProgress),
        ("plain", True, PlainProgress),
        ("off", True, SilentProgress),
    ],
)
def test_the_display_fits_the_console(mode, terminal, expected):
    progress = build_progress(mode, Console(file=StringIO(), force_terminal=terminal))
    assert type(progress) is expected
    progress.close()


def test_rates_come_from_the_last_steps():
    clock = _Clock()
    steps = StepClock(samples_per_step=30, window=2, clock=clock)
    for wait, work in ((50.0, 50.0), (1.0, 3.0), (0.0, 2.0)):
        steps.start_step()
        with steps.waiting():
            clock.now += wait
        clock.now += work
        steps.end_step()
    assert steps.samples_per_s == pytest.approx(60 / 6)
    assert steps.data_wait_share == pytest.approx(1 / 6)
    assert steps.seconds_for(10) == pytest.approx(30)
    assert steps.elapsed_s == pytest.approx(106)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (723, "12 min 03 s"), (3900, "1 h 05 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_run_in_a_pipe_prints_start_first_and_last_step_and_checkpoint(tmp_path, capsys):
    toy_trainer(tmp_path, progress="auto", max_steps=3).fit()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("training on cpu in fp32 with ")
    assert lines[1].startswith("step 1/3  itm ")
    assert lines[-2].startswith("saved ")
    assert lines[-1].startswith("step 3/3  itm ")
