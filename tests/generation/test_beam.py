"""Beam search against exhaustive search, a plain loop over beams, and an uncached decoder."""

import itertools
import math

import pytest
import torch

from triptych.core.errors import ConfigError, NonFiniteError
from triptych.generation.decoding import CachedDecoder
from triptych.generation.search import (
    BeamConfig,
    Hypothesis,
    beam_search,
    best_divisor,
    length_divisor,
)
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig
from triptych.nn.init import init_weights

START, END = 0, 1


class TableStep:
    """A decoder whose next-word scores depend on the image and the whole text so far."""

    max_steps = 50

    def __init__(self, batch_size, vocab_size, seed=0, scale=2.0):
        self.batch_size, self.vocab_size = batch_size, vocab_size
        self.seed, self.scale = seed, scale
        self.texts = [() for _ in range(batch_size)]
        self.images, self.waiting = list(range(batch_size)), 0

    def scores(self, image, text):
        generator = torch.Generator().manual_seed(hash((self.seed, image, text)) % 2**31)
        return self.scale * torch.randn(self.vocab_size, generator=generator)

    def logits(self, token_ids):
        beams = token_ids.shape[1]
        flat = token_ids.flatten().tolist()
        self.texts = [(*text, token) for text, token in zip(self.texts, flat, strict=True)]
        rows = [self.scores(self.images[r // beams], text) for r, text in enumerate(self.texts)]
        return torch.stack(rows).reshape(len(self.images), beams, -1)

    def reorder(self, rows):
        self.texts = [self.texts[row] for row in rows.tolist()]

    def keep(self, images):
        beams = len(self.texts) // len(self.images)
        self.texts = [self.texts[i * beams + beam] for i in images for beam in range(beams)]
        self.images = [self.images[image] for image in images]

    def refill(self, image):
        beams = len(self.texts) // len(self.images)
        self.texts[image * beams : (image + 1) * beams] = [()] * beams
        if not self.waiting:
            return False
        self.images[image] = self.images_so_far
        self.images_so_far, self.waiting = self.images_so_far + 1, self.waiting - 1
        return True


def _score(step, image, words, ended, penalty):
    """Score one text from the definition: Σ log p / ((5 + t) / 6)^penalty."""
    tokens = [*words, END] if ended else list(words)
    text, total = (START,), 0.0
    for token in tokens:
        total += float(torch.log_softmax(step.scores(image, text), 0)[token])
        text = (*text, token)
    return total / ((5 + len(tokens)) / 6) ** penalty


def _every_text(step, image, config):
    """Return all texts with their scores, best first."""
    words = [word for word in range(step.vocab_size) if word != END]
    found = []
    for length in range(config.min_tokens, config.max_tokens + 1):
        ended = length < config.max_tokens
        found += [
            (_score(step, image, text, ended, config.length_penalty), text)
            for text in itertools.product(words, repeat=length)
        ]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0, -0.5])
@pytest.mark.parametrize("min_tokens", [0, 2])
def test_wide_search_equals_exhaustive_search(penalty, min_tokens):
    config = BeamConfig(num_beams=40, min_tokens=min_tokens, max_tokens=3, length_penalty=penalty)
    found = beam_search(TableStep(2, 4, seed=min_tokens), start_id=START, end_id=END, config=config)
    for image, hypotheses in enumerate(found):
        expected = _every_text(TableStep(2, 4, seed=min_tokens), image, config)[:40]
        assert [h.token_ids for h in hypotheses] == [text for _, text in expected]
        assert [h.score for h in hypotheses] == pytest.approx([s for s, _ in expected], abs=1e-5)


def _plain_search(step, image, config):
    """Search one image with Python lists; `step` only gives scores."""
    running, ended = [((START,), 0.0)], []
    for length in range(1, config.max_tokens + 1):
        candidates = []
        for text, total in running:
            log_probs = torch.log_softmax(step.scores(image, text), 0)
            if length <= config.min_tokens:
                log_probs[END] = -math.inf
            candidates += [((*text, w), total + float(p)) for w, p in enumerate(log_probs)]
        candidates.sort(key=lambda c: -c[1])
        last, best = length == config.max_tokens, candidates[: 2 * config.num_beams]
        divisor = ((5 + length) / 6) ** config.length_penalty
        for text, total in best:
            if (text[-1] == END or last) and total > -math.inf:
                words = text[1:-1] if text[-1] == END else text[1:]
                ended.append((total / divisor, words))
        ended = sorted(ended, reverse=True)[: config.num_beams]
        if config.stop == "top_ended" and best[0][0][-1] == END:
            break
        running = [c for c in best if c[0][-1] != END][: config.num_beams]
    return ended


@pytest.mark.parametrize("stop", ["none_better", "top_ended"])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_batched_search_equals_a_plain_loop(num_beams, stop):
    # The plain loop never stops early under "none_better": stopping must not lose anything.
    config = BeamConfig(num_beams=num_beams, min_tokens=1, max_tokens=7, stop=stop)
    step = TableStep(3, 6, seed=num_beams)
    found = beam_search(step, start_id=START, end_id=END, config=config)
    for image, hypotheses in enumerate(found):
        expected = _plain_search(step, image, config)
        assert [h.token_ids for h in hypotheses] == [words for _, words in expected]
        assert [h.score for h in hypotheses] == pytest.approx([s for s, _ in expected], abs=1e-5)


def test_probabilities_that_are_nan_are_an_error():
    step = TableStep(2, 5, scale=float("nan"))
    with pytest.raises(NonFiniteError, match="its weights are damaged"):
        beam_search(step, start_id=START, end_id=END, config=BeamConfig(num_beams=2, max_tokens=4))


def test_no_text_goes_on_after_its_end_or_begins_with_it():
    config = BeamConfig(num_beams=5, min_tokens=2, max_tokens=8)
    for seed in range(10):
        step = TableStep(2, 5, seed=seed)
        for hypotheses in beam_search(step, start_id=START, end_id=END, config=config):
            assert len(hypotheses) == 5
            assert len({h.token_ids for h in hypotheses}) == 5
            for hypothesis in hypotheses:
                assert END not in hypothesis.token_ids
                assert 2 <= len(hypothesis.token_ids) <= 8


def test_search_stops_once_no_running_text_can_win():
    class Sure(TableStep):
        steps = 0

        def scores(self, image, text):
            self.steps = max(self.steps, len(text))
            ends = len(text) == 3
            return torch.tensor([-30.0, 30.0 if ends else -30.0, 5.0, 0.0])

    step = Sure(1, 4)
    config = BeamConfig(num_beams=2, max_tokens=30)
    best = beam_search(step, start_id=START, end_id=END, config=config)[0][0]
    assert best.token_ids == (2, 2)
    assert step.steps < 6


def test_images_do_not_influence_each_other():
    class Swapped(TableStep):
        def scores(self, image, text):
            return super().scores(1 - image, text)

    config = BeamConfig(num_beams=3, max_tokens=6)
    found = beam_search(TableStep(2, 6), start_id=START, end_id=END, config=config)
    swapped = beam_search(Swapped(2, 6), start_id=START, end_id=END, config=config)
    assert found == swapped[::-1]


def test_a_constraint_takes_tokens_out_and_leaves_the_scores_of_the_others():
    allowed_words = torch.tensor([False, True, True, True, False, False])
    seen = []

    def allowed(said):
        seen.append(tuple(said.shape))
        return allowed_words

    config = BeamConfig(num_beams=2, max_tokens=3)
    step = TableStep(1, 6)
    hypotheses = beam_search(step, start_id=START, end_id=END, config=config, allowed=allowed)[0]
    assert seen == [(1, 2, 0), (1, 2, 1), (1, 2, 2)]
    for hypothesis in hypotheses:
        assert set(hypothesis.token_ids) <= {2, 3}
        expected = _score(step, 0, hypothesis.token_ids, len(hypothesis.token_ids) < 3, 0.6)
        assert hypothesis.score == pytest.approx(expected, abs=1e-5)


def test_a_constraint_may_leave_fewer_texts_than_beams():
    only = torch.tensor([False, False, True, False])
    found = beam_search(
        TableStep(1, 4),
        start_id=START,
        end_id=END,
        config=BeamConfig(num_beams=3, max_tokens=2),
        allowed=lambda said: only,
    )
    expected = _score(TableStep(1, 4), 0, (2, 2), False, 0.6)
    assert found == [[Hypothesis((2, 2), pytest.approx(expected, abs=1e-5))]]


def test_prompt_is_read_and_not_returned():
    class Echo(TableStep):
        def scores(self, image, text):
            logits = torch.full((9,), -20.0)
            logits[END if len(text) >= 4 else text[-1] + 1] = 20.0
            return logits

    prompt = torch.tensor([[4], [6]])
    found = beam_search(
        Echo(2, 9),
        start_id=START,
        end_id=END,
        config=BeamConfig(num_beams=2, max_tokens=5),
        prompt=prompt,
    )
    assert [h[0].token_ids for h in found] == [(5, 6), (7, 8)]


def test_search_longer_than_the_position_table_is_refused():
    with pytest.raises(ConfigError, match="decoder has 50"):
        beam_search(TableStep(1, 4), start_id=START, end_id=END, config=BeamConfig(max_tokens=51))


@pytest.mark.parametrize(
    "fields", [{"num_beams": 0}, {"max_tokens": 0}, {"min_tokens": 20, "max_tokens": 20}]
)
def test_impossible_searches_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BeamConfig(**fields)


def test_length_divisor_is_the_published_formula():
    assert length_divisor(7, 0.5) == pytest.approx(math.sqrt(2.0))  # ((5 + 7) / 6) ^ 0.5
    assert length_divisor(1, 0.6) == 1.0


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6])
def test_best_divisor_bounds_every_longer_text(penalty):
    longest = [length_divisor(t, penalty) for t in range(5, 11)]
    assert best_divisor(4, 10, penalty) == pytest.approx(max(longest))


