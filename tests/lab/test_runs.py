"""Jobs of a study: what counts as a failure, and what a stopped or resumed run leaves."""

import signal

import pytest

from triptych.core.console import Console
from triptych.core.files import write_json
from triptych.lab import runs
from triptych.lab.definition import load_study
from triptych.lab.plan import Settings, open_plan
from triptych.lab.results import seconds_per_step
from triptych.train.interrupts import TrainingInterrupted

QUIET = Console(quiet=True)


@pytest.fixture
def job(mine, tmp_path):
    plan = open_plan(load_study(mine()), Settings(seeds=1, num_threads=1), tmp_path / "out")
    return plan, runs.variant_jobs(plan, {"with_itm": 2, "without_itm": None})


def test_a_signal_is_no_failure(job, monkeypatch):
    plan, (first, _) = job

    def stopped(config, folder, console):
        raise TrainingInterrupted(signal.SIGTERM, 1, folder / "checkpoints" / "step_1")

    monkeypatch.setattr(runs, "finish_run", stopped)
    with pytest.raises(TrainingInterrupted):
        runs.do_job(plan, first, QUIET)
    assert not (first.folder / runs.FAILED_FILE).exists()


def test_any_error_is_noted_with_its_traceback_and_forgotten_when_it_works(job, monkeypatch):
    plan, (first, _) = job

    def fail(config, folder, console):
        raise RuntimeError("no memory\nat all")

    monkeypatch.setattr(runs, "finish_run", fail)
    assert list(runs.run_jobs(plan, [first], 1, QUIET)) == ["with_itm seed 0"]
    note = (first.folder / runs.FAILED_FILE).read_text()
    assert note.splitlines()[0] == r"RuntimeError('no memory\nat all')"
    assert "Traceback" in note
    monkeypatch.setattr(runs, "finish_run", lambda config, folder, console: None)
    monkeypatch.setattr(runs, "score_models", lambda *_: None)
    assert runs.run_jobs(plan, [first], 1, QUIET) == {}


def test_a_variant_whose_steps_are_unknown_fails(job):
    plan, (_, second) = job
    failed = runs.run_jobs(plan, [second], 1, QUIET)
    assert "could not be measured" in failed["without_itm seed 0"]


def test_the_time_of_a_step_leaves_out_what_was_between_two_processes(tmp_path):
    lines = [(10, 5.0), (20, 9.0), (30, 4.0), (40, 7.0)]  # stopped after 20, went on in a new one
    text = "".join(f'{{"step": {step}, "elapsed_s": {s}}}\n' for step, s in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert seconds_per_step(tmp_path) is None
    write_json(tmp_path / "model" / "config.json", {})
    assert seconds_per_step(tmp_path) == pytest.approx((9.0 + 3.0) / 30)
