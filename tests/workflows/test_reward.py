"""The reward of SCST: which captions it is made of, and with which document frequencies."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest

import triptych.workflows.run as run_module
from tests.docs_files import NUM_IMAGES, write_user_data
from triptych.core.errors import DataError
from triptych.data.collate.base import image_key
from triptych.data.records import ImageSource, Record
from triptych.data.source import DataSourceConfig
from triptych.tasks.finetuning.scst import SCSTConfig, build_reward
from triptych.workflows.run import train_run

from .small_runs import small_run

END = "<eos>"


def record(number, image, caption, **fields):
    source = None if image is None else ImageSource(path=image)
    return Record(record_id=str(number), image=source, caption=caption, **fields)


RECORDS = [
    record(0, "a.jpg", "A red star.", image_id="1"),
    record(1, "b.jpg", "a blue star", image_id="2"),
    record(2, "a.jpg", "two red stars", image_id="1"),
    record(3, None, "words alone"),
    record(4, "c.jpg", None),
    record(5, "c.jpg", ""),
    record(6, "copy.jpg", "a star", image_id="1", first_image=ImageSource(path="a.jpg")),
]
# PTB words: lower case, no full stop. c.jpg has no caption, and so is no document.
GROUPS = {0: ["a red star", "two red stars", "a star"], 1: ["a blue star"]}


def plain_frequencies(documents):
    """Count in how many documents each run of one to four words is."""
    counts = Counter()
    for captions in documents:
        found = set()
        for words in map(str.split, captions):
            for size in range(1, 5):
                found |= {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
        counts.update(found)
    return counts


def inverse_frequencies(documents):
    counts = plain_frequencies(documents)
    return {ngram: math.log(len(documents) / count) for ngram, count in counts.items()}


@pytest.mark.parametrize("reward_end", [True, False])
def test_captions_are_grouped_by_image(reward_end):
    reward = build_reward(SCSTConfig(reward_end=reward_end), RECORDS)
    last = f" {END}" if reward_end else ""
    expected = {
        image_key(RECORDS[first]): [f"{text}{last}" for text in texts]
        for first, texts in GROUPS.items()
    }
    assert reward._references == expected
    assert reward.reward_end is reward_end
    assert reward._scorer._idf == pytest.approx(inverse_frequencies([*expected.values()]))


def test_words_of_every_image_earn_nothing():
    """ "a" and "star" are in both documents: log(2 / 2) = 0. "blue" is in one: log 2."""
    idf = build_reward(SCSTConfig(), RECORDS)._scorer._idf
    zero = {("a",), ("star",), (END,), ("star", END)}
    assert {ngram for ngram, weight in idf.items() if weight == 0} == zero
    assert idf["blue",] == pytest.approx(math.log(2))
    assert ("words",) not in idf  # a text without an image is no document


def test_an_image_is_rewarded_by_its_own_captions_and_no_others():
    reward = build_reward(SCSTConfig(), RECORDS)
    second = image_key(RECORDS[1])
    right, wrong = reward(second, ["a blue star", "two red stars"], [True, True])
    assert right == pytest.approx(10.0) and wrong < right
    with pytest.raises(DataError, match="has no caption to be rewarded by"):
        reward(image_key(RECORDS[4]), ["a star"], [True])


def test_captions_of_one_image_are_too_few():
    with pytest.raises(DataError, match="two images or more, found 1"):
        build_reward(SCSTConfig(), [RECORDS[0], RECORDS[2], *RECORDS[3:6]])


def test_a_run_rewards_by_its_training_records(tmp_path, monkeypatch):
    tasks, build = [], run_module.build_task
    monkeypatch.setattr(
        run_module, "build_task", lambda *given: tasks.append(build(*given)) or tasks[-1]
    )
    write_user_data(tmp_path)
    lines = (tmp_path / "my.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[8:]))
    (tmp_path / "my.jsonl").write_text("\n".join(lines[:8]))
    config = small_run("mplug.scst", DataSourceConfig(path=str(tmp_path / "my.jsonl")), max_steps=1)
    train_run(replace(config, task=replace(config.task, num_samples=2)), tmp_path / "run")
    reward = tasks[0].reward
    said = [f"{json.loads(line)['caption']} {END}" for line in lines[:8]]
    assert len(lines) == NUM_IMAGES
    assert sorted(reward._references.values()) == sorted([text] for text in said)
    expected = inverse_frequencies([[text] for text in said])
    assert reward._scorer._idf == pytest.approx(expected)
