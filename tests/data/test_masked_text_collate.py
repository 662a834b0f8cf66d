"""Texts alone: what is masked, what is a label, and what a record must have."""

import numpy as np
import pytest

from triptych.data.collate import SampleProblem
from triptych.data.collate.base import TextCollator
from triptych.data.collate.pretraining import MaskedTextCollator, PretrainingTextConfig
from triptych.data.masking import IGNORE_INDEX
from triptych.data.records import Record
from triptych.text import Tokenizer

TEXTS = ("a red dog runs", "it is", "two dogs run in a red house and bark")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(list(TEXTS) * 3, vocab_size=200)


@pytest.mark.parametrize("whole_word", [True, False])
def test_labels_are_the_hidden_tokens_and_every_text_has_one(tokenizer, whole_word):
    config = PretrainingTextConfig(whole_word=whole_word)
    collator = MaskedTextCollator(tokenizer, config)
    assert isinstance(collator, TextCollator)
    records = [Record(record_id=str(i), text=t.upper()) for i, t in enumerate(TEXTS)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        batch = collator.batch([collator.text_sample(record, rng) for record in records])
        ids, labels, mask = batch["token_ids"], batch["mlm_labels"], batch["text_mask"]
        hidden = labels != IGNORE_INDEX
        assert bool(hidden.any(dim=1).all())
        assert bool((labels[hidden] == ids[hidden]).all())
        assert bool((batch["mlm_token_ids"][~hidden] == ids[~hidden]).all())
        assert not bool((hidden & ~mask).any())
    assert ids.tolist() == tokenizer.pad(tokenizer.encode(list(TEXTS), max_tokens=40))[0].tolist()


def test_a_caption_is_a_text_and_nothing_is_a_problem(tokenizer):
    collator = MaskedTextCollator(tokenizer, PretrainingTextConfig())
    rng = np.random.default_rng(0)
    text, caption = (
        collator.text_sample(Record(record_id="0", **{field: "a dog"}), rng).ids
        for field in ("text", "caption")
    )
    assert text.tolist() == caption.tolist()
    with pytest.raises(SampleProblem, match="has no text"):
        collator.text_sample(Record(record_id="0", question="a dog?"), rng)


def test_long_texts_are_cut(tokenizer):
    collator = MaskedTextCollator(tokenizer, PretrainingTextConfig(max_text_tokens=6))
    sample = collator.text_sample(Record(record_id="0", text=TEXTS[2]), np.random.default_rng(0))
    assert len(sample.ids) == 6
    assert sample.ids[-1] == tokenizer.sep_id