class FullForward:
    """The same decoder without any cache: the whole text of each beam again at each step."""

    def __init__(self, decoder, memory, mask):
        self.decoder, self.memory, self.mask = decoder, memory, mask
        self.batch_size, self.max_steps = len(memory), decoder.config.max_positions
        self.texts = torch.zeros(len(memory), 0, dtype=torch.int64)

    def logits(self, token_ids):
        beams = token_ids.shape[1]
        self.texts = torch.cat([self.texts, token_ids.reshape(-1, 1)], dim=1)
        memory = self.memory.repeat_interleave(beams, 0)
        projected = self.decoder.project_memory(memory, self.mask.repeat_interleave(beams, 0))
        states = self.decoder(self.texts, projected)[:, -1]
        return self.decoder.word_logits(states).reshape(len(self.memory), beams, -1)

    def reorder(self, rows):
        self.texts = self.texts[rows]

    def keep(self, images):
        self.texts = self.texts.unflatten(0, (len(self.memory), -1))[images].flatten(0, 1)
        self.memory, self.mask = self.memory[images], self.mask[images]

    def refill(self, image):
        return False


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    config = TextConfig(vocab_size=30, embed_dim=16, num_heads=2, max_positions=12)
    decoder = TextDecoder(config, depth=2)
    init_weights(decoder, 0.5)
    return decoder.eval()


