"""Collators of classifiers: targets and labels worked by hand."""

import numpy as np
import pytest
import torch

from triptych.data.collate import SampleProblem
from triptych.data.collate.classification import (
    AnswerClassCollator,
    ImageTextClassCollator,
    TextClassCollator,
)
from triptych.data.records import Record
from triptych.data.skips import SkipKind
from triptych.data.transforms.pipeline import TransformedImage
from triptych.text import Tokenizer

IMAGE = TransformedImage(np.zeros((4, 4, 3), dtype=np.uint8), width=4, height=4)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["is it red or blue ? a dog runs"], vocab_size=200)


def answers_of(tokenizer, **settings):
    names = ("red", "blue", "2")
    return AnswerClassCollator(tokenizer, names, normalise=str.lower, **settings)


def test_answers_become_scores_of_the_closed_list(tokenizer):
    collator = answers_of(tokenizer)
    ten = ("Red",) * 2 + ("blue",) * 5 + ("green",) * 3
    records = [
        Record(record_id="0", question="red or blue?", answers=ten),
        Record(record_id="1", question="is it?", answers=("green",)),
    ]
    batch = collator.batch([collator.sample(record, IMAGE, RNG) for record in records])
    expected = torch.tensor([[0.6, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(batch["answer_scores"], expected)
    assert tokenizer.decode(batch["token_ids"][0].tolist()) == "red or blue?"
    assert batch["text_mask"].sum(dim=1).tolist() == [6, 5]


def test_answers_are_needed_in_training_only(tokenizer):
    record = Record(record_id="7", question="is it red?")
    with pytest.raises(SampleProblem, match="record 7: has no answer") as caught:
        answers_of(tokenizer).sample(record, IMAGE, RNG)
    assert caught.value.kind is SkipKind.BAD_ANSWERS
    sample = answers_of(tokenizer, train=False).sample(record, IMAGE, RNG)
    assert sample.scores == {}


def test_a_field_and_its_label(tokenizer):
    collator = ImageTextClassCollator(
        tokenizer, ("no", "1"), text_field="hypothesis", max_text_tokens=4
    )
    records = [
        Record(record_id="0", hypothesis="a dog runs", premise="is it red", label=1),
        Record(record_id="1", hypothesis="a dog", label="no"),
    ]
    batch = collator.batch([collator.sample(record, IMAGE, RNG) for record in records])
    assert batch["label"].tolist() == [1, 0]
    assert [tokenizer.decode(row) for row in batch["token_ids"].tolist()] == ["a dog", "a dog"]


@pytest.mark.parametrize("label", [None, "maybe"])
def test_a_label_is_needed_in_training_only(tokenizer, label):
    record = Record(record_id="3", text="a dog", label=label)
    settings = {"text_field": "text", "max_text_tokens": 8}
    with pytest.raises(SampleProblem, match=r"record 3: label .* is none of \['no', 'yes'\]"):
        ImageTextClassCollator(tokenizer, ("no", "yes"), **settings).sample(record, IMAGE, RNG)
    collator = ImageTextClassCollator(tokenizer, ("no", "yes"), train=False, **settings)
    assert collator.batch([collator.sample(record, IMAGE, RNG)])["label"].tolist() == [-100]


def encode(tokenizer, **fields):
    collator = TextClassCollator(tokenizer, None, max_text_tokens=8, train=False)
    (row,) = collator.batch([collator.text_sample(Record(record_id="0", **fields), RNG)])[
        "token_ids"
    ].tolist()
    names = {tokenizer.cls_id: "[CLS]", tokenizer.sep_id: "[SEP]"}
    return " ".join(names.get(token) or tokenizer.decode([token]) for token in row)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "A dog"}, "[CLS] a dog [SEP]"),
        ({"hypothesis": "it runs"}, "[CLS] it runs [SEP]"),
        ({"premise": "is it", "hypothesis": "a dog"}, "[CLS] is it [SEP] a dog [SEP]"),
        # 9 and 10 tokens in 8: the longer text is cut, of equal ones the second
        (
            {"premise": "is it red or", "hypothesis": "a dog"},
            "[CLS] is it red [SEP] a dog [SEP]",
        ),
        (
            {"premise": "is it red", "hypothesis": "a dog runs or"},
            "[CLS] is it red [SEP] a dog [SEP]",
        ),
    ],
)
def test_one_text_or_two(tokenizer, fields, expected):
    assert encode(tokenizer, **fields) == expected


def test_texts_with_classes_and_with_numbers(tokenizer):
    classes = TextClassCollator(tokenizer, ("0", "1"), max_text_tokens=8)
    records = [Record(record_id=str(n), text="a dog", label=label) for n, label in enumerate("101")]
    batch = classes.batch([classes.text_sample(record, RNG) for record in records])
    assert batch["label"].tolist() == [1, 0, 1]
    numbers = TextClassCollator(tokenizer, None, max_text_tokens=8)
    record = Record(record_id="5", premise="a dog", hypothesis="a dog", label=2.5)
    assert numbers.batch([numbers.text_sample(record, RNG)])["value"].tolist() == [2.5]
    with pytest.raises(SampleProblem, match="record 1: label '0' is no number"):
        numbers.text_sample(records[1], RNG)
    with pytest.raises(SampleProblem, match="has no text"):
        numbers.text_sample(Record(record_id="6", label=1.0), RNG)
