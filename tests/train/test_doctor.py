"""Each detector on a log that was written by hand: what it must tell, and when it must not."""

import math
from dataclasses import replace

import pytest

from triptych.train.chance import ITM_CHANCE, Chance
from triptych.train.doctor import LiveDoctor, diagnose, find
from triptych.train.history import History, RunFacts

CHANCES = {
    "itc": Chance(columns=True, queue_size=48),
    "itm": ITM_CHANCE,
    "mlm": Chance(labels="mlm_labels"),
}
FACTS = RunFacts(max_steps=600, num_columns=16, chances=CHANCES)
LN_64, ITM = math.log(64), 0.6365141682948128  # 16 of the batch and 48 of the queue; H(1/3)


def around(value):
    """Return a curve that stays at a value, but not exactly."""
    return lambda step: value + 1e-3 * math.sin(step)


def healthy(step):
    """Return the numbers of a healthy run, of which learning takes off in step 60."""
    done = min(1.0, step / 300)
    took_off = step >= 60
    return {
        "loss/itc": around(LN_64)(step) if not took_off else 3.5 - 3.3 * done,
        "loss/itm": ITM - 0.5 * done,
        "loss/mlm": 6.0 - 5.0 * done,
        "loss/total": 11.0 - 9.0 * done,
        "source/web/itc": 4.0 - 3.5 * done,
        "source/books/itc": 4.1 - 3.5 * done,
        "source/web/steps": step // 2,
        "source/books/steps": step // 2,
        "grad_norm": 3.0 + 50.0 * took_off * (1 - done),
        "grad_norm_max": 5.0 + 80.0 * took_off * (1 - done),
        "lr/rest": 1e-3 * min(1.0, step / 50) * (1 - step / 1200),
        "chance/itc": LN_64,
        "chance/itm": ITM,
        "chance/mlm": 2.9,
        "embedding/image_cosine": 0.997 - 0.7 * done,
        "embedding/image_rank": 2.0 + 3.0 * done,
        "embedding/text_cosine": 0.997 - 0.7 * done,
        "embedding/text_rank": 2.0 + 3.0 * done,
        "share/itm": 1 / 3,
        "temperature": 0.07 - 0.05 * done,
        "temperature/min": 0.001,
        "temperature/max": 0.5,
        "queue/filled": min(48.0, step),
        "queue/newest": math.sin(step),
        "teacher/norm": 20.0 + 1e-4 * step,
        "teacher/distance": 0.02,
        "update/image": 4e-3,
        "update/rest": 4e-3,
        "input/image_spread": 0.2,
        "input/distinct_texts": 15.0,
        "data_wait_share": 0.1,
    }


def run(changes=None, until=600, facts=FACTS):
    """Return the history of a healthy run with some curves replaced by functions of the step."""
    history = History(facts)
    for step in range(10, until + 1, 10):
        values = healthy(step)
        values |= {name: change(step) for name, change in (changes or {}).items()}
        assert history.add({"step": step, **{k: v for k, v in values.items() if v is not None}})
    return history


def titles(history):
    return [finding.title for finding in find(history)]


@pytest.mark.parametrize("until", range(10, 601, 10))
def test_a_healthy_run_is_told_nothing_at_any_step(until):
    assert titles(run(until=until)) == []


def exploding(step):
    return 3.0 if step < 400 else 3.0 * 1.1 ** (step - 400)


FAULTS = {
    "not_finite (loss/mlm)": {"loss/mlm": lambda s: math.nan if s == 300 else around(2.0)(s)},
    "at_chance (itm)": {"loss/itm": around(0.64)},
    "at_chance (mlm)": {"loss/mlm": around(2.85)},
    "unrelated_pairs (itc)": {"loss/itc": lambda s: 4.15 + 0.01 * math.sin(s)},
    "collapsed_embeddings (image)": {"embedding/image_cosine": lambda s: 0.99},
    "collapsed_embeddings (text)": {"embedding/text_cosine": lambda s: 1.0},
    "constant_images": {"input/image_spread": lambda s: 0.0},
    "equal_texts": {"input/distinct_texts": lambda s: 1.0},
    "frozen_image_encoder": {"update/image": lambda s: 0.0},
    "temperature_at_clamp": {"temperature": lambda s: max(0.001, 0.07 - s / 1000)},
    "temperature_stuck": {"temperature": lambda s: 0.07},
    "stale_queue": {"queue/filled": lambda s: 0.0, "queue/newest": lambda s: 0.0},
    "stale_teacher": {"teacher/norm": lambda s: 20.0},
    "gradient_spikes": {"grad_norm_max": lambda s: 2000.0 if s % 150 == 0 else 5.0},
    "exploding_gradient": {"grad_norm": exploding, "loss/total": lambda s: 11.0 + s / 600},
    "dead_loss (itm)": {"loss/itm": lambda s: 0.0},
    "dead_loss (source/web/itc)": {"source/web/itc": lambda s: 2.0},
    "dead_source (books)": {"source/books/steps": lambda s: 0},
    "dead_source (books/itc)": {"source/books/itc": lambda s: 4.1 + 0.01 * math.sin(s)},
    "data_starved": {"data_wait_share": lambda s: 0.6},
    "learning_rate_high": {"update/rest": lambda s: 0.4},
    "learning_rate_low": {"update/rest": lambda s: 1e-6, "loss/total": lambda s: 11.0},
    "swapped_labels (itm)": {"share/itm": lambda s: 2 / 3},
    "train_test_gap (mlm)": {"val/loss/mlm": lambda s: 2.0 + abs(s - 300) / 300},
}