@torch.no_grad()
def test_cached_search_equals_full_forward(decoder):
    memory, mask = torch.randn(3, 7, 16), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    steps = (
        CachedDecoder(decoder, decoder.project_memory(memory, mask)),
        FullForward(decoder, memory, mask),
    )
    config = BeamConfig(num_beams=4, min_tokens=2, max_tokens=10)
    cached, full = (beam_search(s, start_id=2, end_id=3, config=config) for s in steps)
    assert len({h.token_ids for image in cached for h in image}) > 4
    for mine, theirs in zip(cached, full, strict=True):
        assert [h.token_ids for h in mine] == [h.token_ids for h in theirs]
        assert [h.score for h in mine] == pytest.approx([h.score for h in theirs], abs=1e-5)


@torch.no_grad()
def test_masked_memory_cannot_be_read(decoder):
    memory, mask = torch.randn(1, 7, 16), torch.ones(1, 7, dtype=torch.bool)
    mask[0, 4:] = False
    other = memory.clone()
    other[0, 4:] = 100.0
    config = BeamConfig(num_beams=3, max_tokens=6)
    first, second = (
        beam_search(
            CachedDecoder(decoder, decoder.project_memory(m, mask)),
            start_id=2,
            end_id=3,
            config=config,
        )
        for m in (memory, other)
    )
    assert first == second


@torch.no_grad()
def test_memory_is_not_copied_for_beams(decoder):
    memory = decoder.project_memory(torch.randn(2, 5, 16), None)
    step = CachedDecoder(decoder, memory)
    assert step.logits(torch.tensor([[2], [2]])).shape == (2, 1, 30)
    step.reorder(torch.tensor([0, 0, 1, 1]))
    assert step.logits(torch.tensor([[4, 5], [4, 5]])).shape == (2, 2, 30)
    assert step.memory.layers[0].key is memory.layers[0].key
