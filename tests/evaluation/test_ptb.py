import json
from pathlib import Path

import pytest

from triptych.evaluation import ptb

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden" / "caption_metrics.json").read_text())["items"]
CASES = json.loads((DATA / "ptb_tokens.json").read_text())["cases"]


def test_tokens_equal_the_golden_file_of_pycocoevalcap():
    for item in GOLDEN:
        assert [ptb.tokenize(text) for text in item["references"]] == item["references_tokenized"]
        assert ptb.tokenize(item["candidate"]) == item["candidate_tokenized"]


def test_tokens_equal_the_java_program_on_hard_texts():
    assert len(CASES) > 600
    wrong = [
        (text, wanted, ptb.tokenize(text)) for text, wanted in CASES if ptb.tokenize(text) != wanted
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # checked by hand against the Penn Treebank's conventions
        ("A man can't stop.", "a man ca n't stop"),
        ("He cannot, won't and isn't", "he can not wo n't and is n't"),
        ("the dogs' and the dog's toys", "the dogs and the dog 's toys"),
        ('a "STOP" sign (red)', "a stop sign -lrb- red -rrb-"),
        ("at 10:30 a.m. on Main St.", "at 10:30 a.m. on main st."),
        ("$20 for 3 1/2 lbs. -- wow!", "$ 20 for 3\u00a01/2 lbs wow"),
        ("\u201cHi\u201d \u2014 it\u2019s\u2026", "hi it 's"),
        ("black/white t-shirt & R&B", "black/white t-shirt & r&b"),
        ("Really?!", "really ?!"),
        ("", ""),
    ],
)
def test_tokenize(text, tokens):
    assert ptb.tokenize(text) == tokens


def test_punctuation_is_kept_when_asked_for():
    assert ptb.tokenize_with_punctuation("Stop, \u201cnow\u201d...") == (
        *("stop", ",", "``", "now", "''", "..."),
    )


def test_line_breaks_are_spaces():
    assert ptb.tokenize("a red\ncat\r\nsits\u2028down") == "a red cat sits down"