@pytest.mark.parametrize("title", FAULTS)
def test_each_fault_is_told_with_what_to_do(title):
    history = run(FAULTS[title])
    finding = next(f for f in find(history) if f.title == title)
    assert finding.evidence and finding.next_step and math.isfinite(finding.value)
    assert finding.line().startswith(f"{title}: ")
    causes = {"unrelated_pairs (itc)": ["at_chance (itc)"]}
    told = [other for other in titles(history) if other != title]
    allowed = causes.get(title, ["dead_source (web/itc)"] if "web" in title else [])
    assert [other for other in told if other not in allowed] == []


def test_an_encoder_that_is_frozen_on_purpose_is_no_finding():
    frozen = {"update/image": lambda s: 0.0}
    assert titles(run(frozen, facts=replace(FACTS, has_frozen=True))) == []
    assert titles(run(frozen)) == ["frozen_image_encoder"]


def test_chance_values_stand_in_the_evidence():
    (finding,) = find(run({"loss/itm": around(0.64)}))
    assert finding.chance == pytest.approx(ITM) and "0.637" in finding.evidence
    stuck = [f for f in find(run({"loss/itc": around(4.159)})) if f.name == "at_chance"]
    assert "ln 64" in stuck[0].evidence


def test_a_rising_learning_rate_and_few_steps_are_waited_for():
    warming = run({"lr/rest": lambda s: 1e-6 * s, "loss/itc": around(4.15)})
    assert titles(warming) == [] and "itc" in diagnose(warming).waiting
    early = run({"loss/itc": lambda s: around(4.15)(s) if s < 250 else 0.5}, until=240)
    assert titles(early) == []


def test_a_constant_image_is_the_cause_and_not_unrelated_pairs():
    both = {"loss/itc": around(4.159), "input/image_spread": lambda s: 0.0}
    assert titles(run(both)) == ["constant_images", "at_chance (itc)"]


def test_temperature_and_teacher_may_rest_when_the_learning_rate_does():
    at_rest = {
        "lr/rest": lambda s: 1e-3 if s < 500 else 1e-6,
        "temperature": lambda s: 0.02 if s > 500 else 0.07 - s * 1e-4,
        "teacher/norm": lambda s: 20.0 if s > 500 else s,
    }
    assert titles(run(at_rest)) == []


def test_a_log_of_an_earlier_version_is_read_as_far_as_it_goes():
    known = ("loss/", "grad_norm", "lr/", "data_wait_share", "source/")
    gone = {
        name: lambda s: None
        for name in healthy(10)
        if not name.startswith(known) or name == "grad_norm_max"
    }
    diagnosis = diagnose(run(gone | {"loss/itm": around(0.64), "loss/itc": around(4.15)}))
    assert [f.title for f in diagnosis.findings] == [
        "unrelated_pairs (itc)",
        "at_chance (itc)",
        "at_chance (itm)",
    ]
    unread = diagnosis.unread
    assert unread["collapsed embeddings"] == "embedding/*"
    assert unread["mlm at its chance value"] == "chance/mlm"
    assert "losses at their chance value" not in unread
    assert "a stale queue" not in diagnose(run()).unread


def test_without_a_configuration_the_rest_is_still_found():
    history = run({"data_wait_share": lambda s: 0.9}, facts=RunFacts())
    assert titles(history) == ["data_starved"]


def test_each_finding_is_told_once_and_not_again_after_a_resume():
    def starved(step):
        return {**healthy(step), "data_wait_share": 0.9}

    live, told = LiveDoctor(FACTS), []
    for step in range(10, 301, 10):
        told += live.add(step, starved(step))
    assert len(told) == 1 and told[0].startswith("doctor, step 50: data_starved: 90% of the time")
    lines = [{"step": step, **starved(step)} for step in range(10, 301, 10)]
    resumed = LiveDoctor(FACTS, lines)
    assert [line for s in range(310, 400, 10) for line in resumed.add(s, starved(s))] == []


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"step": "3"},
        {"step": True},
        {"step": -1},
        {"step": 10**30},
        {"step": 1.5},
    ],
)
def test_a_line_without_a_step_is_refused(line):
    history = History(RunFacts())
    assert not history.add(line) and not history.curves


def test_values_that_are_no_numbers_are_passed_over():
    history = History(RunFacts())
    values = {"a": "b", "c": None, "d": [1], "e": True, "f": 10**400, "g": 1}
    assert history.add({"step": 3, **values})
    assert list(history.curves) == ["g"] and history.not_finite == (3, "f")
