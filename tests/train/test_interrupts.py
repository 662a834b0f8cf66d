"""Signals: the first asks, a second Ctrl-C aborts, handlers come back."""

import os
import pickle
import signal
import time

import pytest

from triptych.train.interrupts import InterruptGuard, TrainingInterrupted

from .toy import exact_lines, toy_batches, toy_trainer


def _handlers():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_kept_and_handlers_come_back(first):
    before = _handlers()
    with InterruptGuard() as guard:
        assert guard.requested is None
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)  # a cluster that repeats itself does no harm
        signal.raise_signal(signal.SIGHUP)
        assert guard.requested == first
        assert _handlers() != before
    assert _handlers() == before


def test_nohup_is_obeyed():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptGuard() as guard:
            signal.raise_signal(signal.SIGHUP)
            assert guard.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_later_ctrl_c_aborts_at_once(first):
    before = _handlers()
    with pytest.raises(KeyboardInterrupt), InterruptGuard():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert _handlers() == before


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, 7), (signal.SIGHUP, 7), (signal.SIGTERM, -signal.SIGTERM)],
)
def test_a_forked_worker_ignores_ctrl_c_and_ends_on_sigterm(number, expected):
    with InterruptGuard() as guard:
        child = os.fork()
        if child == 0:
            signal.raise_signal(number)
            os._exit(7 if guard.requested is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
        assert guard.requested is None


def test_two_ctrl_c_in_a_run_abort_without_saving_and_release_everything(tmp_path):
    before = _handlers()

    def batches(start):
        for number, batch in enumerate(toy_batches(start), start):
            if number == 3:
                while not (tmp_path / "checkpoints" / "step_2").exists():
                    time.sleep(0.01)  # it is written in the background
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        toy_trainer(tmp_path, batches=batches, checkpoint_every_steps=2).fit()
    assert _handlers() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_2"]
    assert [line["step"] for line in exact_lines(tmp_path)] == [1, 2, 3]


def test_the_outcome_says_what_and_where(tmp_path):
    outcome = TrainingInterrupted(signal.SIGTERM, 12, tmp_path / "step_12")
    assert str(outcome) == f"SIGTERM: stopped after step 12; saved {tmp_path / 'step_12'}"
    assert outcome.exit_code == 143
    other = pickle.loads(pickle.dumps(outcome))  # as it comes from a process of its own
    assert str(other) == str(outcome)
    assert (other.signal_number, other.step, other.checkpoint) == (
        signal.SIGTERM,
        12,
        tmp_path / "step_12",
    )


def test_a_signal_after_the_exchange_waits_for_the_next_step():
    with InterruptGuard() as guard:
        exchanged = guard.requested is not None
        signal.raise_signal(signal.SIGTERM)
        guard.settle(exchanged)  # no other process was asked either
        assert (guard.requested, guard.agreed) == (signal.SIGTERM, None)
        guard.settle(guard.requested is not None)
        assert guard.agreed == signal.SIGTERM


def test_a_request_to_another_process_is_one_to_this():
    guard = InterruptGuard()
    guard.settle(True)
    assert (guard.requested, guard.agreed) == (None, signal.SIGTERM)
