"""The log of what is skipped, and when it stops a run."""

import json
import pickle

import pytest

from triptych.core.errors import DataError
from triptych.data.skips import (
    MAX_RECENT,
    VERB_FLAG,
    ImageProblem,
    SkipKind,
    SkipLog,
    Skipped,
    share_to_allow,
)


def bad(name, kind=SkipKind.TRUNCATED, record_id=None):
    return Skipped(kind, name, "broken", record_id)


def test_three_of_200_stop_the_run_at_one_percent(tmp_path):
    log = SkipLog(tmp_path, num_samples=200)
    log.add(bad("a.jpg"))
    log.add(bad("b.jpg", SkipKind.NOT_AN_IMAGE))  # 2 of 200 is 1 %, not more
    with pytest.raises(DataError) as caught:
        log.add(bad("c.jpg"))
    message = str(caught.value)
    assert "3 of 200" in message and "1.50%" in message
    assert "2 truncated, 1 not_an_image" in message
    assert str(tmp_path / "skipped.jsonl") in message
    assert "--data.max-bad-share 0.02" in message


@pytest.mark.parametrize(
    ("num_bad", "num_samples", "allowed"),
    [(3, 197, 0.02), (3, 200, 0.02), (2, 200, 0.01), (1, 3, 0.34), (1, 1, 1)],
)
def test_the_share_that_is_advised_is_enough(num_bad, num_samples, allowed):
    share = num_bad / num_samples
    assert share_to_allow(share) == allowed >= share


def test_the_message_names_the_flag_that_the_verb_has():
    with pytest.raises(DataError, match=r" with --max-bad-share 0\.5"):
        SkipLog(None, num_samples=2, flag=VERB_FLAG).add(bad("a"))


def test_a_higher_share_goes_on(tmp_path):
    log = SkipLog(tmp_path, num_samples=200, max_share=0.02)
    for name in "abcd":
        log.add(bad(name))
    assert log.num_bad == 4
    with pytest.raises(DataError, match=r"--data\.max-bad-share 0\.03"):
        log.add(bad("e"))


def test_the_same_sample_counts_once_over_epochs(tmp_path):
    log = SkipLog(tmp_path, num_samples=200)
    for _ in range(50):
        log.add(bad("a.jpg", record_id="7"))
    assert log.num_bad == 1
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 1


def test_each_record_of_a_bad_image_counts_but_the_image_is_listed_once(tmp_path):
    log = SkipLog(tmp_path, num_samples=1000)
    for record_id in range(5):
        log.add(bad("a.jpg", record_id=str(record_id)))
    assert log.num_bad == 5
    assert log.share == 0.005
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {
        "kind": "truncated",
        "where": "a.jpg",
        "message": "broken",
    }


def test_a_resumed_run_does_not_list_a_place_again(tmp_path):
    SkipLog(tmp_path, num_samples=100).add(bad("a.jpg"))
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"kind": "trunc')  # a kill within a line
        file.write("\n")
    log = SkipLog(tmp_path, num_samples=100, max_share=0.5)
    assert log.num_bad == 0
    log.add(bad("a.jpg"))
    log.add(bad("b.jpg"))
    text = (tmp_path / "skipped.jsonl").read_text()
    assert text.count("a.jpg") == 1 and text.count("b.jpg") == 1


def test_add_all_lists_everything_before_it_stops(tmp_path):
    log = SkipLog(tmp_path, num_samples=20)
    with pytest.raises(DataError, match="10 of 20"):
        log.add_all([bad(str(i)) for i in range(10)])
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 10


def test_without_a_folder_the_error_quotes_the_first():
    log = SkipLog(None, num_samples=10)
    with pytest.raises(
        DataError,
        match=r"Some: manifest.jsonl:3 \(empty_caption\)\. The first, manifest.jsonl:3: broken",
    ):
        log.add(bad("manifest.jsonl:3", SkipKind.EMPTY_CAPTION))


def test_summary_counts_by_kind():
    log = SkipLog(None, num_samples=100, max_share=1.0)
    assert log.summary() == "no sample skipped"
    for name, kind in (("a", SkipKind.TRUNCATED), ("b", SkipKind.TRUNCATED), ("c", "bad_box")):
        log.add(bad(name, SkipKind(kind)))
    assert log.summary() == "3 of 100 samples skipped: 2 truncated, 1 bad_box"
    assert log.report() == f"{log.summary()}; some: a (truncated); b (truncated); c (bad_box)"


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(DataError, match="max_bad_share"):
        SkipLog(None, num_samples=10, max_share=share)


def test_an_image_problem_crosses_processes():
    problem = pickle.loads(pickle.dumps(ImageProblem(SkipKind.TRUNCATED, "a.jpg: cut")))
    assert (problem.kind, str(problem)) == (SkipKind.TRUNCATED, "a.jpg: cut")


def test_the_message_quotes_the_first_and_says_how_to_go_on():
    log = SkipLog(None, num_samples=10)
    with pytest.raises(DataError) as caught:
        log.add(bad("m.jsonl:3"))
    assert str(caught.value).endswith(
        "The first, m.jsonl:3: broken. Fix or remove them, or allow more with "
        "--data.max-bad-share 0.1, which --resume takes too"
    )


def test_data_of_another_task_gets_other_advice():
    log = SkipLog(None, num_samples=3, max_share=0.5)
    log.add(bad("a", SkipKind.MISSING_FIELD))
    with pytest.raises(DataError, match="not what this task reads") as e:
        log.add(bad("b", SkipKind.MISSING_FIELD))
    assert "allow more" not in str(e.value)


def test_many_bad_samples_are_counted_without_an_object_each(tmp_path):
    log = SkipLog(tmp_path, num_samples=100_000, max_share=0.5)
    for _ in range(2):
        log.add_all(bad(f"{i}.jpg", record_id=str(i)) for i in range(20_000))
    assert log.num_bad == 20_000 == log.counts[SkipKind.TRUNCATED]
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 20_000
    assert len(log._samples._recent) <= MAX_RECENT
    again = SkipLog(tmp_path, num_samples=100_000, max_share=0.5)
    again.add_all(bad(f"{i}.jpg") for i in range(20_001))
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 20_001
