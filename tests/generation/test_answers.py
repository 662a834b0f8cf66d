"""Choices from a closed list against scores of its texts, computed one by one."""

import itertools

import pytest
import torch

from tests.generation.test_beam import END, START, TableStep, _score
from triptych.core.errors import ConfigError, DataError
from triptych.generation.answers import AnswerTrie, rank_answers, search_answers
from triptych.generation.search import greedy_search

VOCAB = 7
# Texts that share beginnings, one of which begins another, and one of the longest length.
ANSWERS = [(2,), (2, 3), (2, 3, 4), (5, 2), (5, 6), (6, 6, 6, 6), (3,), (4, 2)]


def _brute_force(step, image, penalty=0.0):
    """Return every answer with its score, best first."""
    scored = [(_score(step, image, text, True, penalty), text) for text in ANSWERS]
    return sorted(scored, reverse=True)


def _trie():
    return AnswerTrie(ANSWERS, END, VOCAB)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_search_orders_the_list_as_its_scores_do(seed, penalty):
    found = search_answers(
        TableStep(3, VOCAB, seed),
        _trie(),
        start_id=START,
        end_id=END,
        num_beams=len(ANSWERS),
        length_penalty=penalty,
    )
    for image, hypotheses in enumerate(found):
        expected = _brute_force(TableStep(3, VOCAB, seed), image, penalty)
        assert [h.token_ids for h in hypotheses] == [text for _, text in expected]
        assert [h.score for h in hypotheses] == pytest.approx([s for s, _ in expected], abs=1e-5)


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_a_narrow_search_stays_in_the_list(num_beams):
    for seed in range(20):
        found = search_answers(
            TableStep(4, VOCAB, seed, scale=6.0),
            _trie(),
            start_id=START,
            end_id=END,
            num_beams=num_beams,
        )
        for hypotheses in found:
            texts = [h.token_ids for h in hypotheses]
            assert 1 <= len(texts) <= num_beams
            assert set(texts) <= set(ANSWERS) and len(set(texts)) == len(texts)


def test_greedy_follows_the_likeliest_branch():
    for seed in range(20):
        step = TableStep(4, VOCAB, seed, scale=6.0)
        found = greedy_search(
            step, start_id=START, end_id=END, max_tokens=_trie().max_tokens, allowed=_trie()
        )
        for image, text in enumerate(found):
            said = ()
            while True:  # among the texts that begin like this, what is likeliest to come next?
                begun = [(*a, END) for a in ANSWERS if (*a, END)[: len(said)] == said]
                scores = step.scores(image, (START, *said))
                token = max({a[len(said)] for a in begun}, key=lambda t: float(scores[t]))
                if token == END:
                    break
                said = (*said, token)
            assert tuple(text) == said


def test_the_trie_allows_what_continues_a_text_of_the_list():
    said = torch.tensor([[[2, 3], [5, 4], [6, 6]]])
    allowed = _trie()(said)
    assert [row.nonzero().flatten().tolist() for row in allowed[0]] == [[END, 4], [], [6]]
    assert _trie().max_tokens == 5


@pytest.mark.parametrize("seed", range(5))
def test_ranking_all_equals_scoring_one_by_one(seed):
    found = rank_answers(TableStep(3, VOCAB, seed), ANSWERS, start_id=START, end_id=END)
    for image in range(3):
        expected = _brute_force(TableStep(3, VOCAB, seed), image)
        assert [ANSWERS[i] for i in found.index[image]] == [text for _, text in expected]
        assert found.log_probs[image].tolist() == pytest.approx([s for s, _ in expected], abs=1e-5)


def test_a_short_list_keeps_the_likeliest_first_tokens():
    for seed, top_k in itertools.product(range(5), (1, 3)):
        step = TableStep(2, VOCAB, seed)
        found = rank_answers(step, ANSWERS, start_id=START, end_id=END, top_k=top_k)
        for image in range(2):
            first = TableStep(2, VOCAB, seed).scores(image, (START,))
            likely = sorted((float(first[a[0]]) for a in ANSWERS), reverse=True)[:top_k]
            chosen = [ANSWERS[i] for i in found.index[image]]
            assert sorted((float(first[a[0]]) for a in chosen), reverse=True) == likely
            scores = [_score(TableStep(2, VOCAB, seed), image, a, True, 0.0) for a in chosen]
            assert found.log_probs[image].tolist() == pytest.approx(scores, abs=1e-5)
            assert scores == sorted(scores, reverse=True)


def test_more_than_all_is_all():
    few = rank_answers(TableStep(1, VOCAB), ANSWERS, start_id=START, end_id=END, top_k=99)
    assert sorted(few.index[0].tolist()) == list(range(len(ANSWERS)))


def test_a_prompt_stands_before_every_answer():
    class Shifted(TableStep):
        def scores(self, image, text):
            return super().scores(image, (START, *text[2:]) if len(text) > 1 else text)

    prompt = torch.tensor([[6], [4]])
    plain = rank_answers(TableStep(2, VOCAB), ANSWERS, start_id=START, end_id=END)
    after = rank_answers(Shifted(2, VOCAB), ANSWERS, start_id=START, end_id=END, prompt=prompt)
    torch.testing.assert_close(after.log_probs, plain.log_probs)
    found = search_answers(
        Shifted(2, VOCAB), _trie(), start_id=START, end_id=END, num_beams=8, prompt=prompt
    )
    for image, hypotheses in enumerate(found):
        assert [h.token_ids for h in hypotheses] == [ANSWERS[i] for i in plain.index[image]]


@pytest.mark.parametrize(
    ("answers", "message"), [([], "list of answers is empty"), ([(2,), ()], "answer 1 of the list")]
)
def test_lists_that_cannot_be_said(answers, message):
    with pytest.raises(DataError, match=message):
        AnswerTrie(answers, END, VOCAB)
    with pytest.raises(DataError, match=message):
        rank_answers(TableStep(1, VOCAB), answers, start_id=START, end_id=END)


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="top_k = 0: must be at least 1"):
        rank_answers(TableStep(1, VOCAB), ANSWERS, start_id=START, end_id=END, top_k=0)
    with pytest.raises(ConfigError, match="decoder has 50"):
        rank_answers(TableStep(1, VOCAB), [(2,) * 50], start_id=START, end_id=END)
