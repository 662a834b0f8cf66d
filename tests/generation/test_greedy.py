"""Greedy search against the argmax written out, and its constraints."""

import pytest
import torch

from tests.generation.test_beam import END, START, TableStep
from triptych.core.errors import ConfigError
from triptych.generation.search import BeamConfig, beam_search, greedy_search


def _argmax_text(step, image, max_tokens, min_tokens=0):
    text = (START,)
    for position in range(max_tokens):
        scores = step.scores(image, text)
        if position < min_tokens:
            scores[END] = -1e9
        text = (*text, int(scores.argmax()))
        if text[-1] == END:
            return list(text[1:-1])
    return list(text[1:])


@pytest.mark.parametrize("min_tokens", [0, 3])
def test_each_token_is_the_likeliest(min_tokens):
    step = TableStep(4, 5, seed=3)
    found = greedy_search(step, start_id=START, end_id=END, max_tokens=9, min_tokens=min_tokens)
    assert found == [_argmax_text(step, image, 9, min_tokens) for image in range(4)]
    assert len({len(text) for text in found}) > 1


def test_one_beam_that_stops_at_its_end_is_greedy():
    config = BeamConfig(num_beams=1, min_tokens=0, max_tokens=9, stop="top_ended")
    beams = beam_search(TableStep(4, 5, seed=3), start_id=START, end_id=END, config=config)
    greedy = greedy_search(TableStep(4, 5, seed=3), start_id=START, end_id=END, max_tokens=9)
    for hypotheses, text in zip(beams, greedy, strict=True):
        assert text in [list(h.token_ids) for h in hypotheses]


def test_coordinate_tokens_only():
    allowed = torch.tensor([False, False, False, True, True, False])
    found = greedy_search(
        TableStep(5, 6), start_id=START, end_id=-1, max_tokens=4, allowed=lambda said: allowed
    )
    assert [len(text) for text in found] == [4] * 5
    assert {token for text in found for token in text} == {3, 4}


def test_one_mask_a_step():
    steps = torch.eye(3, 6, dtype=torch.bool).roll(2, dims=1)
    found = greedy_search(
        TableStep(2, 6),
        start_id=START,
        end_id=END,
        max_tokens=3,
        allowed=lambda said: steps[said.shape[2]],
    )
    assert found == [[2, 3, 4]] * 2


def test_text_longer_than_the_position_table_is_refused():
    with pytest.raises(ConfigError, match="lower max_tokens"):
        greedy_search(TableStep(1, 4), start_id=START, end_id=END, max_tokens=60)


def test_a_prompt_is_read_and_not_returned():
    class Echo(TableStep):
        def scores(self, image, text):
            logits = torch.full((9,), -20.0)
            logits[END if len(text) >= 5 else text[-1] + 1] = 20.0
            return logits

    prompt = torch.tensor([[3, 4], [5, 6]])
    found = greedy_search(Echo(2, 9), start_id=START, end_id=END, max_tokens=5, prompt=prompt)
    assert found == [[5, 6], [7, 8]]
    with pytest.raises(ConfigError, match="prompt of 2 tokens"):
        greedy_search(Echo(2, 9), start_id=START, end_id=END, max_tokens=49, prompt=prompt)
